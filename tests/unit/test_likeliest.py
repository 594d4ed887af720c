"""The likeliest tokens of a row: our operator and torch's `topk` against a sort of all scores."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
import torch

from draftless.engine import native
from draftless.engine.likeliest import largest, likeliest


@pytest.fixture(params=["native", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Both ways, whatever was loaded before."""
    if request.param == "native":
        if not native.load("draws"):
            pytest.skip("no C++ compiler")
    else:
        monkeypatch.setattr(native, "_LOADED", {})
    yield request.param


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, -40.0, 40.0])
@pytest.mark.parametrize("size", [5, 64, 256, 1001, 33_000])
def test_they_are_those_of_a_sort(dtype: torch.dtype, shift: float, size: int) -> None:
    logits = (torch.randn(6, size, generator=torch.manual_seed(size)) * 3 + shift).to(dtype)
    logits[0, -3:] += 9  # several together, behind the last whole block
    ids, scores = likeliest(logits, 7)
    expected = logits.float().sort(1, descending=True).values[:, :7].numpy()
    assert (scores == expected).all()
    assert (np.take_along_axis(logits.float().numpy(), ids, 1) == scores).all()
    assert all(len(set(row)) == len(row) for row in ids.tolist())


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("shift", [0.0, -40.0, 40.0])
def test_the_largest_of_a_row_is_the_lowest_id_on_ties(dtype: torch.dtype, shift: float) -> None:
    logits = (torch.randn(5, 1001, generator=torch.manual_seed(2)) + shift).to(dtype)
    logits[1, [1000, 70, 300]] = shift + 30.0
    logits[2] = shift
    logits[3, :] = -torch.inf
    logits[3, 999] = shift
    assert [largest(logits, row) for row in range(5)] == [
        int(logits[0].float().argmax()), 70, 0, 999, int(logits[4].float().argmax())
    ]  # fmt: skip


@pytest.mark.usefixtures("way")
def test_rows_of_a_larger_block() -> None:
    """A view with a stride, as the engine's logits are."""
    block = torch.zeros(4, 3, 600)
    block[:, 0, [7, 300, 599]] = torch.tensor([3.0, 2.0, 1.0])
    block[:, 1] = 9.0
    assert likeliest(block[:, 0], 3)[0].tolist() == [[7, 300, 599]] * 4


@pytest.mark.usefixtures("way")
def test_excluded_tokens_come_last() -> None:
    logits = torch.full((1, 300), -torch.inf)
    logits[0, [290, 3]] = torch.tensor([1.0, 2.0])
    ids, scores = likeliest(logits, 4)
    assert ids[0, :2].tolist() == [3, 290]
    assert np.isneginf(scores[0, 2:]).all()
    assert len(set(ids[0].tolist())) == 4


def test_our_operator_takes_the_lowest_of_equals_and_survives_what_is_no_number() -> None:
    if not native.load("draws"):
        pytest.skip("no C++ compiler")
    logits = torch.zeros(2, 600)
    logits[0, [599, 300, 7]] = 1.0
    logits[1] = torch.nan
    logits[1, 5] = 2.0
    ids, scores = likeliest(logits, 5)
    assert ids[0].tolist() == [7, 300, 599, 0, 1]
    assert ids[1, 0] == 5
    assert np.isneginf(scores[1, 1:]).all()
