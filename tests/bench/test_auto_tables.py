"""`auto` against the best single drafter and the best fixed width of every domain."""

from __future__ import annotations

from pathlib import Path

import pytest
import tables

from draftless.bench.auto_tables import best_single_table, width_sweep_table
from draftless.bench.rows import PRICES, Row, append_row
from draftless.bench.summary import summarise
from draftless.bench.tables import Table
from draftless.errors import ArtifactError
from draftless.jsonl import append_lines
from draftless.prices import PriceList
from support.synthetic_run import make_case, make_row

OTHERS = "on its other questions"

# Seconds of an answer of 100 tokens, by method and domain.
SECONDS = {
    "transformers": {"code": 4.0, "sql": 4.0},
    "none": {"code": 3.0, "sql": 3.0},
    "transformers prompt-lookup": {"code": 0.5, "sql": 0.5},
    "recycling": {"code": 2.0, "sql": 1.0},
    "sdsat [k=3]": {"code": 1.25, "sql": 2.0},
    "auto": {"code": 1.0, "sql": 1.0},
    "auto [max_width=4]": {"code": 0.8, "sql": 1.25},
    "auto [max_width=8]": {"code": 1.25, "sql": 1.1},
}


def rows_of(methods: dict[str, dict[str, float]], sampling: str = "greedy") -> list[Row]:
    return [
        make_row(make_case(method, sampling=sampling), domain, number, seconds=seconds)
        for method, domains in methods.items()
        for domain, seconds in domains.items()
        for number in range(3)
    ]


def single_table(rows: list[Row]) -> Table:
    cases = next(iter(summarise(rows).groups().values()))
    return best_single_table(cases, rows)


def test_every_domain_has_its_own_best_drafter() -> None:
    table = single_table(rows_of(SECONDS))
    assert table.headings[1] == "best single drafter"
    # Neither the loops of transformers nor variants of auto are single drafters.
    assert [line[:6] for line in table.lines] == [
        ("code", "sdsat [k=3]", "80.0", "100.0", "8.0", "1.25x [1.25, 1.25]"),
        ("sql", "recycling", "100.0", "100.0", "8.0", "1.00x [1.00, 1.00]"),
        ("mean over domains", "each domain's best", "-", "100.0", "8.0", "1.12x [1.12, 1.12]"),
        (
            "mean over domains",
            f"each domain's best {OTHERS}",
            "-",
            "100.0",
            "8.0",
            "1.12x [1.12, 1.12]",
        ),
        ("mean over domains", "recycling", "75.0", "100.0", "8.0", "1.50x [1.50, 1.50]"),
    ]
    assert [line[6] for line in table.lines] == ["3.00x [3.00, 3.00]"] * 5


def test_the_sweep_compares_with_the_best_fixed_width() -> None:
    rows = rows_of(SECONDS)
    (cases,) = summarise(rows).groups().values()
    table = width_sweep_table(cases, rows, "max_width")
    assert table.headings[1] == "best fixed max_width"
    assert [(line[1], line[5]) for line in table.lines] == [
        ("auto [max_width=4]", "0.80x [0.80, 0.80]"),
        ("auto [max_width=8]", "1.10x [1.10, 1.10]"),
        ("each domain's best", "0.95x [0.95, 0.95]"),
        (f"each domain's best {OTHERS}", "0.95x [0.95, 0.95]"),
        ("auto [max_width=4]", "1.02x [1.02, 1.02]"),
    ]
    assert width_sweep_table(cases, rows, "other").lines == ()


def test_luck_on_a_question_does_not_choose_the_rival_for_it() -> None:
    """Two rivals of equal speed in the end: each is chosen where the other one was lucky."""
    rows = rows_of({"auto": {"code": 1.0}, "recycling": {"code": 1.0}, "sdsat": {"code": 1.0}})
    for row in rows:
        lucky = {"recycling": "code-0", "sdsat": "code-1"}.get(row.case.method)
        if row.question_id == lucky:
            row.turns[0].seconds = 0.5
        if row.case.method == "recycling" and row.question_id == "code-2":
            row.turns[0].seconds = 0.9
    own, fair = single_table(rows).lines[1:3]
    assert own[5].startswith("0.80x"), "recycling, which was the luckier one"
    assert fair[5].startswith("0.97x"), "sdsat, recycling and recycling"


