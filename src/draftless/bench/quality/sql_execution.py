"""Two queries on made-up tables: do they find the same?

The prompt names a table and its columns. We make several small tables in memory, whose rows hold the
literals of both queries, values around them and values that occur nowhere else. A row that meets a
query's conditions stands beside rows that miss it in one column each, so that a wrong column, a
wrong operator or a missing condition shows. Equal results mean equal on all these tables; two
queries that differ only on tables of another kind are taken for equal.
"""

from __future__ import annotations

import contextlib
import random
import re
import sqlite3
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

_HEADER = re.compile(r"Table:\s*(\w+)\s*\(([^()]*)\)")
_LITERAL = re.compile(r"'((?:[^']|'')*)'|(?<![\w.'])(-?\d+(?:\.\d+)?)(?![\w.'])")
_CONDITION = re.compile(
    r"(\w+)\s*(=|<=|>=|<>|!=|<|>)\s*(?:'((?:[^']|'')*)'|(-?\d+(?:\.\d+)?)(?![\w.]))"
)
_NUM_TABLES = 8
_NUM_FREE_ROWS = 20
_MAX_RESULTS = 10_000
_MAX_TEXT_BYTES = 100_000
_TIME_LIMIT_S = 1.0
_STEPS_BETWEEN_LOOKS = 1000
_READS = {
    sqlite3.SQLITE_SELECT,
    sqlite3.SQLITE_READ,
    sqlite3.SQLITE_FUNCTION,
    sqlite3.SQLITE_RECURSIVE,
}

Value = str | int | float | None
Result = Counter[tuple[Any, ...]] | list[tuple[Any, ...]]


@dataclass(frozen=True)
class Table:
    """A table as the prompt names it."""

    name: str
    columns: tuple[str, ...]


def table_of(prompt: str) -> Table | None:
    """The table in the prompt, or None if none is named, or not in plain names."""
    found = _HEADER.search(prompt)
    if not found:
        return None
    columns = [column.strip() for column in found[2].split(",")]
    is_plain = all(re.fullmatch(r"[A-Za-z_]\w*", name) for name in (found[1], *columns))
    is_unique = len({name.lower() for name in columns}) == len(columns)
    return Table(found[1], tuple(columns)) if is_plain and is_unique else None


def equal_results(query: str, reference: str, prompt: str) -> bool | None:
    """Whether both queries find the same on every made-up table.

    Rows count as often as they are found, in any order unless the reference has `ORDER BY`.

    Returns:
        None if the prompt names no table, the reference does not run on it, or it finds nothing
        on any of the tables, so that equal results would mean nothing.
    """
    table = table_of(prompt)
    if table is None:
        return None
    is_ordered = re.search(r"\border\s+by\b", reference, re.IGNORECASE) is not None
    is_equal, finds = True, False
    for number in range(_NUM_TABLES):
        with contextlib.closing(_database(table, (reference, query), number)) as database:
            wanted = _run(database, reference, is_ordered)
            if wanted is None:
                return None
            finds = finds or any(value is not None for row in wanted for value in row)
            is_equal = is_equal and _run(database, query, is_ordered) == wanted
    return is_equal if finds else None


def _run(database: sqlite3.Connection, query: str, is_ordered: bool) -> Result | None:
    """What a query finds; None if it fails, takes too long or finds too much."""
    deadline = time.monotonic() + _TIME_LIMIT_S
    database.set_progress_handler(lambda: time.monotonic() > deadline, _STEPS_BETWEEN_LOOKS)
    try:
        found = database.execute(query).fetchmany(_MAX_RESULTS + 1)
    except (sqlite3.Error, sqlite3.Warning, ValueError, OverflowError, UnicodeError):
        return None
    if len(found) > _MAX_RESULTS:
        return None
    rows = [tuple(_rounded(value) for value in row) for row in found]
    return rows if is_ordered else Counter(rows)


def _rounded(value: Value) -> Value:
    """Sums depend a little on the order of rows, and 2.0 is 2."""
    return float(f"{value:.9g}") if isinstance(value, int | float) else value


