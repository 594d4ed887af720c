"""Noise by position, and what is likeliest under it: our operators and NumPy against the definition."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftless.engine import native
from draftless.engine.position_noise import PositionNoise
from draftless.noise import KeyedNoise, gumbel, token_keys, uniform

CPU = torch.device("cpu")
KEYED = KeyedNoise(5, 2)


@pytest.fixture(params=["native", "numpy"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways, whatever was loaded before."""
    if request.param == "numpy":
        monkeypatch.setattr(native, "_LOADED", {})
    elif not native.load("draws"):
        pytest.skip("no C++ compiler")
    return str(request.param)


def test_position_noise_remembers_and_forgets_without_a_trace() -> None:
    keyed = KeyedNoise(5)
    noise = PositionNoise(keyed, 40, torch.device("cpu"))
    ids = torch.tensor([3, 39])
    assert noise(7, ids).equal(keyed(7, ids))  # before the whole vector is known
    assert noise(7).equal(keyed(7, torch.arange(40)))
    assert noise(7, ids).equal(keyed(7, ids))  # and after
    assert noise(8).equal(keyed(8, torch.arange(40)))
    both = torch.tensor([[3, 39], [5, 5]])
    assert noise((7, 9), both).equal(torch.stack([keyed(7, both[0]), keyed(9, both[1])]))
    assert noise((11, 12), both).equal(torch.stack([keyed(11, both[0]), keyed(12, both[1])]))
    assert noise((7, 9)).equal(torch.stack([noise(7), noise(9)]))
    assert noise((13, 14)).equal(torch.stack([keyed(p, torch.arange(40)) for p in (13, 14)]))
    noise.forget_before(8)
    assert noise(7).equal(keyed(7, torch.arange(40)))


# --- a handful of tokens -------------------------------------------------------------------------


def test_a_handful_has_the_noise_of_the_vocabulary() -> None:
    ids = [0, 3, 39, 151_935]
    expected = KEYED(7, torch.tensor(ids))
    assert PositionNoise(KEYED, 40, CPU).few(7, ids) == pytest.approx(expected.tolist(), rel=1e-14)


@pytest.mark.usefixtures("way")
def test_a_handful_is_ranked_under_its_noise() -> None:
    ids, logits = [8, 3, 5, 30, 11], [1.0, 2.0, 0.5, -1.0, 1.5]
    scores = np.array(logits) / 0.7 + np.array(KEYED.few(9, ids))
    order = np.argsort(-scores)
    best, of_best = PositionNoise(KEYED, 40, CPU).ranked(ids, logits, 9, 0.7, 3)
    assert best == [ids[place] for place in order[:3]]
    assert of_best == pytest.approx(scores[order[:3]])
    assert len(PositionNoise(KEYED, 40, CPU).ranked(ids, logits, 9, 0.7, 9)[0]) == 5


# --- the whole vocabulary ------------------------------------------------------------------------


def expected_order(logits: torch.Tensor, position: int, temperature: float) -> torch.Tensor:
    noise = KEYED(position, torch.arange(logits.shape[0]))
    return (logits.float() / temperature).double() + noise


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32, torch.float64])
@pytest.mark.parametrize("spread", [0.0, 0.1, 5.0, 60.0])
@pytest.mark.parametrize("size", [5, 256, 1001, 33_000])
def test_the_likeliest_are_those_of_a_sort(dtype: torch.dtype, spread: float, size: int) -> None:
    logits = (torch.randn(6, size, generator=torch.manual_seed(size)) * spread).to(dtype)
    noise = PositionNoise(KEYED, size, CPU)
    rows, positions, count = [4, 0, 5], [31, 7, 8], 5
    ids, scores = noise.likeliest(logits, rows, positions, 0.8, count)
    for row, position, found, of_found in zip(rows, positions, ids, scores, strict=True):
        top = expected_order(logits[row], position, 0.8).topk(min(count, size))
        assert found.tolist() == top.indices.tolist()
        np.testing.assert_allclose(of_found, top.values.numpy(), rtol=1e-5)


