"""Intervals: 95 % bootstrap over questions, drawn within categories.

What belongs to one question is one row of numbers, so that a draw takes it whole: a question brings
its drafted and its plain run, and all its repetitions. Questions are alike only within a category,
and so every category keeps its number of questions.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 2000
LEVEL = 95.0

Numbers = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Interval:
    """A measured value and its 95 % interval.

    Attributes:
        value: what was measured.
        low, high: the interval; both NaN if there are too few questions to tell.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def is_known(self) -> bool:
        return not math.isnan(self.low)

    def __str__(self) -> str:
        bounds = f"{self.low:.2f}, {self.high:.2f}" if self.is_known else "?"
        return f"{self.value:.2f} [{bounds}]"


def stratified_interval(
    strata: Sequence[Numbers],
    statistic: Callable[[Numbers], Numbers],
    resamples: int = RESAMPLES,
) -> Interval:
    """The mean over strata of a statistic of totals, with its percentile interval.

    A stratum with one question shows no spread of its own. Two or more such strata are drawn from
    as if they were one, which is wide rather than narrow; a single one among larger ones counts as
    exact. One question in all has no interval.

    Args:
        strata: one array per category, `[questions, k]`.
        statistic: of totals `[..., k]`, gives `[...]`.
        resamples: number of draws.

    Raises:
        ValueError: there is no stratum, or one is empty.
    """
    if not strata or not all(map(len, strata)):
        raise ValueError("an interval needs categories, and every category a question")
    generator = np.random.default_rng(0)
    value = float(np.mean([statistic(own.sum(axis=0)) for own in strata]))
    spread = [own for own in strata if len(own) > 1]
    lone = np.array([statistic(own[0]) for own in strata if len(own) == 1])  # [strata]
    if not spread and len(lone) < 2:
        return Interval(value)
    drawn = np.full(resamples, lone.sum())
    if len(lone) > 1:
        drawn = resample_counts(generator, len(lone), resamples) @ lone
    for own in spread:
        drawn += statistic(resample_counts(generator, len(own), resamples) @ own)
    tail = (100.0 - LEVEL) / 2
    low, high = np.percentile(drawn / len(strata), [tail, 100.0 - tail])
    return Interval(value, float(low), float(high))


def resample_counts(generator: np.random.Generator, num: int, num_resamples: int) -> Numbers:
    """How often each of `num` questions is drawn: `[num_resamples, num]`, rows that sum to `num`.

    Totals of any numbers per question are `counts @ numbers`, for all resamples at once. One
    question fewer than there are is drawn and counted up (Rao and Wu's rescaling): plain draws make
    intervals of few questions too narrow.
    """
    if num == 1:
        return np.ones((num_resamples, 1))
    counts = generator.multinomial(num - 1, np.full(num, 1.0 / num), size=num_resamples)
    return np.asarray(counts * (num / (num - 1)), dtype=np.float64)


def rate_ratio(totals: Numbers) -> Numbers:
    """One rate over another, of totals `[..., (amount, seconds, other amount, other seconds)]`."""
    return np.asarray((totals[..., 0] / totals[..., 1]) / (totals[..., 2] / totals[..., 3]))
