"""Intervals: the value by hand, what is drawn, how often the truth lies inside."""

from __future__ import annotations

import numpy as np
import pytest

from draftless.bench.statistics import (
    Interval,
    Numbers,
    rate_ratio,
    resample_counts,
    stratified_interval,
)


def first_column(totals: Numbers) -> Numbers:
    return np.asarray(totals[..., 0])


def test_the_value_is_a_mean_over_strata_of_ratios_of_totals() -> None:
    sql = np.array([[100, 0.5, 100, 2.0], [100, 0.25, 100, 2.0]])  # 200/0.75 over 200/4
    math = np.array([[50, 1.0, 100, 4.0]])  # 50 over 25
    interval = stratified_interval([sql, math], rate_ratio)
    assert interval.value == pytest.approx(((200 / 0.75) / 50 + 2.0) / 2)


def test_the_interval_of_two_questions_is_that_of_all_their_draws() -> None:
    """Totals of two draws of 0 and 1: 0 or 2 with probability 1/4 each."""
    interval = stratified_interval([np.array([[0.0], [1.0]])], first_column)
    assert interval == Interval(1.0, 0.0, 2.0)


def test_categories_keep_their_number_of_questions() -> None:
    """Every draw has one question of ten in the small category: no spread comes from mixing."""
    low, high = np.array([[0.0], [0.0]]), np.array([[1.0]] * 10)
    assert stratified_interval([low, high], first_column) == Interval(5.0, 5.0, 5.0)


def test_pairs_stay_together() -> None:
    """Questions differ a hundredfold, the ratio in none: drawn apart, the interval would be wide."""
    seconds = np.array([0.1, 1.0, 10.0] * 5)
    tokens = np.full(15, 100.0)
    paired = np.stack([tokens, seconds, tokens, 2 * seconds], axis=1)
    interval = stratified_interval([paired], rate_ratio)
    assert (interval.low, interval.high) == (pytest.approx(2.0), pytest.approx(2.0))
    apart = np.stack([tokens, seconds, tokens, 2 * np.roll(seconds, 1)], axis=1)
    unpaired = stratified_interval([apart], rate_ratio)
    assert unpaired.high - unpaired.low > 1


def test_lone_questions_are_drawn_as_one_stratum() -> None:
    ones = [np.array([[value]]) for value in (0.0, 1.0)]
    assert stratified_interval(ones, first_column) == Interval(0.5, 0.0, 1.0)


def test_one_question_has_no_interval() -> None:
    interval = stratified_interval([np.array([[3.0]])], first_column)
    assert interval.value == 3.0
    assert not interval.is_known
    assert not interval.low > 1  # nothing follows from it
    assert str(interval) == "3.00 [?]"


def test_one_lone_question_counts_as_exact() -> None:
    spread, lone = np.array([[0.0], [1.0]]), np.array([[4.0]])
    assert stratified_interval([spread, lone], first_column) == Interval(2.5, 2.0, 3.0)


@pytest.mark.parametrize("strata", [[], [np.zeros((0, 4))]])
def test_nothing_has_no_value(strata: list[Numbers]) -> None:
    with pytest.raises(ValueError, match="every category a question"):
        stratified_interval(strata, rate_ratio)


def test_the_same_numbers_give_the_same_interval() -> None:
    numbers = np.random.default_rng(3).uniform(1, 2, size=(20, 4))
    first, second = (stratified_interval([numbers, 2 * numbers], rate_ratio) for _ in range(2))
    assert first == second
    assert str(first) == f"{first.value:.2f} [{first.low:.2f}, {first.high:.2f}]"


@pytest.mark.parametrize("num", [1, 2, 7])
def test_counts_sum_to_the_number_of_questions(num: int) -> None:
    counts = resample_counts(np.random.default_rng(0), num, 50)
    assert counts.shape == (50, num)
    assert counts.sum(axis=1) == pytest.approx(num)


@pytest.mark.parametrize(("num_categories", "num", "least"), [(3, 25, 0.91), (6, 3, 0.875)])
def test_the_truth_lies_inside_as_often_as_promised(
    num_categories: int, num: int, least: float
) -> None:
    """400 experiments whose true ratio is 2.

    Percentile intervals of few questions cover less than 95 %: here 93 % with 25 questions in each
    of 3 categories, 90 % with 3 in each of 6; draws without rescaling cover 85 % of the latter. The
    experiments are fixed, so there is no false alarm.
    """
    generator = np.random.default_rng(7)
    inside = 0
    for _ in range(400):
        strata = []
        for _ in range(num_categories):
            plain_s = generator.lognormal(0.0, 0.8, size=num)
            own_s = plain_s * generator.uniform(0.3, 0.7, size=num)
            tokens = np.full(num, 100.0)
            strata.append(np.stack([tokens, own_s, tokens, plain_s], axis=1))
        interval = stratified_interval(strata, rate_ratio, resamples=400)
        inside += interval.low <= 2.0 <= interval.high
    assert least <= inside / 400 <= 0.985
