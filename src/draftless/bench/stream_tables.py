"""Tables of streams of requests, of routing, and of drafting with passes through part of the target."""

from __future__ import annotations

from collections.abc import Sequence

from draftless.bench.mixes import StreamSummary
from draftless.bench.routing import Routing
from draftless.bench.statistics import Interval
from draftless.bench.summary import CaseSummary
from draftless.bench.tables import UNKNOWN, Table, number, percent, speed_up
from draftless.drafters.anchor_store import GENERAL


def stream_table(streams: Sequence[StreamSummary]) -> Table:
    """Tokens per second and speed-up of every case at every mix ratio, and the fall between them."""
    mixes = list(streams[0].by_mix) if streams else []
    headings = [f"mix {mix:g}: {what}" for mix in mixes for what in ("tokens/s", "speed-up [95 %]")]
    fall = f"fall from mix {mixes[0]:g} to {mixes[-1]:g} [95 %]" if len(mixes) > 1 else None
    lines = []
    for one in streams:
        cells = [
            cell
            for own in one.by_mix.values()
            for cell in (number(own.tokens_per_second, 1), speed_up(own.speed_up))
        ]
        lines.append((one.case.method, *cells, *([share(one.fall)] if fall else [])))
    return Table(("method", *headings, *([fall] if fall else [])), tuple(lines))


def short_stream_table(streams: Sequence[StreamSummary]) -> Table:
    """The speed-ups alone, for a terminal."""
    mixes = list(streams[0].by_mix) if streams else []
    lines = []
    for one in streams:
        speeds = [own.speed_up.value if own.speed_up else None for own in one.by_mix.values()]
        lines.append((one.case.method, *map(number, speeds), share(one.fall)))
    headings = ("speed-up at mix ratio", *(f"{mix:g}" for mix in mixes), "fall [95 %]")
    return Table(headings, tuple(lines))


def share(value: Interval | None) -> str:
    """A share with its interval: `1.2 % [-0.3, 2.8]`."""
    if value is None:
        return UNKNOWN
    bounds = f"{value.low:.1%}, {value.high:.1%}" if value.is_known else "interval unknown"
    return f"{value.value:.1%} [{bounds}]".replace("%,", ",").replace("%]", "]")


def skip_table(cases: Sequence[CaseSummary]) -> Table:
    """Every case, with what decides whether drafting by part of the target pays."""
    lines = []
    for case in cases:
        own = case.stages if case.stages and case.stages.draft_pass_ms is not None else None
        lines.append(
            (
                case.case.method,
                number(case.acceptance_length),
                percent(case.acceptance_rate),
                number(case.drafts_per_step or None),
                number(own.draft_passes_per_step if own else None),
                number(own.draft_cost_share if own else None, 3),
                number(case.tokens_per_second, 1),
                speed_up(case.speed_up),
            )
        )
    headings: tuple[str, ...] = ("method", "tokens per step", "acceptance rate")
    headings += ("drafts per step", "draft passes per step", "f", "tokens/s", "speed-up [95 %]")
    return Table(headings, tuple(lines))


def routing_table(routings: Sequence[Routing]) -> Table:
    """Requests by domain and route, and the share that went where it belongs."""
    labels = sorted({label for one in routings for label in one.labels})
    lines = []
    for one in routings:
        name = (f"{one.case.model}, {one.case.sampling}, {one.case.dtype}", one.case.method)
        for domain, counts in one.counts.items():
            cells = [str(counts[label]) for label in (*labels, GENERAL, None)]
            lines.append((*name, domain, *cells, _right(one, [domain])))
        own = [domain for domain in one.counts if domain in one.labels]
        others = [domain for domain in one.counts if domain not in one.labels]
        empty = [""] * (len(labels) + 2)
        lines += [(*name, "all with a label", *empty, _right(one, own))] if own else []
        lines += [(*name, "all without one", *empty, _right(one, others))] if others else []
    headings = ("case", "method", "domain", *labels, GENERAL, "unknown", "right")
    return Table(headings, tuple(lines), num_names=3)


def _right(routing: Routing, domains: Sequence[str]) -> str:
    num_right, num_known = routing.right(domains)
    return f"{num_right} of {num_known} ({num_right / num_known:.1%})" if num_known else UNKNOWN