@pytest.mark.parametrize("spread", [0.0, 1.0, 8.0])
def test_a_draw_is_the_largest_of_all(spread: float) -> None:
    if not native.load("draws"):
        pytest.skip("no C++ compiler")
    logits = (torch.randn(300, 5001, generator=torch.manual_seed(3)) * spread).bfloat16()
    noise = PositionNoise(KEYED, 5001, CPU)
    drawn = [noise.draw(logits, row, 100 + row, 1.3) for row in range(300)]
    expected = [int(expected_order(logits[row], 100 + row, 1.3).argmax()) for row in range(300)]
    assert drawn == expected


def test_a_draw_that_only_just_wins_is_not_overlooked() -> None:
    """Our operator passes over what a bound on its noise excludes: here the bound is hardly above it."""
    if not native.load("draws"):
        pytest.skip("no C++ compiler")
    position, size = 77, 1 << 22
    bits = token_keys(np.arange(size)) + np.uint64(KEYED.stream(position))
    mantissa, exponent = np.frexp(1.0 - uniform(bits.copy()))
    noise = gumbel(bits)
    bound = np.log(2.0) * (2.0 - exponent - 2.0 * mantissa)  # a chord of the logarithm
    assert (bound >= noise).all()
    tight = np.flatnonzero(bound - noise < 4e-4)
    assert len(tight) > 2
    logits = torch.full((1, size), -1e4)
    for best in tight:
        for ahead, expected in ((5e-4, best), (-5e-4, 300)):
            logits[0, 300] = float(noise[best] - ahead - noise[300])
            logits[0, best] = 0.0
            assert PositionNoise(KEYED, 9, CPU).draw(logits, 0, position, 1.0) == expected
        logits[0, best] = -1e4


@settings(deadline=None)
@given(st.integers(0, 2**63), st.integers(0, 10**6), st.floats(0.05, 20.0))
def test_a_draw_agrees_for_any_key(seed: int, position: int, temperature: float) -> None:
    if not native.load("draws"):
        pytest.skip("no C++ compiler")
    keyed = KeyedNoise(seed)
    logits = torch.randn(1, 700, generator=torch.manual_seed(position)) * 3
    scores = (logits[0] / temperature).double() + keyed(position, torch.arange(700))
    drawn = PositionNoise(keyed, 700, CPU).draw(logits, 0, position, temperature)
    assert drawn == int(scores.argmax())


def test_a_draw_takes_the_lowest_of_equals() -> None:
    if not native.load("draws"):
        pytest.skip("no C++ compiler")
    logits = torch.zeros(1, 700)
    logits[0, [690, 9, 70]] = torch.inf
    assert PositionNoise(KEYED, 700, CPU).draw(logits, 0, 4, 1.0) == 9


@pytest.mark.usefixtures("way")
def test_excluded_tokens_are_never_drawn() -> None:
    logits = torch.full((1, 700), -torch.inf)
    logits[0, [690, 3]] = torch.tensor([1.0, 2.0])
    noise = PositionNoise(KEYED, 700, CPU)
    ids, scores = noise.likeliest(logits, [0], [4], 1.0, 3)
    assert set(ids[0, :2].tolist()) == {3, 690}
    assert np.isneginf(scores[0, 2])


def test_without_the_operator_or_with_doubles_the_caller_draws(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    if native.load("draws"):
        assert PositionNoise(KEYED, 9, CPU).draw(torch.zeros(1, 9).double(), 0, 1, 1.0) is None
    monkeypatch.setattr(native, "_LOADED", {})
    assert PositionNoise(KEYED, 9, CPU).draw(torch.zeros(1, 9), 0, 1, 1.0) is None


def test_a_row_that_is_not_there_is_an_error() -> None:
    if not native.load("draws"):
        pytest.skip("no C++ compiler")
    with pytest.raises(IndexError, match="no row 2"):
        PositionNoise(KEYED, 9, CPU).draw(torch.zeros(2, 9), 2, 1, 1.0)
