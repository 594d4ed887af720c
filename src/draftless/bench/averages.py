"""Averages of rows: means over categories of token-weighted values, and speed-ups of pairs."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import replace
from typing import TypeVar

import numpy as np

from draftless.bench.questions import Question
from draftless.bench.rows import Row, Turn
from draftless.bench.statistics import Interval, Numbers, rate_ratio, stratified_interval
from draftless.errors import ConfigError
from draftless.loops import LOOP_LIMIT

# Spec-Bench reports the eight categories of MT-bench as one.
MT_BENCH = {
    "writing",
    "roleplay",
    "reasoning",
    "math",
    "coding",
    "extraction",
    "stem",
    "humanities",
}
SPEC_BENCH = MT_BENCH | {"translation", "summarization", "qa", "math_reasoning", "rag"}

Pair = tuple[Row, Row]
OfCategory = TypeVar("OfCategory", Row, Question)


def with_merged_categories(rows: Sequence[Row]) -> list[Row]:
    """The rows; those of MT-bench in one category if all of Spec-Bench is there."""
    if not {row.category for row in rows} >= SPEC_BENCH:
        return list(rows)
    return [replace(r, category="mt_bench") if r.category in MT_BENCH else r for r in rows]


def of_categories(rows: Sequence[OfCategory], categories: Sequence[str]) -> list[OfCategory]:
    """The rows, or questions, of these categories; of all if none is named.

    Raises:
        ConfigError: there is none of such a category.
    """
    known = {row.category for row in rows}
    if unknown := [name for name in categories if name not in known]:
        raise ConfigError(
            f"there is nothing of {', '.join(unknown)}; the categories are {', '.join(sorted(known))}"
        )
    return [row for row in rows if not categories or row.category in categories]


def is_looping(row: Row) -> bool:
    """Whether an answer is mostly repeats."""
    return row.loop_share > LOOP_LIMIT


def by_category(rows: Iterable[Row]) -> dict[str, list[Row]]:
    """Rows by category, in alphabetical order."""
    found: dict[str, list[Row]] = {}
    for row in sorted(rows, key=lambda row: row.category):
        found.setdefault(row.category, []).append(row)
    return found


def category_mean(
    rows: Iterable[Row], above: Callable[[Row], float], below: Callable[[Row], float]
) -> float | None:
    """Mean over categories of one total over another; categories with nothing below are skipped."""
    ratios = []
    for own in by_category(rows).values():
        if bottom := sum(below(row) for row in own):
            ratios.append(sum(above(row) for row in own) / bottom)
    return float(np.mean(ratios)) if ratios else None


def acceptance_length(rows: Iterable[Row]) -> float | None:
    """Committed tokens per step."""
    return category_mean(rows, lambda row: row.num_tokens, lambda row: row.num_steps)


def tokens_per_second(rows: Iterable[Row]) -> float | None:
    """Of the whole calls."""
    return category_mean(rows, lambda row: row.num_tokens, lambda row: row.seconds)


def acceptance_rate(rows: Iterable[Row]) -> float | None:
    """Accepted over draft tokens."""
    return category_mean(rows, lambda row: sum(accepted_drafts(row)), num_drafted)


def drafts_per_step(rows: Iterable[Row]) -> float | None:
    """Draft tokens per step."""
    return category_mean(rows, num_drafted, lambda row: row.num_steps)


def accepted_drafts(row: Row) -> list[int]:
    """Accepted drafts of every step: all that it committed but the target's own token."""
    return [max(0, tokens - 1) for turn in row.turns for tokens in turn.step_tokens]


def accepted_per_cycle(rows: Iterable[Row]) -> float | None:
    """Accepted drafts per verification that had any; None if nothing was drafted.

    A cycle is one pass, or two for a drafter that drafts and verifies in turns (SDSAT's `steps=2`).
    """
    return category_mean(rows, lambda row: sum(accepted_drafts(row)), num_cycles)


def num_cycles(row: Row) -> int:
    """Steps that had drafts to verify."""
    return sum(drafted > 0 for turn in row.turns for drafted in turn.step_drafted)


def num_nodes(row: Row) -> int:
    """Tokens fed to the passes of all steps."""
    return sum(
        sum(turn.step_nodes) or turn.num_steps + sum(turn.step_drafted) for turn in row.turns
    )


def speed_up(
    pairs: Sequence[Pair], seconds: Callable[[Row], float] = lambda row: row.seconds
) -> Interval | None:
    """Tokens per second of the first over the second of each pair, in the mean over categories.

    The repetitions of a question are summed up, and so are its places in several streams: they are
    one question, drawn as a whole.
    """
    totals = question_totals(pairs, seconds)
    arrays = [np.array(list(questions.values())) for questions in totals.values()]
    return stratified_interval(arrays, rate_ratio) if arrays else None


def question_totals(
    pairs: Sequence[Pair], seconds: Callable[[Row], float] = lambda row: row.seconds
) -> dict[str, dict[str, Numbers]]:
    """By category and question: tokens and seconds of the first of each pair, and of the second."""
    totals: dict[str, dict[str, Numbers]] = {}
    for own, plain in sorted(pairs, key=lambda pair: pair[0].category):
        questions = totals.setdefault(own.category, {})
        numbers = np.array([own.num_tokens, seconds(own), plain.num_tokens, seconds(plain)])
        questions[own.question_id] = questions.get(own.question_id, np.zeros(4)) + numbers
    return totals


def turns_of(rows: Iterable[Row]) -> Iterator[Turn]:
    return (turn for row in rows for turn in row.turns)


def num_drafted(row: Row) -> int:
    return sum(sum(turn.step_drafted) for turn in row.turns)


def mean_per_turn(rows: Sequence[Row], seconds: Callable[[Turn], float | None]) -> float | None:
    """Mean over categories of the mean over calls; None if a call does not tell."""
    if any(seconds(turn) is None for turn in turns_of(rows)):
        return None
    return category_mean(
        rows,
        lambda row: sum(seconds(turn) or 0.0 for turn in row.turns),
        lambda row: len(row.turns),
    )


def decode_speed_up(pairs: Sequence[Pair]) -> Interval | None:
    """Only where both sides tell what their prefill took."""
    if any(turn.prefill_s is None for pair in pairs for turn in turns_of(pair)):
        return None
    return speed_up(pairs, lambda row: row.decode_s)


def question_mean_speed_up(pairs: Sequence[Pair]) -> float | None:
    """Spec-Bench's way: the ratio of two means over questions of tokens per second."""
    if not pairs:
        return None
    own, plain = (
        np.mean([row.num_tokens / row.seconds for row in rows]) for rows in zip(*pairs, strict=True)
    )
    return float(own / plain)


def per_position_acceptance(rows: Sequence[Row], depth: int) -> tuple[float, ...]:
    """Means over categories: with the 1 of the target's own token they sum to the acceptance
    length."""
    shares = []
    for position in range(1, depth + 1):

        def reached(row: Row, position: int = position) -> float:
            return sum(count >= position for count in accepted_drafts(row))

        shares.append(category_mean(rows, reached, lambda row: row.num_steps) or 0.0)
    return tuple(shares)
