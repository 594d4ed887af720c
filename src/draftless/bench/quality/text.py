"""What an answer says once the packing is off."""

from __future__ import annotations

import re

_FENCE = re.compile(r"```[^\n`]*\n(.*?)(?:\n?```|\Z)", re.DOTALL)


def fenced_block(text: str) -> str | None:
    """Content of the first block between Markdown fences (an open one counts), or None."""
    found = _FENCE.search(text)
    return found[1] if found else None
