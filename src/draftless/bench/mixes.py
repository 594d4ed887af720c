"""What streams of requests add up to: speed at every mix ratio, and how much of it switching costs.

A fall is one of the speed-up, not of tokens per second: the plain loop runs beside every request, and
so other load on the machine, which changes from one stream to the next, cancels out.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from draftless.bench import averages
from draftless.bench.averages import Pair
from draftless.bench.rows import Case, QuestionKey, Row
from draftless.bench.statistics import Interval, Numbers, rate_ratio, stratified_interval
from draftless.bench.summary import CaseSummary


@dataclass(frozen=True, slots=True)
class MixSummary:
    """One case on one stream.

    Attributes:
        pairs: every request that counts, with the plain loop's answer beside it.
        tokens_per_second: of the whole calls.
        speed_up: over the plain loop that is the fastest over all streams of the run.
    """

    pairs: tuple[Pair, ...]
    tokens_per_second: float | None
    speed_up: Interval | None


@dataclass(frozen=True, slots=True)
class StreamSummary:
    """One case on all streams of a run.

    Attributes:
        case: what was measured.
        by_mix: in ascending order of the mix ratio.
        fall: share of the speed-up at the lowest ratio that is lost at the highest one, the mean over
            categories on the questions that count in both; None for one ratio, and for the plain
            loop itself.
    """

    case: Case
    by_mix: dict[float, MixSummary]
    fall: Interval | None


def mixes_of(rows: Iterable[Row]) -> list[float]:
    """The mix ratios of the streams, ascending; none if the rows are of a suite."""
    return sorted({row.mix for row in rows if row.mix is not None})


def stream_summaries(rows: Sequence[Row], cases: Sequence[CaseSummary]) -> list[StreamSummary]:
    """Every case with a plain loop on all streams; none if the rows are of a suite.

    Args:
        rows: of the run.
        cases: of one group (`summary.summarise`).
    """
    mixes = mixes_of(rows)
    answers: dict[Case, dict[QuestionKey, Row]] = {}
    for row in rows:
        if row.error is None and not averages.is_looping(row):
            answers.setdefault(row.case, {})[row.question] = row
    by_method = {one.case.method: answers.get(one.case, {}) for one in cases}
    return [
        _stream(one, mixes, by_method[one.case.method], by_method[one.plain])
        for one in cases
        if mixes and one.plain
    ]


def _stream(
    case: CaseSummary,
    mixes: Sequence[float],
    own: Mapping[QuestionKey, Row],
    plain: Mapping[QuestionKey, Row],
) -> StreamSummary:
    by_mix = {}
    for mix in mixes:
        pairs = [(row, plain[k]) for k, row in own.items() if row.mix == mix and k in plain]
        by_mix[mix] = MixSummary(
            pairs=tuple(pairs),
            tokens_per_second=averages.tokens_per_second(row for row, _ in pairs),
            speed_up=averages.speed_up(pairs),
        )
    is_measured = len(mixes) > 1 and case.case.method != case.plain
    fall = _fall(by_mix[mixes[0]].pairs, by_mix[mixes[-1]].pairs) if is_measured else None
    return StreamSummary(case.case, by_mix, fall)


def _fall(low: Sequence[Pair], high: Sequence[Pair]) -> Interval | None:
    before, after = averages.question_totals(low), averages.question_totals(high)
    strata = []
    for category, questions in before.items():
        shared = [
            np.concatenate([numbers, after[category][name]])
            for name, numbers in questions.items()
            if name in after.get(category, {})
        ]
        strata += [np.array(shared)] if shared else []
    return stratified_interval(strata, _lost_share) if strata else None


def _lost_share(totals: Numbers) -> Numbers:
    return np.asarray(1.0 - rate_ratio(totals[..., 4:]) / rate_ratio(totals[..., :4]))
