"""Memory for packed weights."""

from __future__ import annotations

import mmap

import pytest
import torch

from draftless.engine.compiled.huge_pages import HugePages


def test_copies_are_equal_and_stay_apart() -> None:
    memory = HugePages()
    tensors = [torch.randn(7, 5), torch.randn(3, 4, dtype=torch.bfloat16).T, torch.ones(3).char()]
    tensors.append(torch.randn(5_000_000))  # larger than a piece
    tensors.append(torch.randn(9))
    copies = [memory.place(tensor) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        assert torch.equal(copy, tensor)
        assert copy.data_ptr() % 64 == 0 or copy is tensor
    copies[0].fill_(0)
    assert torch.equal(copies[1], tensors[1])
    assert torch.equal(copies[2], tensors[2])


def test_a_kernel_without_large_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    class Plain(mmap.mmap):
        def madvise(self, *_: int) -> None:
            raise OSError(22, "Invalid argument")

    monkeypatch.setattr(mmap, "mmap", Plain)
    assert HugePages().place(torch.arange(9)).tolist() == list(range(9))


def test_small_copies_share_a_piece_and_outlive_what_made_them() -> None:
    memory = HugePages()
    first, second = (memory.place(torch.full((16,), float(one))) for one in (1, 2))
    if hasattr(mmap, "MADV_HUGEPAGE"):
        assert second.data_ptr() - first.data_ptr() == 64
    del memory
    assert first.tolist() == [1.0] * 16
    assert second.tolist() == [2.0] * 16
