"""Loops: text that repeats itself. Drafts of it always fit, so it flatters every drafter."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

LOOP_PERIOD = 8
LOOP_LIMIT = 0.5
"""A text with a larger share of its tokens inside repeats is a loop."""


def looping_tokens(ids: Sequence[int], period: int = LOOP_PERIOD) -> int:
    """How many tokens lie in repeats: two copies or more of `period` tokens or fewer, 8 at least."""
    inside = np.zeros(len(ids), dtype=bool)
    tokens = np.asarray(ids)
    for step in range(1, min(period, len(ids) - 1) + 1):
        equal = np.concatenate(([False], tokens[step:] == tokens[:-step], [False]))
        edges = np.flatnonzero(np.diff(equal.astype(np.int8)))
        for begin, end in edges.reshape(-1, 2):  # the copies start `step` earlier
            if end - begin + step >= max(2 * step, period):
                inside[begin : end + step] = True
    return int(inside.sum())
