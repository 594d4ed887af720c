"""How much better a found set is than random ones of its size: the question the papers leave open.

The published sets of KNN-SSD overlap about as much as independent random ones would, so a search has to
show that it found more than its own noise. All sets are compared on held-out texts.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from draftless.noise import hash_ids
from draftless.skip_set import SkipSet

_RESAMPLES = 4000


@dataclass(frozen=True)
class Margin:
    """`value / other value - 1` with its 95 % interval."""

    margin: float
    low: float
    high: float

    @property
    def is_clear(self) -> bool:
        """Whether the interval lies above 0."""
        return self.low > 0


@dataclass(frozen=True)
class Comparison:
    """A found set against random ones of equal size, on held-out texts.

    Attributes:
        value: tokens per second of the found set.
        random_values: of the random sets.
        over_mean: against their mean; the interval covers the choice of texts and of random sets.
        over_best: against the best of them, which was picked on the same texts and so is flattered;
            the interval covers the choice of texts.
        num_texts: held-out texts, which are what is resampled.
    """

    value: float
    random_values: tuple[float, ...]
    over_mean: Margin
    over_best: Margin
    num_texts: int


def random_sets(
    eligible: Sequence[tuple[str, int]], num_skipped: int, count: int, seed: int
) -> list[SkipSet]:
    """Sets that skip `num_skipped` of the eligible sub-layers, each equally likely.

    They are different from each other as long as there are so many.
    """
    generator = np.random.default_rng(hash_ids(seed, num_skipped))
    sets: dict[SkipSet, None] = {}
    for _ in range(20 * count):
        chosen = generator.choice(len(eligible), num_skipped, replace=False)
        sets[as_set([eligible[index] for index in chosen])] = None
        if len(sets) == count:
            break
    return list(sets)


def as_set(sublayers: Sequence[tuple[str, int]]) -> SkipSet:
    """The set of `("attention", 3)`, `("mlp", 7)`, ..."""
    return SkipSet(
        tuple(index for kind, index in sublayers if kind == "attention"),
        tuple(index for kind, index in sublayers if kind == "mlp"),
    )


def compare(
    tokens: np.ndarray,  # [1 + S, T] float: the found set first, then the random ones
    seconds: np.ndarray,  # [1 + S, T] float
    seed: int,
) -> Comparison:
    """Bootstrap over texts (all windows of a text together), and for the mean over sets, too.

    Raises:
        ValueError: there is no random set.
    """
    num_sets, num_texts = tokens.shape[0] - 1, tokens.shape[1]
    if num_sets < 1:
        raise ValueError("nothing to compare with")
    values = tokens.sum(1) / seconds.sum(1)
    best = 1 + int(values[1:].argmax())
    generator = np.random.default_rng(hash_ids(seed, num_sets, num_texts))
    weights = generator.multinomial(num_texts, np.full(num_texts, 1 / num_texts), _RESAMPLES)
    resampled = (weights @ tokens.T) / (weights @ seconds.T)  # [R, 1 + S]
    picked = generator.integers(1, num_sets + 1, (_RESAMPLES, num_sets))
    means = np.take_along_axis(resampled, picked, 1).mean(1)
    return Comparison(
        float(values[0]),
        tuple(map(float, values[1:])),
        _margin(values[0], values[1:].mean(), resampled[:, 0] / means),
        _margin(values[0], values[best], resampled[:, 0] / resampled[:, best]),
        num_texts,
    )


def _margin(value: float, other: float, ratios: np.ndarray) -> Margin:
    low, high = np.percentile(ratios, [2.5, 97.5])
    return Margin(float(value / other) - 1, float(low) - 1, float(high) - 1)
