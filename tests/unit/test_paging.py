"""Giving back the memory of mapped weights must never lose what was written to them."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch

from draftless.engine.cpu.paging import page_in, page_out

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="advice of Linux")
SIZE = 1 << 22


@pytest.fixture
def mapped(tmp_path: Path) -> torch.Tensor:
    """A tensor that is mapped from a file, as weights are: what is written to it stays in memory."""
    file = tmp_path / "weights"
    torch.arange(SIZE, dtype=torch.int32).numpy().tofile(file)
    return torch.from_file(str(file), shared=False, size=SIZE, dtype=torch.int32)


def resident_bytes() -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmRSS:"):
            return int(line.split()[1]) << 10
    raise AssertionError("no VmRSS")


def test_what_is_given_back_can_be_read_again(mapped: torch.Tensor) -> None:
    page_in(mapped)
    before = resident_bytes()
    page_out(mapped)
    assert before - resident_bytes() > mapped.nbytes // 2
    assert torch.equal(mapped, torch.arange(SIZE, dtype=torch.int32))


def test_what_was_written_stays(mapped: torch.Tensor) -> None:
    mapped[SIZE // 2] = -1
    page_out(mapped)
    assert mapped[SIZE // 2] == -1


def test_memory_of_no_file_stays() -> None:
    tensor = torch.ones(SIZE, dtype=torch.int32)
    page_out(tensor)
    page_in(tensor)
    assert bool((tensor == 1).all())
