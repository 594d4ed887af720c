"""The report: pages that hold whatever the rows hold, in a real browser, too."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from draftless.bench import plots
from draftless.bench.report import write_report
from draftless.bench.rows import Margin, Row, append_row
from draftless.errors import ArtifactError, ConfigError
from draftless.jsonl import append_lines
from draftless.prices import PriceList
from support.chromium import CHROMIUM, look
from support.synthetic_run import CATEGORIES, NUM, PLAIN, make_case, make_run, rows_of

EVIL = '<script>alert("1")</script> | `x` {{ 7 * 7 }} & $a$ \u202e'


def write_run(folder: Path, rows: Sequence[Row], **facts: object) -> Path:
    folder.mkdir(parents=True)
    append_lines(folder / "sessions.jsonl", [{"command": "bench run", "commit": "c" * 40, **facts}])
    for row in rows:
        append_row(folder, row)
    return folder


@pytest.fixture
def no_charts(monkeypatch: pytest.MonkeyPatch) -> None:
    """For tests of text: drawing takes most of a report's time."""
    monkeypatch.setattr(plots, "inline", lambda *_, **__: "<svg></svg>")


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of the report on a small run, which lies in `run`."""
    folder = tmp_path_factory.mktemp("report")
    write_report([write_run(folder / "run", small_run())], folder)
    return folder


class Page(HTMLParser):
    """Tags that are open at the end or closed wrongly, text, ids, and where the page points to."""

    VOID = ("meta", "link", "br", "path", "use", "rect")

    def __init__(self, html: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.text = ""
        self.tags: set[str] = set()
        self.ids: list[str] = []
        self.references: list[str] = []
        self.feed(html)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        if tag not in self.VOID:
            self.open.append(tag)
        self.handle_attributes(attrs)

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.handle_attributes(attrs)

    def handle_attributes(self, attrs: list[tuple[str, str | None]]) -> None:
        for name, value in attrs:
            if name == "id":
                self.ids.append(str(value))
            if name in ("src", "href", "xlink:href"):
                self.references.append(str(value))

    def handle_endtag(self, tag: str) -> None:
        if tag not in self.VOID:
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.text += data


def small_run() -> list[Row]:
    return make_run(samplings=("greedy",), categories=CATEGORIES[:2], questions=2, tokens=24)


def test_whatever_the_rows_hold_stays_text(tmp_path: Path) -> None:
    rows = small_run()
    for row in rows:
        if row.case.method == "tr-jacobi":
            row.case = make_case(f"tr-jacobi({EVIL})", model=EVIL)
            row.turns[0].pieces = [EVIL] * row.num_tokens
            row.turns[0].sources = [EVIL, ""] * (row.num_tokens // 2)
        else:
            row.case = make_case(row.case.method, model=EVIL)
        row.category = EVIL
    rows.append(Row(rows[0].case, EVIL, "q", error=EVIL))
    run = write_run(tmp_path / "run", rows, command=EVIL)
    html = write_report([run], tmp_path / "out").read_text()
    page = Page(html)
    assert page.open == []
    assert "script" not in page.tags
    assert "<script" not in html
    assert '<script>alert("1")</script>' in page.text
    assert "49" not in answer_lines(page.text)
    markdown = (tmp_path / "out" / "report.md").read_text()
    assert "<script" not in markdown
    for line in markdown.splitlines():
        if line.startswith("| transformers"):  # a bar in a name would add columns
            assert line.replace("\\|", "").count("|") == line.count(" | ") + 2
    assert json.loads((tmp_path / "out" / "report.json").read_text())["runs"][0]["failed"]


def answer_lines(text: str) -> str:
    return "".join(line for line in text.splitlines() if "Use" in line)


def test_the_page_needs_no_network_and_no_id_twice(report: Path) -> None:
    page = Page((report / "report.html").read_text())
    assert len(page.ids) == len(set(page.ids))
    targets = [ref for ref in page.references if ref != "data:,"]
    assert targets
    assert all(ref[0] == "#" and ref[1:] in page.ids for ref in targets)


def test_the_answer_comes_first(report: Path) -> None:
    text = Page((report / "report.html").read_text()).text
    assert text.index("Use tr-jacobi:") < text.index("All cases of")
    lines = (report / "report.md").read_text().splitlines()
    assert lines[2].startswith("- msn, greedy, bfloat16: **Use tr-jacobi:")
    data = json.loads((report / "report.json").read_text())
    assert data["runs"][0]["answers"][0]["method"] == "tr-jacobi"


def test_the_same_rows_give_the_same_bytes(report: Path, tmp_path: Path) -> None:
    again = write_report([report / "run"], tmp_path).parent
    for name in ("report.html", "report.md", "report.json"):
        assert (report / name).read_bytes() == (again / name).read_bytes()


@pytest.mark.usefixtures("no_charts")
def test_several_runs_have_names_of_their_own(tmp_path: Path) -> None:
    rows = rows_of({**PLAIN, "recycling": 2.0})
    runs = [
        write_run(tmp_path / place / "run", rows, commit=commit * 40)
        for place, commit in (("a", "a"), ("b", "b"), ("c", "b"))
    ]
    text = Page(write_report(runs, tmp_path / "out").read_text()).text
    for label in ("run @ aaaaaaaa", "run @ bbbbbbbb #1", "run @ bbbbbbbb #2"):
        assert f"{label}: msn, greedy, bfloat16" in text
    assert "all side by side" in text


@pytest.mark.usefixtures("no_charts")
def test_defects_and_failures_are_on_the_page(tmp_path: Path) -> None:
    rows = rows_of({**PLAIN, "recycling": 2.0})
    rows[2].turns[0].margin = Margin(17, 1, -1, 99.5)
    rows[5] = Row(rows[5].case, "sql", "sql-1", error="RuntimeError: planted crash")
    html = write_report([write_run(tmp_path / "run", rows)], tmp_path / "out").read_text()
    assert 'class="defect">Defect: recycling departs' in html
    text = " ".join(Page(html).text.split())
    assert "DEFECT" in text
    assert "0 / 0171end99.50" in text.replace(" ", "").replace("0/0", "0 / 0")
    assert "RuntimeError: planted crash" in text


@pytest.mark.usefixtures("no_charts")
def test_chosen_categories_alone_are_no_cut_run(tmp_path: Path) -> None:
    run = write_run(tmp_path / "run", make_run(questions=2), num_questions=2 * len(CATEGORIES))
    write_report([run], tmp_path, [CATEGORIES[1]])
    text = (tmp_path / "report.md").read_text()
    assert "not finished" not in text
    data = json.loads((tmp_path / "report.json").read_text())
    assert data["runs"][0]["categories"] == [CATEGORIES[1]]


@pytest.mark.usefixtures("no_charts")
def test_prices_and_auto_have_tables(tmp_path: Path) -> None:
    points = {(width, 512, 1): 0.001 * width for width in (1, 8)}
    facts = {"num_threads": 1, "torch": "2", "num_rounds": 3, "noise": 0, "load": 0, "date": "x"}
    prices = PriceList.from_points(points, hardware="a machine", facts=facts).to_dict()
    rows = rows_of({**PLAIN, "recycling": 1.5, "auto": 3.0}, spread=0)
    run = write_run(tmp_path / "new", rows, prices=prices)
    write_report([run], tmp_path)
    for name in ("report.html", "report.md"):
        text = (tmp_path / name).read_text().replace("\\", "")
        assert "8.00 (8.00)" in text and "a machine" in text
        assert text.count("2.00x [2.00, 2.00]") == 4  # in sql, and three means of one domain
        assert "widths" not in text  # the list itself is no fact to print
    assert json.loads((tmp_path / "report.json").read_text())["runs"][0]["sessions"]

    write_report([write_run(tmp_path / "old", rows_of({**PLAIN, "recycling": 1.5}))], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "cached, ms" not in text and "best single drafter" not in text


@pytest.mark.usefixtures("no_charts")
def test_a_cut_run_says_so(tmp_path: Path) -> None:
    rows = rows_of({**PLAIN, "recycling": 2.0})
    facts = {"num_questions": NUM, "options": {"repeats": 2, "suite": "tiny"}}
    write_report([write_run(tmp_path / "run", rows, **facts)], tmp_path)
    text = (tmp_path / "report.md").read_text()
    assert "- **run is not finished: 6 of 12 questions.**" in text
    assert "- options: repeats 2, suite tiny" in text
    write_report([write_run(tmp_path / "whole", rows, num_questions=NUM)], tmp_path)
    assert "not finished" not in (tmp_path / "report.md").read_text()


@pytest.mark.usefixtures("no_charts")
def test_an_unknown_bound_is_null(tmp_path: Path) -> None:
    rows = [row for row in rows_of({**PLAIN, "x": 2.0}) if row.question_id == "sql-0"]
    write_report([write_run(tmp_path / "run", rows)], tmp_path)
    cases = json.loads((tmp_path / "report.json").read_text())["runs"][0]["cases"]
    assert cases[2]["speed_up"]["low"] is None


@pytest.mark.usefixtures("no_charts")
def test_a_run_of_failures_has_a_page(tmp_path: Path) -> None:
    rows = [Row(make_case("tr-jacobi"), "sql", "sql-0", error="ValueError: no")]
    html = write_report([write_run(tmp_path / "run", rows)], tmp_path).read_text()
    assert "No answer: no plain loop" in html


def test_nothing_to_report_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="at least one run"):
        write_report([], tmp_path)
    with pytest.raises(ArtifactError, match="measure first"):
        write_report([tmp_path / "none"], tmp_path)


@pytest.mark.parametrize("module", ["matplotlib", "jinja2"])
def test_a_missing_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, module: str
) -> None:
    run = write_run(tmp_path / "run", small_run())
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(ConfigError, match=r"pip install 'draftless\[bench\]'"):
        write_report([run], tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
@pytest.mark.parametrize(("width", "is_dark"), [(390, False), (1280, True)])
def test_the_page_in_a_real_browser(tmp_path: Path, width: int, is_dark: bool) -> None:
    """Nothing complains, nothing is fetched, nothing sticks out, also with long names."""
    methods = ("transformers", "none", "recycling", f"tr-jacobi({'budget=16, ' * 6}x={'y' * 60})")
    rows = make_run(
        models=("m" * 80,), samplings=("greedy",), methods=methods,
        categories=[*CATEGORIES, "w" * 70], questions=2, tokens=30,
    )  # fmt: skip
    rows[3].turns[0].margin = Margin(5, 7, 8, 77.0)
    rows.append(Row(rows[0].case, "sql", "sql-9", error="RuntimeError: " + "x" * 400))
    run = write_run(tmp_path / "run", rows, command="c" * 300)
    page = write_report([run], tmp_path / "out")
    seen = look(page, tmp_path / "profile", width, is_dark=is_dark, shoots=False)
    assert (seen.complaints, seen.requests) == ([], [])
    assert seen.window_width == width
    assert seen.scroll_width <= width


@pytest.mark.slow
@pytest.mark.skipif(CHROMIUM is None, reason="Debian's chromium is not installed")
def test_the_browser_test_can_fail(tmp_path: Path) -> None:
    page = tmp_path / "bad.html"
    page.write_text(
        "<meta name=viewport content='width=device-width'><div style='width: 900px'>x</div>"
        "<img src='missing.png'><script>console.error('planted')</script>"
    )
    seen = look(page, tmp_path / "profile", 390, shoots=False)
    assert any("planted" in one for one in seen.complaints)
    assert [Path(url).name for url in seen.requests] == ["missing.png"]
    assert seen.scroll_width > 390
