"""Streams, routes and anchors on the page."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from draftless.bench import plots, stream_plots
from draftless.bench.report import write_report
from draftless.bench.rows import Row, append_row
from draftless.errors import ArtifactError
from draftless.jsonl import append_lines
from support.synthetic_run import make_case, make_row

METHODS = ("none", "layer-skip [skip_set=mixed]", "recycling", "knn-ssd")
MAP = {
    "samples": [{"x": i % 7, "y": i % 5, "label": ("sql", "code")[i % 2]} for i in range(40)],
    "anchors": [{"x": 1, "y": 2.5, "label": "sql"}, {"x": 4, "y": 1, "label": "code"}],
    "explained": [0.4123, 0.2],
}


def stream_rows() -> list[Row]:
    rows = []
    for mix in (0.0, 1.0):
        for place in range(12):
            number, domain = divmod(place, 2) if mix else divmod(place, 6)[::-1]
            for method in METHODS:
                row = make_row(make_case(method), ("code", "sql")[domain], number, steps=50)
                row.mix, row.position = mix, place
                turn = row.turns[0]
                turn.seconds /= 1 + 0.1 * METHODS.index(method)
                if method not in ("none", "recycling"):
                    turn.num_draft_passes, turn.time_s["draft"] = 200, 0.2
                if method == "knn-ssd":
                    turn.sources = ["", f"skip {row.category}"]
                rows.append(row)
    return rows


def write_run(folder: Path, rows: list[Row]) -> Path:
    folder.mkdir()
    append_lines(folder / "sessions.jsonl", [{"labels": {"knn-ssd": ["code", "math", "sql"]}}])
    for row in rows:
        append_row(folder, row)
    return folder


def write_map(folder: Path, **changes: Any) -> Path:
    file = folder / "map.json"
    file.write_text(json.dumps({**MAP, **changes}))
    return file


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("streams")
    run = write_run(folder / "run", stream_rows())
    write_report([run], folder, (), write_map(folder))
    return folder


def test_the_page_shows_streams_routes_and_anchors(report: Path) -> None:
    html = (report / "report.html").read_text()
    for heading in (
        "Streams of requests, by mix ratio",
        "Drafting with part of the model",
        "Stream with mix ratio 0",
        "Stream with mix ratio 1",
        "Requests by domain and route, run",
        "component 1 (41% of the variance)",
    ):
        assert heading in html
    assert 'href="#routing"' in html
    markdown = (report / "report.md").read_text()
    assert "fall from mix 0 to 1" in markdown
    assert "| all with a label |" in markdown.replace("  ", " ")
    assert "24 of 24 (100.0%)" in markdown


def test_the_numbers_stand_in_the_data(report: Path) -> None:
    (run,) = json.loads((report / "report.json").read_text())["runs"]
    stream = next(one for one in run["streams"] if one["case"]["method"] == "knn-ssd")
    assert [own["mix"] for own in stream["mixes"]] == [0.0, 1.0]
    assert stream["mixes"][1]["speed_up"]["value"] == pytest.approx(1.3)
    assert stream["fall"]["value"] == pytest.approx(0.0, abs=1e-9)
    (routing,) = run["routings"]
    assert routing["labels"] == ["code", "math", "sql"]
    assert routing["counts"]["sql"] == {"sql": 12}


def test_a_suite_has_none_of_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plots, "inline", lambda *_, **__: "<svg></svg>")
    rows = [make_row(make_case(name), "sql", 0) for name in ("none", "recycling")]
    write_report([write_run(tmp_path / "run", rows)], tmp_path)
    html, markdown = ((tmp_path / name).read_text() for name in ("report.html", "report.md"))
    assert "by mix ratio" not in html
    assert "Stream with" not in html
    assert "routing" not in html
    assert "mix" not in markdown
    assert "Routing" not in markdown


def test_the_plot_shows_the_policies_that_draft_with_passes(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from draftless.bench.mixes import stream_summaries
    from draftless.bench.summary import summarise

    shown: list[set[str]] = []

    def chart(mix: float, curves: dict[str, Any], *_: Any) -> str:
        shown.append(set(curves))
        return f"chart {mix}"

    monkeypatch.setattr(stream_plots, "_stream_chart", chart)

    def draw(rows: list[Row]) -> list[Any]:
        (cases,) = summarise(rows).groups().values()
        return stream_plots.stream_charts(rows, cases, stream_summaries(rows, cases), {})

    assert draw(stream_rows()) == ["chart 0.0", "chart 1.0"]
    assert shown == 2 * [{"layer-skip [skip_set=mixed]", "knn-ssd"}]
    draw(
        [
            row
            for row in stream_rows()
            if "skip" not in row.case.method and "knn" not in row.case.method
        ]
    )
    assert shown[2:] == 2 * [{"recycling"}]


def test_the_map_draws_every_point_and_names_each_domain_once(tmp_path: Path) -> None:
    chart = stream_plots.anchor_map(write_map(tmp_path))
    assert [name for _, name in chart.legend] == ["code", "sql"]
    assert chart.svg.count("<use") == 42
    assert "component 2 (20% of the variance)" in chart.svg
    assert not re.search("#[0-9a-f]{6}", chart.svg)  # every colour is the page's


@pytest.mark.parametrize(
    "changes",
    [{"samples": [{"x": 1, "label": "a"}]}, {"anchors": 3}, {"explained": None}, {"samples": [1]}],
)
def test_a_damaged_map_is_refused_by_name(tmp_path: Path, changes: dict[str, Any]) -> None:
    file = write_map(tmp_path, **changes)
    with pytest.raises(ArtifactError, match=r"map\.json is no map of anchors"):
        stream_plots.anchor_map(file)
    with pytest.raises(ArtifactError, match=r"none\.json is no map"):
        stream_plots.anchor_map(tmp_path / "none.json")
