"""The law, third proof: keyed draws follow the conditional and are independent of each other.

All seeds are fixed, so a test passes always or never. `ALPHA` is the probability with which a
correct generator would have failed at these seeds; 20 tests share it: 2e-5 for the file.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from scipy import stats

from draftless.noise import KeyedNoise

ALPHA = 1e-6
NUM_DRAWS = 12_000
VOCAB = 6
IDS = torch.arange(VOCAB)
LOGITS = torch.tensor([1.2, 0.0, -0.7, 2.0, 0.4, -2.0], dtype=torch.float64)

Key = Callable[[int], tuple[int, int, int]]
"""The n-th (seed, sample index, position)."""

COUNTERS: dict[str, Key] = {
    "positions": lambda n: (7, 0, n),
    "seeds": lambda n: (n, 0, 31),
    "samples": lambda n: (7, n, 31),
    "high seeds": lambda n: (n << 48, 0, 31),
    "seeds and positions together": lambda n: (n, 0, n),
}


def draws(key: Key, count: int = NUM_DRAWS) -> torch.Tensor:  # [count] int64
    noise = torch.stack(
        [
            KeyedNoise(seed, sample)(position, IDS)
            for seed, sample, position in map(key, range(count))
        ]
    )
    return (LOGITS + noise).argmax(dim=1)


@pytest.mark.parametrize("counter", COUNTERS)
def test_draws_follow_the_conditional(counter: str) -> None:
    observed = torch.bincount(draws(COUNTERS[counter]), minlength=VOCAB)
    expected = LOGITS.softmax(0) * NUM_DRAWS
    assert expected.min() > 5  # or chi-square would not hold
    assert stats.chisquare(observed.numpy(), expected.numpy()).pvalue > ALPHA


@pytest.mark.parametrize("lag", [1, 2])
@pytest.mark.parametrize("counter", COUNTERS)
def test_neighbouring_draws_are_independent(counter: str, lag: int) -> None:
    drawn = draws(COUNTERS[counter])
    pairs = torch.bincount(drawn[:-lag] * VOCAB + drawn[lag:], minlength=VOCAB**2)
    chances = LOGITS.softmax(0)
    expected = (chances[:, None] * chances[None]).flatten() * (NUM_DRAWS - lag)
    rare = expected < 5  # cells that are pooled
    observed = torch.cat([pairs[~rare], pairs[rare].sum()[None]])
    wanted = torch.cat([expected[~rare], expected[rare].sum()[None]])
    assert stats.chisquare(observed.numpy(), wanted.numpy()).pvalue > ALPHA


@pytest.mark.parametrize("position", [0, 1])
def test_the_noise_of_a_vocabulary_is_gumbel(position: int) -> None:
    noise = KeyedNoise(5)(position, torch.arange(200_000))
    assert stats.kstest(noise.numpy(), stats.gumbel_r.cdf).pvalue > ALPHA


@pytest.mark.parametrize("distance", [1, 2, 64])
def test_neighbouring_token_ids_are_independent(distance: int) -> None:
    uniform = torch.exp(-torch.exp(-KeyedNoise(5)(3, torch.arange(200_000))))
    bins = (uniform * 16).long()
    observed = torch.bincount(bins[:-distance] * 16 + bins[distance:], minlength=256)
    assert stats.chisquare(observed.numpy()).pvalue > ALPHA


def test_the_tests_can_fail() -> None:
    """Noise that ignores its position, and noise shifted by one token from seed to seed."""
    stuck = draws(lambda n: (7, 0, n // 2))
    pairs = torch.bincount(stuck[:-1] * VOCAB + stuck[1:], minlength=VOCAB**2)
    chances = LOGITS.softmax(0)
    expected = (chances[:, None] * chances[None]).flatten() * (NUM_DRAWS - 1)
    assert stats.chisquare(pairs.numpy(), expected.numpy()).pvalue < ALPHA
