"""The tables of a report, as text: the page and the Markdown file show the same ones."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

from draftless.bench.answers import identity, times
from draftless.bench.averages import is_looping
from draftless.bench.rows import Row, method_name, parse_method
from draftless.bench.statistics import Interval
from draftless.bench.summary import STAGES, CaseSummary, Summary
from draftless.bench.trust import Divergence
from draftless.bench.viewer import SourceShare

MAX_DIVERGENCES = 40
MAX_FAILURES = 40
MAX_LEFT_OUT = 40
MAX_ERROR_LEN = 300
UNKNOWN = "-"


@dataclass(frozen=True, slots=True)
class Table:
    """A table whose first columns name its lines.

    Attributes:
        headings: of the columns.
        lines: one text per column.
        num_names: columns that are names.
        num_left: lines that the table had no room for.
    """

    headings: tuple[str, ...]
    lines: tuple[tuple[str, ...], ...]
    num_names: int = 1
    num_left: int = 0


def number(value: float | None, digits: int = 2) -> str:
    return UNKNOWN if value is None else f"{value:.{digits}f}"


def percent(value: float | None) -> str:
    return UNKNOWN if value is None else f"{value:.1%}"


def milliseconds(seconds: float | None) -> str:
    return UNKNOWN if seconds is None else f"{1000 * seconds:.1f}"


def speed_up(value: Interval | None) -> str:
    return UNKNOWN if value is None else times(value)


def _trust(case: CaseSummary) -> str:
    own = case.trust
    return identity(own) if own.num_compared else UNKNOWN


_COLUMNS: tuple[tuple[str, Callable[[CaseSummary], str]], ...] = (
    ("method", lambda c: c.case.method),
    ("speed-up [95 %]", lambda c: speed_up(c.speed_up)),
    ("over", lambda c: c.plain or UNKNOWN),
    ("tokens per step", lambda c: number(c.acceptance_length)),
    ("tokens/s", lambda c: number(c.tokens_per_second, 1)),
    ("output against plain", _trust),
    ("failed", lambda c: str(c.num_failed)),
    ("left out", lambda c: f"{c.num_left_out + c.num_unpaired} of {c.num_answers}"),
    ("speed-up, question means", lambda c: number(c.question_mean_speed_up)),
    ("decoding over none [95 %]", lambda c: speed_up(c.decode_speed_up)),
    ("first token ms", lambda c: milliseconds(c.first_token_s)),
    ("prefill ms", lambda c: milliseconds(c.prefill_s)),
    ("draft tokens", lambda c: str(c.num_draft_tokens or UNKNOWN)),
    ("accepted per cycle", lambda c: number(c.accepted_per_cycle)),
    ("forward passes", lambda c: str(c.num_forward_passes or UNKNOWN)),
    ("acceptance rate", lambda c: percent(c.acceptance_rate)),
    ("nodes", lambda c: number(c.stages.nodes_per_step, 1) if c.stages else UNKNOWN),
    ("T(1) ms", lambda c: number(c.stages.plain_forward_ms) if c.stages else UNKNOWN),
    ("T(W) ms", lambda c: number(c.stages.forward_ms) if c.stages else UNKNOWN),
    ("T(W)/T(1)", lambda c: number(c.stages.width_cost) if c.stages else UNKNOWN),
    ("overhead", lambda c: percent(c.stages.overhead_share) if c.stages else UNKNOWN),
    ("efficiency", lambda c: number(c.stages.efficiency) if c.stages else UNKNOWN),
    ("loop share", lambda c: percent(c.loop_share)),
    ("tokens", lambda c: str(c.num_tokens)),
)


def cases_table(cases: Sequence[CaseSummary]) -> Table:
    """All numbers of the cases of a group."""
    return Table(
        headings=tuple(heading for heading, _ in _COLUMNS),
        lines=tuple(tuple(text(case) for _, text in _COLUMNS) for case in cases),
    )


def glance_table(columns: Sequence[tuple[str, Sequence[CaseSummary]]]) -> Table:
    """Speed-up of every method in every group of every run: what changes from one to another.

    Args:
        columns: name and cases of each group.
    """
    methods = dict.fromkeys(case.case.method for _, cases in columns for case in cases)
    speeds = [{case.case.method: speed_up(case.speed_up) for case in cases} for _, cases in columns]
    return Table(
        headings=("method", *(name for name, _ in columns)),
        lines=tuple((m, *(own.get(m, UNKNOWN) for own in speeds)) for m in methods),
    )


def category_table(cases: Sequence[CaseSummary]) -> Table:
    """Speed-up and acceptance length of every drafter on every category."""
    drafted = [case for case in cases if not case.is_plain]
    lines = []
    for category in sorted({category for case in drafted for category in case.by_category}):
        for case in drafted:
            own = case.by_category.get(category)
            if own:
                values: tuple[str, ...] = (str(own.num_questions), speed_up(own.speed_up))
                values += (number(own.acceptance_length), number(own.tokens_per_second, 1))
                lines.append((category, case.case.method, *values))
    headings: tuple[str, ...] = (
        "category",
        "method",
        "questions",
        "speed-up [95 %]",
        "tokens per step",
        "tokens/s",
    )
    return Table(headings, tuple(lines), num_names=2)


def sweep_table(cases: Sequence[CaseSummary], option: str) -> Table:
    """Accepted drafts per cycle by the value of an option (`bench run --sweep`), on every category.

    The last column is their mean: of the categories that the rows were chosen by
    (`averages.of_categories`).
    """
    lines = []
    categories = sorted({category for case in cases for category in case.by_category})
    for case in cases:
        name, options = parse_method(case.case.method)
        if option in options:
            value = options.pop(option)
            own = [case.by_category.get(category) for category in categories]
            cells = [number(one.accepted_per_cycle if one else None) for one in own]
            lines.append(
                (method_name(name, options), value, *cells, number(case.accepted_per_cycle))
            )
    return Table(("method", option, *categories, "mean"), tuple(lines), num_names=2)


def stage_table(cases: Sequence[CaseSummary]) -> Table:
    """Where the time of a step goes; draft passes only where there are any."""
    told = [(case.case.method, case.stages.share) for case in cases if case.stages]
    stages = [s for s in STAGES if s != "draft" or any(share["draft"] for _, share in told)]
    return Table(
        headings=("method", *stages),
        lines=tuple((method, *(percent(share[s]) for s in stages)) for method, share in told),
    )


def trust_table(summary: Summary) -> Table:
    """Counts for every case that was compared."""
    lines = []
    for case in summary.cases:
        own = case.trust
        if own.num_compared:
            counts = (own.num_compared, own.num_identical, own.num_near_ties, own.num_defects)
            lines.append((*_names(case), *map(str, counts)))
    headings: tuple[str, ...] = ("model", "sampling", "dtype", "method")
    headings += ("compared", "identical", "near-ties", "defects")
    return Table(headings, tuple(lines), num_names=4)


def divergence_table(divergences: Sequence[Divergence]) -> Table:
    """First differences: defects first, then the widest near-ties."""

    def order(one: Divergence) -> tuple[bool, float]:
        ulps = one.margin.ulps if one.margin else None
        return one.is_near_tie, -(ulps if ulps is not None else 0.0)

    ranked = sorted(divergences, key=order)
    lines = []
    for one in ranked[:MAX_DIVERGENCES]:
        case, margin = one.row.case, one.margin
        values: tuple[str, ...] = (UNKNOWN,) * 4
        if margin:
            ids = (str(i) if i >= 0 else "end" for i in (margin.token_id, margin.plain_token_id))
            values = (str(margin.index), *ids, number(margin.ulps))
        where = (f"{one.row.category} / {one.row.question_id}", f"{one.row.repeat} / {one.turn}")
        names = (f"{case.model}, {case.sampling}, {case.dtype}", case.method)
        lines.append(("near-tie" if one.is_near_tie else "DEFECT", *names, *where, *values))
    headings: tuple[str, ...] = ("kind", "case", "method", "category / question", "repeat / turn")
    headings += ("token index", "token", "plain token", "margin, ULPs")
    return Table(headings, tuple(lines), num_names=3, num_left=max(0, len(ranked) - len(lines)))


def failure_table(failed: Sequence[Row]) -> Table:
    """Rows with an error."""
    lines = [
        (
            f"{row.case.model}, {row.case.sampling}, {row.case.dtype}",
            row.case.method,
            f"{row.category} / {row.question_id}",
            (row.error or "")[:MAX_ERROR_LEN],
        )
        for row in failed[:MAX_FAILURES]
    ]
    headings = ("case", "method", "category / question", "error")
    return Table(headings, tuple(lines), num_names=2, num_left=len(failed) - len(lines))


def left_out_table(rows: Sequence[Row]) -> Table:
    """Answers that are mostly repeats."""
    looping = [row for row in rows if row.error is None and is_looping(row)]
    lines = [
        (
            f"{row.case.model}, {row.case.sampling}, {row.case.dtype}",
            row.case.method,
            f"{row.category} / {row.question_id}",
            percent(row.loop_share),
        )
        for row in looping[:MAX_LEFT_OUT]
    ]
    headings = ("case", "method", "category / question", "share of repeats")
    return Table(headings, tuple(lines), num_names=2, num_left=len(looping) - len(lines))


def source_table(shares: Sequence[SourceShare], sources: Sequence[str]) -> Table:
    """What drafted the tokens of each case."""
    lines = []
    for one in shares:
        case = one.case
        values = [percent(one.shares.get(source, 0.0)) for source in ("", *sources)]
        lines.append((f"{case.model}, {case.sampling}, {case.dtype}", case.method, *values))
    return Table(("case", "method", "the target's own", *sources), tuple(lines), num_names=2)


def _names(case: CaseSummary) -> tuple[str, str, str, str]:
    return case.case.model, case.case.sampling, case.case.dtype, case.case.method
