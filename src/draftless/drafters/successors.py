"""What the target said after tokens, and after pairs of them, in this request and earlier ones (2408.08696).

Greedy and sampled requests, at any temperature, share one memory: it holds logits. What they make of
it is theirs (`near_top`, and the noise of a place).
"""

from __future__ import annotations

import torch

from draftless.drafters.fusion import AFTER_PAIR, AFTER_TOKEN, Found
from draftless.drafters.near_top import NUM_SHARED, shares_near_top
from draftless.engine.likeliest import likeliest
from draftless.types import Noise

NUM_LIKELY = 16
"""Tokens that are kept of a node; under the noise of a place they compete."""

MOST_ENTRIES = 1 << 16  # of each of two generations; an entry takes some 300 bytes


class Said:
    """The likeliest tokens at the nodes of one step, and their logits.

    Args:
        logits: `[N, V]`; they are not kept.
    """

    __slots__ = ("_ids", "_logits", "_shares")

    def __init__(self, logits: torch.Tensor) -> None:
        self._ids, self._logits = likeliest(logits, NUM_LIKELY)  # [N, n], the likeliest first
        self._shares: dict[int, Found] = {}

    def shares(self, node: int, least: float) -> Found:
        """Tokens of a node and their share cells; computed once, for the first `least` asked for."""
        known = self._shares.get(node)
        if known is None:
            ids, logits = (
                self._ids[node, :NUM_SHARED].tolist(),
                self._logits[node, :NUM_SHARED].tolist(),
            )
            known = self._shares[node] = shares_near_top(ids, logits, least)
        return known

    def shares_under(
        self, node: int, noise: Noise, position: int, temperature: float, least: float
    ) -> Found:
        """The same under the noise of a position, for logits over a temperature."""
        ids, logits = self._ids[node].tolist(), self._logits[node].tolist()
        best = noise.ranked(ids, logits, position, temperature, NUM_SHARED)
        return shares_near_top(*best, least)


Entry = tuple[Said, int]
"""What was said at a node."""


class Successors:
    """Entries by token and by pair; of two generations, so that the oldest half is forgotten at once.

    Args:
        most_entries: of one generation.
    """

    def __init__(self, most_entries: int = MOST_ENTRIES) -> None:
        self._most_entries = most_entries
        self._new: dict[int | tuple[int, int], Entry] = {}
        self._old: dict[int | tuple[int, int], Entry] = {}

    def learn(self, before: int, token_id: int, entry: Entry) -> None:
        """The target said this after `token_id`, which stood after `before` (-1: after nothing)."""
        if len(self._new) >= self._most_entries:
            self._old, self._new = self._new, {}
        self._new[token_id] = self._new[before, token_id] = entry

    def after(self, before: int, token_id: int) -> tuple[Entry | None, int]:
        """What is known, after the pair or else after the token alone, and the first of its cells."""
        pair = before, token_id
        found = self._new.get(pair) or self._old.get(pair)
        if found is not None:
            return found, AFTER_PAIR
        return self._new.get(token_id) or self._old.get(token_id), AFTER_TOKEN
