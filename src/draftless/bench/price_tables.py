"""The price list as tables: milliseconds, and in brackets how many times a pass of one token.

That pass, T(1), has one row and as many cached tokens as the cell.
"""

from __future__ import annotations

from draftless.bench.tables import Table
from draftless.prices import PriceList

_SHOWN_WIDTHS = (1, 4, 16)  # where there are several rows


def width_table(prices: PriceList) -> Table:
    """T(W) of one row: a line per width, a column per cached length."""
    rows = prices.rows[0]
    lines = [
        (str(width), *(_cell(prices, width, length, rows) for length in prices.lengths))
        for width in prices.widths
    ]
    headings = ("width", *(f"{length} cached, ms" for length in prices.lengths))
    return Table(headings, tuple(lines))


def rows_table(prices: PriceList) -> Table:
    """T(W, B) of batches at the middle length; no lines without them."""
    length = prices.lengths[len(prices.lengths) // 2]
    lines = [
        (str(rows), *(_cell(prices, width, length, rows) for width in _SHOWN_WIDTHS))
        for rows in prices.rows[1:]
    ]
    headings = (f"rows, {length} cached", *(f"width {width}, ms" for width in _SHOWN_WIDTHS))
    return Table(headings, tuple(lines))


def measured_on(prices: PriceList) -> str:
    """Machine, dtype and noise in one line."""
    facts = prices.facts
    compiled = "compiled" if prices.is_compiled else "eager"
    return (
        f"{prices.hardware}, {facts['num_threads']} threads, {prices.dtype}, {compiled}, "
        f"torch {facts['torch']}; {facts['num_rounds']} rounds, noise {facts['noise']:.1%}, "
        f"load {facts['load']:.1f}, {facts['date']}"
    )


def _cell(prices: PriceList, width: int, length: int, rows: int) -> str:
    seconds = prices.forward_s(width, length, rows)
    one = prices.forward_s(1, length, prices.rows[0])
    return f"{1000 * seconds:.2f} ({seconds / one:.2f})"
