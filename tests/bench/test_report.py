"""The report: the sentence in all its cases, and pages that hold whatever the rows hold."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path

import pytest

from draftless.bench import plots
from draftless.bench.answers import Answer, answers
from draftless.bench.curves import cost_of_width, position_edges, speed_over_position
from draftless.bench.report import write_report
from draftless.bench.rows import Margin, Row, append_line, append_row
from draftless.bench.summary import summarise
from draftless.bench.svg import inline, shortened, with_own_ids
from draftless.bench.viewer import MAX_TOKENS, excerpts, sources_of
from draftless.errors import ArtifactError, ConfigError
from support.chromium import CHROMIUM, look
from support.synthetic_run import CATEGORIES, make_case, make_row, make_run

EVIL = '<script>alert("1")</script> | `x` {{ 7 * 7 }} & $a$ \u202e'
NUM = 6
PLAIN = {"none": 1.0, "transformers": 0.9}


def rows_of(
    speeds: dict[str, float], *, spread: float = 0.1, sampling: str = "greedy"
) -> list[Row]:
    """Six questions; a drafter's speed varies by `spread` around its number."""
    return [
        make_row(
            make_case(method, sampling=sampling),
            "sql",
            i,
            steps=50,
            seconds=1.0 / (speed * (1 + (spread * (i % 3 - 1) if method not in PLAIN else 0))),
        )
        for i in range(NUM)
        for method, speed in speeds.items()
    ]


def answer(rows: Sequence[Row]) -> Answer:
    (only,) = answers(summarise(rows))
    return only


def test_use_the_fastest_drafter() -> None:
    found = answer(rows_of({**PLAIN, "recycling": 1.5, "tr-jacobi": 2.4}, spread=0.0))
    assert found.method == "tr-jacobi"
    assert found.text == (
        "Use tr-jacobi: 2.40x [2.40, 2.40] the fastest plain loop, identical in 6 of 6."
    )
    assert (found.defects, found.notes) == ((), ())


def test_near_ties_are_told() -> None:
    rows = rows_of({**PLAIN, "tr-jacobi": 2.4}, spread=0.0)
    for row in rows[2:6:3]:
        row.turns[0].margin = Margin(3, 1, 2, 1.0, is_near_tie=True)
    assert answer(rows).text.endswith("identical in 4 of 6, near-ties in 2.")


def test_do_not_draft_if_the_interval_does_not_exceed_one() -> None:
    found = answer(rows_of({**PLAIN, "tr-jacobi": 1.3}, spread=0.4))
    assert found.method is None
    assert found.text.startswith(
        "Do not draft: nothing is faster than plain decoding; the best is tr-jacobi, 1."
    )


def test_a_drafter_with_defects_is_never_recommended() -> None:
    rows = rows_of({**PLAIN, "recycling": 1.5, "tr-jacobi": 2.4}, spread=0.0)
    rows[3].turns[0].margin = Margin(3, 1, 2, 99.0)
    found = answer(rows)
    assert found.method == "recycling"
    assert found.defects == (
        "tr-jacobi departs from plain decoding by more than a near-tie in 1 of 6 outputs.",
    )
    alone = answer([row for row in rows if row.case.method != "recycling"])
    assert alone.method is None
    assert (
        alone.text
        == "Do not draft: tr-jacobi is faster, 2.40x [2.40, 2.40], but its output is wrong."
    )


def test_a_planted_slow_drafter_is_not_recommended() -> None:
    found = answer(rows_of({**PLAIN, "tr-jacobi": 0.3}))
    assert found.text.startswith("Do not draft: nothing is faster")


def test_one_question_tells_nothing() -> None:
    rows = [row for row in rows_of({**PLAIN, "tr-jacobi": 2.4}) if row.question_id == "sql-1"]
    found = answer(rows)
    assert found.method is None
    assert found.text == "Too few questions to tell: tr-jacobi has 2.40x [interval unknown]."


@pytest.mark.parametrize(
    ("speeds", "text"),
    [
        (PLAIN, "No answer: no drafter has answers to compare."),
        ({"tr-jacobi": 2.0}, "No answer: no plain loop (none, transformers) has answers"),
    ],
)
def test_runs_without_an_answer_say_so(speeds: dict[str, float], text: str) -> None:
    assert answer(rows_of(speeds)).text.startswith(text)


def test_sampled_peers_are_not_checked() -> None:
    found = answer(rows_of({**PLAIN, "transformers prompt-lookup": 2.0}, sampling="T=1"))
    assert found.text.endswith("the fastest plain loop, identity not checked.")
    assert "draws of its own" in found.notes[0]


def test_notes_tell_rivals_slow_categories_failures_and_few_questions() -> None:
    rows = rows_of({**PLAIN, "recycling": 2.3, "tr-jacobi": 2.4})
    rows += [
        make_row(make_case(method), "math", 0, seconds=seconds)
        for method, seconds in (("none", 1.0), ("recycling", 1.25), ("tr-jacobi", 1.2))
    ]
    rows[3].turns[0].num_looping = 90
    rows.append(Row(make_case("knn-ssd"), "sql", "sql-0", error="ValueError: no"))
    notes = " ".join(answer(rows).notes)
    assert "The intervals do not tell it from recycling" in notes
    assert "tr-jacobi is slower than the plain loop on math (0.83x)." in notes
    assert "mostly repeats: 1 of 7 answers." in notes
    assert "A category has 1 question only: the interval is rough." in notes
    assert "knn-ssd failed in 1 of 1 answers." in notes
    assert "transformers has no answers that count on math." in notes


