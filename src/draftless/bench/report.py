"""One page, one Markdown file and one JSON file about one or several runs.

The page needs no network and no script. The same rows give the same bytes.
"""

from __future__ import annotations

import json
import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, is_dataclass
from html import escape
from itertools import count
from pathlib import Path
from typing import Any

from draftless.bench import (
    auto_tables,
    curves,
    plots,
    price_tables,
    stream_plots,
    stream_tables,
    tables,
    viewer,
)
from draftless.bench.answers import Answer, answers
from draftless.bench.averages import is_looping, of_categories, with_merged_categories
from draftless.bench.mixes import StreamSummary, stream_summaries
from draftless.bench.routing import Routing, known_labels, routings
from draftless.bench.rows import PRICES, ROWS_FILE, Row, last_prices, read_rows, read_sessions
from draftless.bench.summary import STAGES, CaseSummary, Group, Summary, summarise
from draftless.bench.svg import with_own_ids
from draftless.errors import ArtifactError, ConfigError
from draftless.prices import PriceList

FORMAT = 1
TEMPLATES = Path(__file__).parent / "templates"
PAGE, MARKDOWN, DATA = "report.html", "report.md", "report.json"
COMMIT_LEN = 10
SHORT_COMMIT_LEN = 8


@dataclass(frozen=True, slots=True)
class Run:
    """One run folder.

    Attributes:
        label: its name on the page.
        rows: of the run (of the chosen categories), MT-bench's categories merged.
        num_done: questions that have rows, in all categories.
        sessions: provenance of every start.
        summary: of the rows.
        answers: one per group.
        routings: of every case that routes.
    """

    label: str
    rows: list[Row]
    num_done: int
    sessions: list[dict[str, Any]]
    summary: Summary
    answers: list[Answer]
    routings: list[Routing]

    def streams(self, cases: Sequence[CaseSummary]) -> list[StreamSummary]:
        """The cases of a group on every stream; none if the run is of a suite."""
        return stream_summaries(self.rows, cases)

    def prices(self) -> PriceList | None:
        """What passes cost, if the run has kept it."""
        return last_prices(self.sessions)

    def facts(self) -> list[tuple[str, str]]:
        """How it was measured: what all sessions share once, what differs session by session."""
        facts = []
        keys = dict.fromkeys(key for session in self.sessions for key in session if key != PRICES)
        for key in keys:
            values = [_fact(key, s[key]) for s in self.sessions if s.get(key) not in (None, [], {})]
            if values:
                facts.append((key, "; ".join(dict.fromkeys(values))))
        loads = sorted(row.load for row in self.rows)
        load = f"{loads[0]:.1f} to {loads[-1]:.1f}, median {loads[len(loads) // 2]:.1f}"
        return [("rows", str(len(self.rows))), *facts, ("load while measuring", load)]

    def unfinished(self) -> str | None:
        """A sentence, if the run was cut before its last question."""
        session = self.sessions[-1] if self.sessions else {}
        repeats = session.get("options", {}).get("repeats", 1)
        num_all = session.get("num_questions", 0) * repeats
        if self.num_done >= num_all:
            return None
        return f"{self.label} is not finished: {self.num_done} of {num_all} questions."


@dataclass(frozen=True, slots=True)
class Section:
    """One group of a run on the page."""

    run: Run
    group: Group
    answer: Answer
    cases: list[CaseSummary]
    charts: list[plots.Chart]


def write_report(
    run_folders: list[Path],
    output: Path,
    categories: Sequence[str] = (),
    anchor_map: Path | None = None,
) -> Path:
    """Write `report.html`, `report.md` and `report.json`.

    Args:
        run_folders: run folders; several are compared on one page.
        output: folder of the report; made if it is not there.
        categories: the rows of these only; empty is all.
        anchor_map: a file of `draftless calibrate anchors` to draw on the page.

    Returns:
        The page.

    Raises:
        ConfigError: no run is given, a run has no rows of a category, or the extra `bench` is not installed.
        ArtifactError: a folder has no rows, or rows or a map that cannot be read.
    """
    runs = _read_runs(run_folders, categories)
    chart = stream_plots.anchor_map(anchor_map) if anchor_map else None
    pages = {PAGE: _render(PAGE, runs, chart), MARKDOWN: _render(MARKDOWN, runs), DATA: _json(runs)}
    output.mkdir(parents=True, exist_ok=True)
    for name, text in pages.items():
        (output / name).write_text(text, encoding="utf-8", errors="replace")
    return output / PAGE