def _database(table: Table, queries: Sequence[str], number: int) -> sqlite3.Connection:
    """The table in memory, with rows that depend on the queries and the number alone.

    Columns are NUMERIC: then `year = '2004'` finds what `year = 2004` finds, as in databases with
    typed columns.
    """
    database = sqlite3.connect(":memory:")
    columns = ", ".join(f'"{column}" NUMERIC' for column in table.columns)
    database.execute(f'CREATE TABLE "{table.name}" ({columns})')
    rows = _rows(table, queries, number)
    marks = ", ".join("?" * len(table.columns))
    database.executemany(f'INSERT INTO "{table.name}" VALUES ({marks})', rows)
    database.commit()
    database.setlimit(sqlite3.SQLITE_LIMIT_LENGTH, _MAX_TEXT_BYTES)
    database.setlimit(sqlite3.SQLITE_LIMIT_ATTACHED, 0)
    # The model's query may read and nothing else.
    database.set_authorizer(
        lambda action, *_: sqlite3.SQLITE_OK if action in _READS else sqlite3.SQLITE_DENY
    )
    return database


def _rows(table: Table, queries: Sequence[str], number: int) -> list[list[Value]]:
    generator = random.Random(f"{number} {table} {list(queries)}")
    made = _MadeUp(generator, is_numeric=number % 2 == 0, has_nulls=number % 4 >= 2)
    # Literals in every column unmask a wrong column, but they hide what MIN and MAX look at.
    literals = [one for query in queries for one in _literals(query)] if number % 8 < 4 else []
    rows = []
    for query in queries:
        conditions = _conditions(query, table)
        for _ in range(3):
            rows.append(_meeting(conditions, table, made))
        for missed in table.columns:  # one column is something else, each in turn
            row = _meeting(conditions, table, made)
            row[table.columns.index(missed)] = made.near(conditions.get(missed.lower(), []))
            rows.append(row)
    for _ in range(_NUM_FREE_ROWS):
        rows.append([made.one_of(literals) for _ in table.columns])
    generator.shuffle(rows)
    return rows


def _literals(query: str) -> list[Value]:
    return [
        _number(number) if number else text.replace("''", "'")
        for text, number in _LITERAL.findall(query)
    ]


def _conditions(query: str, table: Table) -> dict[str, list[tuple[str, Value]]]:
    """Comparisons with a literal, by lower-case column: (operator, value)."""
    known = {column.lower() for column in table.columns}
    conditions: dict[str, list[tuple[str, Value]]] = {}
    for column, operator, text, number in _CONDITION.findall(query):
        if column.lower() in known:
            value = _number(number) if number else text.replace("''", "'")
            conditions.setdefault(column.lower(), []).append((operator, value))
    return conditions


def _number(digits: str) -> int | float:
    return float(digits) if "." in digits else int(digits[:18])  # SQLite's integers have 64 bits


def _meeting(
    conditions: dict[str, list[tuple[str, Value]]], table: Table, made: _MadeUp
) -> list[Value]:
    """A row that meets one condition of every column."""
    return [made.meeting(conditions.get(column.lower(), [])) for column in table.columns]


class _MadeUp:
    """Values for rows."""

    def __init__(self, generator: random.Random, *, is_numeric: bool, has_nulls: bool) -> None:
        self._generator = generator
        self._is_numeric = is_numeric
        self._has_nulls = has_nulls

    def fresh(self) -> Value:
        """A value that occurs nowhere else, as good as surely; sometimes NULL."""
        if self._has_nulls and self._generator.random() < 0.15:
            return None
        number = self._generator.randrange(10_000, 100_000)
        return number if self._is_numeric else f"made up {number}"

    def meeting(self, conditions: list[tuple[str, Value]]) -> Value:
        """A value that meets one of these conditions."""
        if not conditions:
            return self.fresh()
        operator, value = self._generator.choice(conditions)
        if operator in ("=", "<=", ">="):
            return value
        if operator in ("<>", "!="):
            return self.fresh()
        return self._beside(value, 1 if operator == ">" else -1)

    def near(self, conditions: list[tuple[str, Value]]) -> Value:
        """A value at the border of one of these conditions, on either side."""
        if not conditions:
            return self.fresh()
        _, value = self._generator.choice(conditions)
        return self._generator.choice([value, self._beside(value, 1), self._beside(value, -1)])

    def one_of(self, values: Sequence[Value]) -> Value:
        """One of the values, or a fresh one."""
        return (
            self._generator.choice(values)
            if values and self._generator.random() < 0.5
            else self.fresh()
        )

    def _beside(self, value: Value, direction: int) -> Value:
        """A value above or below in SQLite's order."""
        if isinstance(value, int | float):
            return value + direction * self._generator.randrange(1, 4)
        text = str(value)
        return text + " z" if direction > 0 else text[:-1]
