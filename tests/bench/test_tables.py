"""Tables that the report does not show: a sweep."""

from __future__ import annotations

import pytest

from draftless.bench.rows import Row, method_name, parse_method
from draftless.bench.summary import summarise
from draftless.bench.tables import sweep_table
from support.synthetic_run import make_case, make_row


@pytest.mark.parametrize("options", [{}, {"k": 5}, {"steps": 2, "k": 13, "couple": False}])
def test_a_method_is_parsed_as_it_was_named(options: dict[str, object]) -> None:
    name = method_name("tr-jacobi", options)
    assert parse_method(name) == ("tr-jacobi", {key: str(v) for key, v in options.items()})


def swept(method: str, category: str, accepted: int) -> Row:
    row = make_row(make_case(method), category, 0, steps=20)
    (turn,) = row.turns
    turn.step_tokens, turn.step_drafted = [1, 1 + accepted] * 10, [0, 5] * 10
    return row


def test_a_sweep_shows_each_value_on_each_category() -> None:
    rows = [make_row(make_case("none"), category, 0) for category in ("code", "sql")]
    for k in (1, 2, 10):
        rows.append(swept(f"sdsat [steps=2, k={k}]", "sql", min(k, 3)))
        rows.append(swept(f"sdsat [steps=2, k={k}]", "code", 1))
    rows += [swept("sdsat [k=2]", "sql", 2), swept("sdsat [steps=2]", "sql", 5)]
    (cases,) = summarise(rows).groups().values()
    table = sweep_table(cases, "k")
    assert table.headings == ("method", "k", "code", "sql", "mean")
    assert table.lines == (
        ("sdsat [steps=2]", "1", "1.00", "1.00", "1.00"),
        ("sdsat [steps=2]", "2", "1.00", "2.00", "1.50"),
        ("sdsat [steps=2]", "10", "1.00", "3.00", "2.00"),
        ("sdsat", "2", "-", "2.00", "2.00"),
    )