def _read_runs(folders: Sequence[Path], categories: Sequence[str]) -> list[Run]:
    if not folders:
        raise ConfigError("a report needs at least one run folder")
    runs = []
    sessions = [read_sessions(folder) for folder in folders]
    for folder, own, label in zip(folders, sessions, _labels(folders, sessions), strict=True):
        rows = with_merged_categories(read_rows(folder))
        if not rows:
            raise ArtifactError(
                f"{folder / ROWS_FILE} has no rows; measure first: draftless bench run --output {folder}"
            )
        num_done = len({row.question for row in rows})
        rows = of_categories(rows, categories)
        summary = summarise(rows)
        routed = routings(rows, known_labels(own))
        runs.append(Run(label, rows, num_done, own, summary, answers(summary), routed))
    return runs


def _labels(folders: Sequence[Path], sessions: Sequence[Sequence[Mapping[str, Any]]]) -> list[str]:
    """Folder names; with the commit if there are several runs, numbered where that is not enough."""
    labels = [folder.resolve().name for folder in folders]
    if len(labels) > 1:
        commits = [
            str((own or [{}])[-1].get("commit") or "")[:SHORT_COMMIT_LEN] for own in sessions
        ]
        labels = [f"{name} @ {c}" if c else name for name, c in zip(labels, commits, strict=True)]
    totals, seen = Counter(labels), Counter[str]()
    unique = []
    for label in labels:
        seen[label] += 1
        unique.append(f"{label} #{seen[label]}" if totals[label] > 1 else label)
    return unique


def _fact(key: str, value: Any) -> str:
    if key == "commit":
        return str(value)[:COMMIT_LEN]
    if isinstance(value, Mapping):
        return ", ".join(f"{name} {_fact('', own)}" for name, own in value.items())
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _sections(runs: Sequence[Run], styles: plots.Styles) -> list[Section]:
    sections = []
    for run in runs:
        groups = run.summary.groups()
        for answer, (group, cases) in zip(run.answers, groups.items(), strict=True):
            charts = _charts(run, cases, styles)
            sections.append(Section(run, group, answer, cases, charts))
    return sections


def _charts(run: Run, cases: list[CaseSummary], styles: plots.Styles) -> list[plots.Chart]:
    by_case: dict[Any, list[Row]] = {case.case: [] for case in cases}
    for row in run.rows:
        if row.case in by_case and row.error is None and not is_looping(row):
            by_case[row.case].append(row)
    edges = curves.position_edges([row for rows in by_case.values() for row in rows])
    shown = [case for case in cases if case.is_plain] + plots.fastest(cases)
    places = {c.case.method: curves.speed_over_position(by_case[c.case], edges) for c in shown}
    widths = {c.case.method: curves.cost_of_width(by_case[c.case]) for c in shown}
    has_speed_up, has_drafter = any(c.speed_up for c in cases), bool(plots.fastest(cases))
    charts = [
        plots.overview(cases, styles) if has_speed_up else None,
        plots.stages(cases),
        plots.speed_up_by_category(cases, styles) if has_speed_up and has_drafter else None,
        plots.acceptance_by_category(cases, styles) if has_drafter else None,
        plots.per_position(cases, styles) if has_drafter else None,
        plots.histogram(cases, styles) if has_drafter else None,
        plots.speed_over_position(places, styles),
        plots.cost_of_width(widths, styles),
        *stream_plots.stream_charts(run.rows, cases, run.streams(cases), styles),
    ]
    return [chart for chart in charts if chart is not None]


