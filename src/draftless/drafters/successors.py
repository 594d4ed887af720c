"""What the target said after tokens, and after pairs of them, in this request and earlier ones (2408.08696).

Greedy and sampled requests, at any temperature, share one memory: it holds logits. What they make of
it is theirs (`near_top`, and the noise of a place).
"""

from __future__ import annotations

from array import array
from collections.abc import Sequence

import torch

from draftless.drafters.fusion import AFTER_PAIR, AFTER_TOKEN, Found
from draftless.drafters.near_top import NUM_SHARED, shares_near_top
from draftless.engine.likeliest import likeliest
from draftless.types import Noise

NUM_LIKELY = 16
"""Tokens that are kept of a node; under the noise of a place they compete."""

MOST_ENTRIES = 1 << 16  # of each of two generations; see ADR 8 for what they take


class Said:
    """The likeliest tokens at a node, and their logits: as numbers in a row, for many are kept.

    Args:
        ids: the likeliest first.
        logits: theirs.
    """

    __slots__ = ("_ids", "_logits")

    def __init__(self, ids: Sequence[int], logits: Sequence[float]) -> None:
        self._ids, self._logits = array("i", ids), array("f", logits)

    def shares(self, least: float) -> Found:
        """The tokens and their share cells."""
        return shares_near_top(self._ids[:NUM_SHARED], self._logits[:NUM_SHARED], least)

    def shares_under(self, noise: Noise, position: int, temperature: float, least: float) -> Found:
        """The same under the noise of a position, for logits over a temperature."""
        ids, logits = self._ids.tolist(), self._logits.tolist()
        best = noise.ranked(ids, logits, position, temperature, NUM_SHARED)
        return shares_near_top(*best, least)


def said_at(logits: torch.Tensor) -> list[Said]:
    """What the nodes of a step say, of their logits `[N, V]`."""
    ids, likely = likeliest(logits, NUM_LIKELY)
    return list(map(Said, ids.tolist(), likely.tolist()))


class Successors:
    """Entries by token and by pair; of two generations, so that the oldest half is forgotten at once.

    Args:
        most_entries: of one generation.
    """

    def __init__(self, most_entries: int = MOST_ENTRIES) -> None:
        self._most_entries = most_entries
        self._new: dict[int | tuple[int, int], Said] = {}
        self._old: dict[int | tuple[int, int], Said] = {}

    def learn(self, before: int, token_id: int, said: Said) -> None:
        """The target said this after `token_id`, which stood after `before` (-1: after nothing)."""
        if len(self._new) >= self._most_entries:
            self._old, self._new = self._new, {}
        self._new[token_id] = self._new[before, token_id] = said

    def after(self, before: int, token_id: int) -> tuple[Said | None, int]:
        """What is known, after the pair or else after the token alone, and the first of its cells."""
        pair = before, token_id
        found = self._new.get(pair) or self._old.get(pair)
        if found is not None:
            return found, AFTER_PAIR
        return self._new.get(token_id) or self._old.get(token_id), AFTER_TOKEN
