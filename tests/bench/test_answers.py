"""The sentence in all its cases, and what must be said beside it."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from draftless.bench.answers import Answer, answers
from draftless.bench.rows import Margin, Row
from draftless.bench.summary import summarise
from support.synthetic_run import NUM, PLAIN, make_case, make_row, rows_of


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
