"""Tables of reports on a terminal."""

from __future__ import annotations

from typing import TYPE_CHECKING

from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from draftless.bench import tables


def shown(own: tables.Table) -> Table:
    """A table of a report for the terminal."""
    table = Table(box=None, padding=(0, 1), pad_edge=False)
    for place, heading in enumerate(own.headings):
        is_name = place < own.num_names
        table.add_column(
            heading, justify="left" if is_name else "right", no_wrap=not is_name, overflow="fold"
        )
    for line in own.lines:
        table.add_row(*map(Text, line))
    return table
