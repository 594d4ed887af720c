"""The charts of a report.

A method keeps its colour and marker on the whole page. Names of methods stand in the page's legend
or above their bars: however long they are, they collide with nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from draftless.bench.curves import Curve
from draftless.bench.rows import PLAIN_METHODS
from draftless.bench.summary import STAGES, CaseSummary
from draftless.bench.svg import GRID, GROUND, INK, inline, series_color, shortened, stage_color

if TYPE_CHECKING:
    from matplotlib.axes import Axes

NUM_COLORS = 6
MARKERS = "os^Dv<P*X"
MAX_NAME = 40
MAX_CATEGORY = 16
MAX_POSITIONS = 12
MAX_SERIES = 6


@dataclass(frozen=True, slots=True)
class Chart:
    """One drawing.

    Attributes:
        title: its heading.
        note: how to read it.
        svg: the drawing, safe to put into a page.
        legend: mark and name of what only this chart shows.
    """

    title: str
    note: str
    svg: str
    legend: tuple[tuple[str, str], ...] = ()


Styles = Mapping[str, int]
"""Number of each method on the page; negative for plain loops, which have grey colours."""


def make_styles(methods: Iterable[str]) -> dict[str, int]:
    """Numbers in the order of the methods."""
    names = list(dict.fromkeys(methods))
    drafters = [name for name in names if name not in PLAIN_METHODS]
    return {
        name: -1 - PLAIN_METHODS.index(name) if name in PLAIN_METHODS else drafters.index(name)
        for name in names
    }


def swatch(style: int) -> str:
    """A legend's mark: the method's colour and marker."""

    def draw(axes: Axes) -> None:
        axes.plot([0, 1, 2], [0, 0, 0], markevery=[1], **line(style))
        axes.set_axis_off()

    return inline(draw, 0.22, "", width=0.5)


def overview(cases: Sequence[CaseSummary], styles: Styles) -> Chart:
    """Speed-up of every method, with its interval."""
    ranked = sorted(
        (c for c in cases if c.speed_up), key=lambda c: c.speed_up.value if c.speed_up else 0
    )

    def draw(axes: Axes) -> None:
        for place, case in enumerate(ranked):
            _interval(axes, case, place, styles[case.case.method], case.speed_up)
            _name_above(axes, place, case.case.method)
        _speed_up_axis(axes)
        axes.set_yticks([])
        axes.set_ylim(-0.6, len(ranked) - 0.1)

    label = "; ".join(
        f"{c.case.method} {c.speed_up.value:.2f}x" for c in reversed(ranked) if c.speed_up
    )
    return Chart(
        "Speed-up",
        "Tokens per second of the whole call over the fastest plain loop; bars are 95 % intervals. "
        "Right of 1 is faster.",
        inline(draw, 0.6 + 0.42 * len(ranked), f"Speed-up by method: {label}"),
    )


def speed_up_by_category(cases: Sequence[CaseSummary], styles: Styles) -> Chart:
    """One block of dots per category."""
    chosen = fastest(cases)

    def draw(axes: Axes) -> None:
        for place, (_, own) in enumerate(_blocks(axes, chosen)):
            for offset, case in own:
                value = case.by_category[_categories(chosen)[place]].speed_up
                _interval(axes, case, place + offset, styles[case.case.method], value)
        _speed_up_axis(axes)

    return Chart(
        "Speed-up by category",
        "As above, every category by itself.",
        inline(
            draw, _blocks_height(chosen), "Speed-up by category; the table below has the numbers"
        ),
    )


def acceptance_by_category(cases: Sequence[CaseSummary], styles: Styles) -> Chart:
    chosen = fastest(cases)

    def draw(axes: Axes) -> None:
        for place, (category, own) in enumerate(_blocks(axes, chosen)):
            for offset, case in own:
                value = case.by_category[category].acceptance_length
                axes.plot(value, place + offset, **line(styles[case.case.method]))
        axes.axvline(1.0, color=INK, linewidth=1.0)
        axes.set_xlabel("committed tokens per step")

    return Chart(
        "Acceptance length",
        "Committed tokens per step, the target's own token included: 1 means that drafting brought "
        "nothing. It is not a speed.",
        inline(
            draw,
            _blocks_height(chosen),
            "Acceptance length by category; the table below has the numbers",
        ),
    )


def per_position(cases: Sequence[CaseSummary], styles: Styles) -> Chart:
    """Share of steps by least number of accepted drafts."""

    def draw(axes: Axes) -> None:
        for case in fastest(cases):
            shares = case.per_position_acceptance[:MAX_POSITIONS]
            axes.plot(range(1, len(shares) + 1), shares, **line(styles[case.case.method]))
        axes.set_ylim(0, 1)
        axes.set_xlim(left=0.8)
        axes.set_xlabel("drafts accepted, at least")
        axes.set_ylabel("share of steps")
        last = max((len(c.per_position_acceptance) for c in cases), default=1)
        axes.set_xticks(range(1, min(last, MAX_POSITIONS) + 1))

    return Chart(
        "Per-position acceptance",
        "Share of all steps that accepted at least so many drafts (unconditional, as vLLM counts).",
        inline(draw, 2.6, "Per-position acceptance: falling curves, one per method"),
    )


def histogram(cases: Sequence[CaseSummary], styles: Styles) -> Chart:
    chosen = [case for case in fastest(cases) if case.acceptance_histogram]
    last = min(8, max((len(case.acceptance_histogram) for case in chosen), default=1) - 1)

    def draw(axes: Axes) -> None:
        for place, case in enumerate(chosen):
            counts = case.acceptance_histogram
            bins = [*counts[:last], sum(counts[last:])]
            bins += [0] * (last + 1 - len(bins))
            width = 0.84 / len(chosen)
            axes.bar(
                [i - 0.42 + (place + 0.5) * width for i in range(len(bins))],
                [count / sum(counts) for count in bins],
                width=width,
                color=_color(styles[case.case.method]),
            )
        axes.set_xticks(
            range(last + 1), [*map(str, range(last)), f"{last}+" if last == 8 else str(last)]
        )
        axes.set_xlabel("drafts accepted in a step")
        axes.set_ylabel("share of steps")
        axes.grid(visible=False, axis="x")

    return Chart(
        "Acceptance histogram",
        "How many drafts a step accepted.",
        inline(draw, 2.6, "Acceptance histogram: bars by number of accepted drafts and method"),
    )


def stages(cases: Sequence[CaseSummary]) -> Chart | None:
    """Milliseconds of a step by stage (our engine only)."""
    chosen = [(case, case.stages) for case in reversed(cases) if case.stages]
    if not chosen:
        return None

    def draw(axes: Axes) -> None:
        longest = max(own.forward_ms / own.share["forward"] for _, own in chosen)
        for place, (case, own) in enumerate(chosen):
            begin, total = 0.0, own.forward_ms / own.share["forward"]
            for number, stage in enumerate(STAGES):
                width = own.share[stage] * total
                axes.barh(place, width, left=begin, height=0.4, color=stage_color(number))
                begin += width
            _name_above(axes, place, case.case.method, f" ({own.overhead_share:.1%})", 12.0)
        axes.set_xlim(0, longest * 1.02)
        axes.set_ylim(-0.5, len(chosen) - 0.2)
        axes.set_yticks([])
        axes.set_xlabel("milliseconds per step")

    return Chart(
        "Time per stage",
        "One step of our engine; in brackets the share of everything but passes of the model.",
        inline(draw, 0.6 + 0.54 * len(chosen), "Milliseconds per step by stage and method"),
    )


def speed_over_position(curves: Mapping[str, Curve], styles: Styles) -> Chart | None:
    return _lines(
        curves,
        styles,
        Chart(
            "Speed over position in the text",
            "Tokens per second at each place of the answer, prefill left out.",
            "Tokens per second over the token index, one curve per method",
        ),
        ("token index", "tokens/s"),
    )


def cost_of_width(curves: Mapping[str, Curve], styles: Styles) -> Chart | None:
    chart = Chart(
        "Cost of width",
        "Median time of a whole step by the tokens fed to it: root and drafts (our engine). T(W) and "
        "T(1) of the forward pass alone stand in the table of all cases.",
        "Milliseconds per step over the width, one curve per method",
    )
    return _lines(curves, styles, chart, ("tokens fed (W)", "milliseconds"), is_log2=True)


def _lines(
    curves: Mapping[str, Curve],
    styles: Styles,
    chart: Chart,
    axis_labels: tuple[str, str],
    *,
    is_log2: bool = False,
) -> Chart | None:
    """A chart of one line per method, from 0 up; `chart.svg` is its label."""
    if not any(curves.values()):
        return None

    def draw(axes: Axes) -> None:
        for method, curve in curves.items():
            axes.plot([x for x, _ in curve], [y for _, y in curve], **line(styles[method]))
        axes.set_ylim(0, 1.07 * max(y for curve in curves.values() for _, y in curve))
        axes.set_xlabel(axis_labels[0])
        axes.set_ylabel(axis_labels[1])
        if is_log2:
            widest = max(x for curve in curves.values() for x, _ in curve)
            ticks = [2**i for i in range(12) if 2**i <= max(2, 1.5 * widest)]
            axes.set_xscale("log", base=2)
            axes.set_xticks(ticks, list(map(str, ticks)))
            axes.minorticks_off()

    return Chart(chart.title, chart.note, inline(draw, 2.6, chart.svg))


def fastest(cases: Sequence[CaseSummary]) -> list[CaseSummary]:
    """The drafters that a chart by category has room for: the fastest ones, in the run's order."""
    drafted = [case for case in cases if not case.is_plain and case.by_category]
    speed = {case.case: case.speed_up.value if case.speed_up else 0.0 for case in drafted}
    kept = sorted(drafted, key=lambda case: -speed[case.case])[:MAX_SERIES]
    return [case for case in drafted if case in kept]


