"""Repeats are counted; ordinary text is not."""

from __future__ import annotations

import pytest

from draftless.loops import looping_tokens


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (list(range(50)), 0),
        ([1] * 20, 20),
        ([1] * 7, 0),  # short repeats are language, not loops
        ([5, 6, *[1, 2, 3] * 4, 9], 12),
        ([*range(8), *range(8)], 16),
        ([*range(9), *range(9)], 0),  # period 9
        ([*range(100, 110), *[1, 2] * 4, *range(10), *[7] * 9], 17),
        ([1], 0),
        ([], 0),
    ],
)
def test_looping_tokens(ids: list[int], expected: int) -> None:
    assert looping_tokens(ids) == expected