def test_a_drafter_that_fails_on_a_category_does_not_win_by_it() -> None:
    rows = rows_of({**PLAIN, "recycling": 2.3, "tr-jacobi": 2.0}, spread=0.0)
    for number in range(NUM):
        for method, seconds in (("none", 1.0), ("transformers", 1.1), ("tr-jacobi", 0.6)):
            rows.append(make_row(make_case(method), "math", number, seconds=seconds))
        rows.append(Row(make_case("recycling"), "math", f"math-{number}", error="ValueError: no"))
    found = answer(rows)
    assert found.method == "tr-jacobi"
    assert found.notes == (
        "recycling has no answers that count on math.",
        "recycling failed in 6 of 12 answers.",
    )


def write_run(folder: Path, rows: Sequence[Row], **facts: object) -> Path:
    folder.mkdir(parents=True)
    append_line(folder / "sessions.jsonl", {"command": "bench run", "commit": "c" * 40, **facts})
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


def test_speed_over_position_is_tokens_over_time() -> None:
    """Tokens 0-10 in 0.5 s after the prefill, 10-20 in 0.25 s, in steps that cross the borders."""
    row = make_row(make_case("none"), "sql", 0, tokens=20, steps=4)
    turn = row.turns[0]
    turn.step_tokens, turn.prefill_s = [4, 6, 5, 5], 1.0
    turn.step_s = [1.2, 1.5, 1.6, 1.75]
    assert speed_over_position([row], [0, 10, 20, 30]) == [
        (5.0, pytest.approx(20.0)),
        (15.0, pytest.approx(40.0)),
    ]
    turn.prefill_s = None  # the first step may hold the prefill: it does not count
    assert speed_over_position([row], [0, 10])[0][1] == pytest.approx(6 / 0.3)
    assert position_edges([row]) == list(range(0, 22, 2))


def test_cost_of_width_is_a_median_by_powers_of_two() -> None:
    row = make_row(make_case("recycling"), "sql", 0, tokens=20, steps=20)
    turn = row.turns[0]
    turn.step_drafted = [0] * 10 + [2, 3] * 5
    times = [0.01] * 10 + [0.02] * 9 + [5.0]  # one hiccup
    turn.step_s = [0.1 + sum(times[: i + 1]) for i in range(20)]
    (one, first), (wide, second) = cost_of_width([row])
    assert (one, wide) == (1.0, 3.5)
    assert (first, second) == (pytest.approx(10.0), pytest.approx(20.0))
    turn.time_s = {}  # a peer does not tell what it fed
    assert cost_of_width([row]) == []


def test_excerpts_are_short_and_skip_loops() -> None:
    rows = make_run(samplings=("greedy",), questions=2, tokens=MAX_TOKENS + 40)
    groups = list(summarise(rows).groups().values())
    sources = sources_of(rows)
    assert sources[:2] == ["retrieval", "denoised"]
    for row in rows:
        if row.question_id == "code-0":
            row.turns[0].num_looping = row.num_tokens
    found = excerpts(rows, groups, {name: i for i, name in enumerate(sources)})
    assert [case.method for case in found] == ["tr-jacobi", "recycling"]
    texts = found[make_case("tr-jacobi")]
    assert len(texts) == len(CATEGORIES) - 1  # both answers on code are loops
    assert {len(one.tokens) for one in texts} == {MAX_TOKENS}
    assert {one.num_left for one in texts} == {40}


def test_tokens_carry_their_source_and_visible_signs() -> None:
    rows = make_run(samplings=("greedy",), categories=("sql",), methods=("recycling",), questions=1)
    turn = rows[0].turns[0]
    turn.pieces, turn.sources = ["a\n", "\x00", "\u202e"], ["retrieval", "odd", ""]
    turn.token_ids = [5, 6, 7]
    groups = list(summarise(rows).groups().values())
    ((one,),) = excerpts(rows, groups, {"retrieval": 0, "odd": 5}).values()
    assert [(t.text, t.source) for t in one.tokens] == [("a↵\n", 0), ("\u2400", 5), ("�", None)]
    turn.pieces = []
    ((one,),) = excerpts(rows, groups, {"retrieval": 0, "odd": 5}).values()
    assert [t.text for t in one.tokens] == ["5 ", "6 ", "7 "]


def test_drawings_take_their_colours_from_the_page() -> None:
    def draw(axes: object) -> None:
        axes.plot([0, 1], [0.123456, 1], color="#5e0003", marker="o")  # type: ignore[attr-defined]
        axes.set_title("50 % of $a_b$ 3.14159")  # type: ignore[attr-defined]

    svg = inline(draw, 2.0, 'a "b" <c>')
    assert "var(--c3)" in svg
    assert "var(--ink)" in svg
    assert "#000000" not in svg
    assert "50 % of $a_b$ 3.14159" in svg  # no mathematics, no rounding of text
    assert 'aria-label="a &quot;b&quot; &lt;c&gt;"' in svg
    own = with_own_ids(svg, 4)
    assert own.count("d4-") > 2
    assert 'href="#m' not in own
    assert "url(#p" not in own


def test_names_in_drawings_are_cut() -> None:
    assert shortened("a" * 30, 10) == "a" * 9 + "…"
    assert shortened("a\x00b", 10) == "a?b"


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
