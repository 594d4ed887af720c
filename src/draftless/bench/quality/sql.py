"""SQL: is the query the same, in writing or in what it finds?"""

from __future__ import annotations

import re

from draftless.bench.quality.sql_execution import equal_results
from draftless.bench.quality.text import fenced_block

# Strings and quoted names (kept as they are), numbers and names, operators, anything else.
_TOKEN = re.compile(r"'(?:[^']|'')*'|\"(?:[^\"]|\"\")*\"|[\w.]+|<>|!=|<=|>=|==|\|\||\S")
_SAME = {"<>": "!=", "==": "="}


def score(output: str, reference: str, prompt: str) -> dict[str, bool | None]:
    """Whether the answer is the reference.

    Args:
        output: what the model wrote: a query, or text with one in a Markdown fence.
        reference: the query asked for.
        prompt: with the table's header, `Table: name(column, column)`.

    Returns:
        `sql_exact`: equal after normalisation; `sql_executes`: equal results on made-up tables,
        None where that cannot be told.
    """
    query = query_of(output)
    return {
        "sql_exact": normalise(query) == normalise(reference),
        "sql_executes": equal_results(query, reference, prompt),
    }


def query_of(output: str) -> str:
    """The query in an answer: the first fenced block, else all of it."""
    block = fenced_block(output)
    return (output if block is None else block).strip()


def normalise(query: str) -> list[str]:
    """Tokens of a query: case, spaces, the final `;` and spellings of operators do not count."""
    tokens = [
        token if token[0] in "'\"" else _SAME.get(token, token.lower())
        for token in _TOKEN.findall(query)
    ]
    while tokens and tokens[-1] == ";":
        tokens.pop()
    return tokens