def _render(name: str, runs: Sequence[Run], anchors: plots.Chart | None = None) -> str:
    try:
        from jinja2 import Environment, FileSystemLoader, StrictUndefined
        from markupsafe import Markup
    except ImportError as error:
        raise ConfigError("a report needs jinja2: pip install 'draftless[bench]'") from error
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=name == PAGE,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
        keep_trailing_newline=True,
    )
    drawings = count()
    environment.filters["drawing"] = lambda svg: Markup(with_own_ids(svg, next(drawings)))
    environment.filters["cell"] = _cell
    environment.globals |= {
        "tables": tables,
        "stream_tables": stream_tables,
        "price_tables": price_tables,
        "auto_tables": auto_tables,
    }
    styles = plots.make_styles(c.case.method for run in runs for c in run.summary.cases)
    sources = viewer.sources_of([row for run in runs for row in run.rows])
    numbers = {source: place for place, source in enumerate(sources)}
    is_page = name == PAGE
    return environment.get_template(f"{name}.jinja").render(
        runs=runs,
        columns=_columns(runs),
        sections=_sections(runs, styles) if is_page else [],
        swatches={m: plots.swatch(place) for m, place in styles.items()} if is_page else {},
        css=Markup((TEMPLATES / "report.css").read_text(encoding="utf-8")),
        stages=STAGES,
        anchors=anchors,
        sources=sources,
        source_shares={run.label: viewer.source_shares(run.rows) for run in runs},
        excerpts={
            run.label: viewer.excerpts(run.rows, list(run.summary.groups().values()), numbers)
            for run in runs
        }
        if is_page
        else {},
    )


def _columns(runs: Sequence[Run]) -> list[tuple[str, list[CaseSummary]]]:
    """Every group of every run, with the name that tells it from the others."""
    return [
        (f"{run.label}: {name}" if len(runs) > 1 else name, cases)
        for run in runs
        for group, cases in run.summary.groups().items()
        for name in [f"{group.model}, {group.sampling}, {group.dtype}"]
    ]


def _cell(text: str) -> str:
    """Text for a cell of a Markdown table: whatever it holds, it stays in its cell."""
    text = "".join(char if char.isprintable() else " " for char in text)
    return "".join(
        f"\\{char}" if char in "\\`*_{}[]|" else char for char in escape(text, quote=False)
    )


def _json(runs: Sequence[Run]) -> str:
    data = {
        "format": FORMAT,
        "runs": [
            {
                "label": run.label,
                "sessions": run.sessions,
                "categories": run.summary.categories,
                "answers": run.answers,
                "cases": run.summary.cases,
                "streams": [
                    {
                        "case": one.case,
                        "mixes": [
                            {
                                "mix": mix,
                                "tokens_per_second": own.tokens_per_second,
                                "speed_up": own.speed_up,
                            }
                            for mix, own in one.by_mix.items()
                        ],
                        "fall": one.fall,
                    }
                    for cases in run.summary.groups().values()
                    for one in run.streams(cases)
                ],
                "routings": [_routing(one) for one in run.routings],
                "divergences": [
                    {**_question(one.row), "turn": one.turn, "margin": one.margin}
                    for one in run.summary.divergences
                ],
                "failed": [{**_question(row), "error": row.error} for row in run.summary.failed],
            }
            for run in runs
        ],
    }
    return json.dumps(_plain(data), indent=1, allow_nan=False) + "\n"


def _routing(one: Routing) -> dict[str, Any]:
    counts = {
        domain: {label or "unknown": num for label, num in own.items()}
        for domain, own in one.counts.items()
    }
    return {"case": one.case, "labels": one.labels, "counts": counts}


def _question(row: Row) -> dict[str, Any]:
    return {
        "case": row.case,
        "category": row.category,
        "question_id": row.question_id,
        "repeat": row.repeat,
    }


def _plain(value: Any) -> Any:
    """Values as JSON has them: an unknown bound is null."""
    if is_dataclass(value) and not isinstance(value, type):
        return _plain(asdict(value))
    if isinstance(value, Mapping):
        return {str(key): _plain(own) for key, own in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(own) for own in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value
