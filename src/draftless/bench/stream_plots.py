"""The charts of streams of requests and of anchors. Domains are told by place or marker, not by colour."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftless.bench.curves import Curve, speed_up_over_requests
from draftless.bench.mixes import StreamSummary, mixes_of
from draftless.bench.plots import Chart, Styles, fastest, line, make_styles
from draftless.bench.rows import Row
from draftless.bench.summary import CaseSummary
from draftless.bench.svg import GRID, GROUND, INK, inline, shortened
from draftless.errors import ArtifactError

if TYPE_CHECKING:
    from matplotlib.axes import Axes

MAX_DOMAIN = 16
_ROW = 0.075  # height of a domain's row, in heights of the plot of speed
_MARKS = 8  # markers on a line: more would hide it


def stream_charts(
    rows: Sequence[Row],
    cases: Sequence[CaseSummary],
    streams: Sequence[StreamSummary],
    styles: Styles,
) -> list[Chart]:
    """One chart per mix ratio: speed-up over the place in the stream, and the domains below.

    Drafters with draft passes are shown, because their policies are what a stream compares; all
    drafters if there is none.
    """
    drafted = [c for c in cases if c.stages and c.stages.draft_pass_ms is not None]
    names = [case.case for case in fastest(drafted or cases)]
    shown = [one for one in streams if one.case in names]
    domains: dict[float, dict[int, str]] = {mix: {} for mix in mixes_of(rows)}
    for row in rows:
        if row.mix is not None and row.position is not None:
            domains[row.mix][row.position] = row.category
    curves = {
        mix: {
            one.case.method: speed_up_over_requests(one.by_mix[mix].pairs, max(own) + 1)
            for one in shown
        }
        for mix, own in domains.items()
    }
    speeds = [y for own in curves.values() for curve in own.values() for _, y in curve]
    span = min([1.0, *speeds]) - 0.05, max([1.0, *speeds]) + 0.05
    return [
        _stream_chart(mix, own, domains[mix], span, styles)
        for mix, own in curves.items()
        if any(own.values())
    ]


def _stream_chart(
    mix: float,
    curves: Mapping[str, Curve],
    domains: Mapping[int, str],
    span: tuple[float, float],
    styles: Styles,
) -> Chart:
    """All charts of a run share `span`, so that they can be compared."""
    low, high = span
    names = sorted(set(domains.values()))
    height = _ROW * (high - low)

    def draw(axes: Axes) -> None:
        for method, curve in curves.items():
            every = max(1, math.ceil(len(curve) / _MARKS))
            axes.plot(
                [x for x, _ in curve],
                [y for _, y in curve],
                **line(styles[method]),
                markevery=every,
            )
        axes.axhline(1.0, color=INK, linewidth=1.0)
        axes.axhline(low, color=GRID, linewidth=0.6)
        axes.locator_params(axis="y", nbins=5)
        ticks = [tick for tick in axes.get_yticks() if low <= tick <= high]
        rows = [low - (place + 0.8) * height for place in range(len(names))]
        for row, name in zip(rows, names, strict=True):
            asked = [(i + 0.5, 1.0) for i in sorted(domains) if domains[i] == name]
            axes.broken_barh(asked, (row - 0.35 * height, 0.7 * height), color=INK, linewidth=0)
        labels = [f"{tick:g}" for tick in ticks] + [shortened(name, MAX_DOMAIN) for name in names]
        axes.set_yticks([*ticks, *rows], labels)
        axes.set_ylim(low - (len(names) + 0.4) * height, high)
        axes.set_xlim(0.5, max(domains) + 1.5)
        axes.grid(visible=False, axis="y")
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("request")

    return Chart(
        f"Stream with mix ratio {mix:g}",
        "Times the fastest plain loop, in the running mean of up to 10 requests; below, the domain "
        "of each request.",
        inline(
            draw,
            2.4 + 0.19 * len(names),
            f"Speed-up over the place in the stream with mix ratio {mix:g}, one curve per method",
        ),
    )


def anchor_map(file: Path) -> Chart:
    """Samples and anchors of a store in two dimensions.

    Args:
        file: `{"samples": [{"x", "y", "label"}], "anchors": [...], "explained": [share, share]}`,
            as `draftless calibrate anchors` writes it.

    Raises:
        ArtifactError: it cannot be read, or has another form.
    """
    try:
        data = json.loads(file.read_text(encoding="utf-8"))
        samples, anchors = (_points(data[kind]) for kind in ("samples", "anchors"))
        explained = [float(share) for share in data["explained"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file} is no map of anchors: {error!r}") from error
    labels = make_styles(sorted({*samples, *anchors}))

    def draw(axes: Axes) -> None:
        for label, (x, y) in samples.items():
            axes.plot(x, y, **_dots(labels[label], 3.5), alpha=0.45)
        for label, (x, y) in anchors.items():
            edge: dict[str, Any] = {"markeredgecolor": INK, "markeredgewidth": 1.0}
            axes.plot(x, y, **{**_dots(labels[label], 8.0), **edge}, zorder=3)
        axes.set_xlabel(_component(1, explained))
        axes.set_ylabel(_component(2, explained))
        axes.set_xticks([])
        axes.set_yticks([])

    return Chart(
        "Anchors",
        "Prompts by domain, their vectors laid flat along the two directions in which they differ "
        "most; the large marks with an edge are the anchors.",
        inline(draw, 4.2, f"Map of the anchors of {', '.join(labels)}"),
        legend=tuple((_mark(style), label) for label, style in labels.items()),
    )


def _mark(style: int) -> str:
    """A domain's colour and marker, without a line that would hide its form."""

    def draw(axes: Axes) -> None:
        axes.plot(0, 0, **_dots(style, 8.0))
        axes.set_axis_off()

    return inline(draw, 0.22, "", width=0.5)


def _points(records: Sequence[Mapping[str, Any]]) -> dict[str, tuple[list[float], list[float]]]:
    found: dict[str, tuple[list[float], list[float]]] = {}
    for record in records:
        x, y = found.setdefault(str(record["label"]), ([], []))
        x.append(float(record["x"]))
        y.append(float(record["y"]))
    return found


def _dots(style: int, size: float) -> dict[str, Any]:
    return {
        **line(style),
        "linestyle": "none",
        "markersize": size,
        "markeredgecolor": GROUND,
        "markeredgewidth": 0.4,
    }


def _component(number: int, explained: Sequence[float]) -> str:
    share = f" ({explained[number - 1]:.0%} of the variance)" if len(explained) >= number else ""
    return f"component {number}{share}"