def _categories(cases: Sequence[CaseSummary]) -> list[str]:
    return sorted({category for case in cases for category in case.by_category})


def _blocks(
    axes: Axes, cases: Sequence[CaseSummary]
) -> list[tuple[str, list[tuple[float, CaseSummary]]]]:
    """Rows of a chart by category, from the top: the category, and its cases with their offsets."""
    categories = _categories(cases)
    step = 0.8 / max(1, len(cases))
    for place in range(1, len(categories)):
        axes.axhline(place - 0.5, color=GRID, linewidth=0.6)
    axes.set_yticks(range(len(categories)), [shortened(c, MAX_CATEGORY) for c in categories])
    axes.set_ylim(len(categories) - 0.5, -0.5)
    axes.locator_params(axis="x", nbins=6)
    axes.tick_params(axis="y", length=0)
    axes.grid(visible=False, axis="y")
    return [
        (
            category,
            [
                (-0.4 + (i + 0.5) * step, case)
                for i, case in enumerate(cases)
                if category in case.by_category
            ],
        )
        for category in categories
    ]


def _blocks_height(cases: Sequence[CaseSummary]) -> float:
    return 0.6 + len(_categories(cases)) * max(0.26, 0.13 * len(cases) + 0.06)


def _interval(axes: Axes, case: CaseSummary, place: float, style: int, value: Any) -> None:
    if value is None:
        return
    is_reference = case.case.method == case.plain
    if value.is_known and not is_reference:
        axes.plot([value.low, value.high], [place, place], color=_color(style))
    axes.plot(value.value, place, **line(style))


def _name_above(axes: Axes, place: float, name: str, more: str = "", points: float = 8.0) -> None:
    """Write a method's name above its line, on the page's ground: a line behind it is hidden."""
    axes.annotate(
        shortened(name, MAX_NAME) + more, (0, place), xytext=(4, points), textcoords="offset points",
        xycoords=("axes fraction", "data"), fontsize=10.5, zorder=3,
        bbox={"facecolor": GROUND, "edgecolor": "none", "pad": 1.0},
    )  # fmt: skip


def _speed_up_axis(axes: Axes) -> None:
    axes.axvline(1.0, color=INK, linewidth=1.0)
    axes.locator_params(axis="x", nbins=6)
    low, high = axes.get_xlim()
    axes.set_xlim(min(low, 0.9), max(high, 1.1))
    axes.set_xlabel("times the fastest plain loop")


def _color(style: int) -> str:
    return series_color(style % NUM_COLORS if style >= 0 else NUM_COLORS - 1 - style)


def line(style: int) -> dict[str, Any]:
    """Colour and marker of a method."""
    return {"color": _color(style), "marker": MARKERS[style % len(MARKERS)]}
