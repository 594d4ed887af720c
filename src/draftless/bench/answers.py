"""The result of a run in one sentence per model and sampling, and what must be said beside it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from draftless.bench.statistics import Interval
from draftless.bench.summary import CaseSummary, Group, Summary
from draftless.bench.trust import Trust, is_comparable

MIN_QUESTIONS = 5
"""With fewer in a category, intervals cover less or more than they promise."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What to do with one model, sampling and dtype.

    Attributes:
        group: which.
        text: one sentence.
        method: the drafter to use; None if there is none.
        defects: one sentence for every case whose output is wrong.
        notes: what restricts the answer, one sentence each.
    """

    group: Group
    text: str
    method: str | None
    defects: tuple[str, ...]
    notes: tuple[str, ...]


def answers(summary: Summary) -> list[Answer]:
    """One answer per group, in the order of the run."""
    return [_answer(group, cases) for group, cases in summary.groups().items()]


def times(interval: Interval) -> str:
    """A speed-up as text: `2.40x [2.20, 2.60]`."""
    bounds = f"{interval.low:.2f}, {interval.high:.2f}" if interval.is_known else "interval unknown"
    return f"{interval.value:.2f}x [{bounds}]"


def identity(trust: Trust) -> str:
    """How far outputs are those of plain decoding."""
    if not trust.num_compared:
        return "identity not checked"
    parts = [f"identical in {trust.num_identical} of {trust.num_compared}"]
    if trust.num_near_ties:
        parts.append(f"near-ties in {trust.num_near_ties}")
    if trust.num_defects:
        parts.append(f"defects in {trust.num_defects}")
    return ", ".join(parts)


def _answer(group: Group, cases: Sequence[CaseSummary]) -> Answer:
    drafted = [(case, case.speed_up) for case in cases if case.speed_up and not case.is_plain]
    # A mean over the categories that did not fail is no match for a mean over all.
    ranked = sorted(drafted, key=lambda pair: (len(_missing(pair[0], cases)), -pair[1].value))
    best = next((c for c, s in ranked if s.low > 1 and not c.trust.num_defects), None)
    return Answer(
        group=group,
        text=_sentence(cases, ranked, best),
        method=best.case.method if best else None,
        defects=tuple(_defects(cases)),
        notes=tuple(_notes(cases, best)),
    )


def _sentence(
    cases: Sequence[CaseSummary],
    ranked: Sequence[tuple[CaseSummary, Interval]],
    best: CaseSummary | None,
) -> str:
    if best and best.speed_up:
        return (
            f"Use {best.case.method}: {times(best.speed_up)} the fastest plain loop, "
            f"{identity(best.trust)}."
        )
    if not any(case.plain for case in cases):
        return "No answer: no plain loop (none, transformers) has answers to compare with."
    if not ranked:
        return "No answer: no drafter has answers to compare."
    first, speed_up = ranked[0]
    name = first.case.method
    if not speed_up.is_known:
        return f"Too few questions to tell: {name} has {times(speed_up)}."
    if any(s.low > 1 for _, s in ranked):  # those that are faster have defects
        return f"Do not draft: {name} is faster, {times(speed_up)}, but its output is wrong."
    return f"Do not draft: nothing is faster than plain decoding; the best is {name}, {times(speed_up)}."


def _defects(cases: Sequence[CaseSummary]) -> list[str]:
    return [
        f"{case.case.method} departs from plain decoding by more than a near-tie in "
        f"{case.trust.num_defects} of {case.trust.num_compared} outputs."
        for case in cases
        if case.trust.num_defects
    ]


def _missing(case: CaseSummary, cases: Sequence[CaseSummary]) -> list[str]:
    """Categories on which other cases have answers that count, and this one has not."""
    return sorted({name for other in cases for name in other.by_category} - set(case.by_category))


def _rivals(cases: Sequence[CaseSummary], best: CaseSummary, low: float) -> list[str]:
    return [
        f"{case.case.method} {times(case.speed_up)}"
        for case in cases
        if case is not best and not case.is_plain and not _missing(case, cases)
        if case.speed_up and case.speed_up.high >= low
    ]


def _notes(cases: Sequence[CaseSummary], best: CaseSummary | None) -> list[str]:
    notes = []
    if best and best.speed_up:
        name = best.case.method
        if rivals := _rivals(cases, best, best.speed_up.low):
            notes.append(f"The intervals do not tell it from {', '.join(rivals)}.")
        slower = [
            f"{category} ({own.speed_up.value:.2f}x)"
            for category, own in best.by_category.items()
            if own.speed_up and own.speed_up.value < 1
        ]
        if slower:
            notes.append(f"{name} is slower than the plain loop on {', '.join(slower)}.")
        if not best.trust.num_compared:
            notes.append(_why_not_compared(best))
        if best.num_left_out:
            notes.append(
                f"Left out of its speed-up, because they or the plain ones are mostly repeats: "
                f"{best.num_left_out} of {best.num_answers} answers."
            )
        fewest = min(own.num_questions for own in best.by_category.values())
        if fewest < MIN_QUESTIONS:
            notes.append(
                f"A category has {fewest} {'question' if fewest == 1 else 'questions'} only: the "
                "interval is rough."
            )
    notes += [
        f"{case.case.method} has no answers that count on {', '.join(missing)}."
        for case in cases
        if case.num_answers and (missing := _missing(case, cases))
    ]
    notes += [
        f"{case.case.method} failed in {case.num_failed} of "
        f"{case.num_failed + case.num_answers} answers."
        for case in cases
        if case.num_failed
    ]
    return notes


def _why_not_compared(case: CaseSummary) -> str:
    if is_comparable(case.case):
        return "Our plain loop (none) has no answers to compare with."
    return f"{case.case.method} samples with draws of its own, so its outputs are not compared."