def test_intervals_are_of_questions() -> None:
    rows = rows_of(SECONDS)
    slow = next(row for row in rows if row.case.method == "auto" and row.category == "code")
    slow.turns[0].seconds = 3.0
    first = single_table(rows).lines[0]
    assert first[5].startswith("0.75x [") and "0.75, 0.75" not in first[5]


@pytest.mark.parametrize(
    ("method", "is_failed"), [("recycling", True), ("sdsat [k=3]", True), ("auto", False)]
)
def test_only_questions_that_all_have_answered_count(method: str, is_failed: bool) -> None:
    """A drafter that fails or repeats itself where others are slow would look fast."""
    rows = rows_of(SECONDS)
    for row in (row for row in rows if row.question_id == "code-0"):
        row.turns[0].seconds *= 100 if row.case.method == "auto" else 10
        if row.case.method == method:
            row.error = "x" if is_failed else None
            row.turns[0].num_looping = 0 if is_failed else 90
    assert single_table(rows).lines[0][2:4] == ("80.0", "100.0")


def test_a_drafter_that_fails_nearly_everywhere_is_no_rival() -> None:
    rows = rows_of(SECONDS)
    for row in rows:
        if row.case.method == "recycling" and row.question_id != "sql-1":
            row.error = "x"
    assert {line[1] for line in single_table(rows).lines} == {
        "sdsat [k=3]", "each domain's best", f"each domain's best {OTHERS}"
    }  # fmt: skip


@pytest.mark.parametrize("left", [("none", "recycling"), ("none", "auto")])
def test_nothing_to_compare(left: tuple[str, ...]) -> None:
    assert single_table(rows_of({name: SECONDS[name] for name in left})).lines == ()


def test_without_a_plain_loop() -> None:
    table = single_table(rows_of({name: SECONDS[name] for name in ("auto", "recycling")}))
    assert len(table.headings) == 6
    assert table.lines[0][5] == "2.00x [2.00, 2.00]"


def test_samplings_are_not_mixed() -> None:
    other = {"auto": {"sql": 9.0}, "recycling": {"sql": 9.0}}
    rows = rows_of(SECONDS) + rows_of(other, "T=1")
    assert single_table(rows).lines == single_table(rows_of(SECONDS)).lines


FACTS = {"command": "bench run", "commit": "c" * 40, "cpu": "x", "num_threads": 1}
FACTS |= {"torch": "2", "transformers": "5"}
ABOUT = {"num_threads": 1, "torch": "2", "num_rounds": 3, "noise": 0, "load": 0, "date": "x"}


@pytest.mark.parametrize(
    ("kind", "expected"),
    [
        ("auto", "| code | sdsat [k=3] | 80.0 | 100.0 |"),
        ("widths", "| code | auto [max_width=4] | 125.0 | 100.0 |"),
        ("prices", "| 4 | 3.00 (3.00) |"),
    ],
)
def test_blocks_of_the_pages(tmp_path: Path, kind: str, expected: str) -> None:
    prices = PriceList.from_points({(1, 9, 1): 0.001, (4, 9, 1): 0.003}, facts=ABOUT)
    run = tmp_path / "run"
    run.mkdir()
    append_lines(run / "sessions.jsonl", [{**FACTS, PRICES: prices.to_dict()}])
    for row in rows_of(SECONDS):
        append_row(run, row)
    text = f"<!-- benchmark: {kind} run -->\nold\n<!-- /benchmark -->"
    new = tables.rendered(text, tmp_path)
    assert expected in new and "old" not in new
    assert tables.rendered(new, tmp_path) == new
    if kind == "prices":
        (run / "sessions.jsonl").unlink()
        append_lines(run / "sessions.jsonl", [FACTS])
        with pytest.raises(ArtifactError, match="before sessions had a price list"):
            tables.rendered(text, tmp_path)
