"""What followed each context of a growing text: a trie of its n-grams, read from the newest on.

Where `NgramIndex` finds one continuation of the text's end, this finds all of them, for the text's end
and for any draft behind it: the state of a path is the list of its known contexts, and a token leads
from one state to the next. An appended token costs one entry per order.
"""

from __future__ import annotations

from collections.abc import Sequence

State = tuple[int, ...]
"""Trie nodes of the contexts of 0, 1, 2, ... last tokens, as far as the text holds them."""


class SuffixIndex:
    """The n-grams of a text up to `max_order` tokens of context, with what followed them.

    Attributes:
        followers: per trie node the tokens that followed its context, each with the node of the
            context with that token (0 where that one is too long), the newest last.
        state: of the end of the text.
    """

    def __init__(self, max_order: int) -> None:
        self._max_order = max_order
        self._num_indexed = 0
        self.followers: list[dict[int, int]] = [{}]
        self.state: State = (0,)

    def extend(self, token_ids: Sequence[int]) -> int:
        """Take in what was appended to the text since the last call; returns how many tokens."""
        followers, state, longest = self.followers, self.state, self._max_order
        new_ids = token_ids[self._num_indexed :]
        for token_id in new_ids:
            grown = [0]
            for order, node in enumerate(state):
                below = followers[node]
                child = below.pop(token_id, -1)
                if child < 0:
                    child = len(followers) if order < longest else 0
                    if child:
                        followers.append({})
                below[token_id] = child  # at the end: the newest
                if child:
                    grown.append(child)
            state = tuple(grown)
        self._num_indexed = len(token_ids)
        self.state = state
        return len(new_ids)

    def after(self, state: State, token_id: int) -> State:
        """The state of a path with one more token."""
        followers = self.followers
        grown = [0]
        for node in state:
            child = followers[node].get(token_id, 0)
            if not child:
                break
            grown.append(child)
        return tuple(grown)
