"""Prompt lookup: the draft is what followed the longest earlier match of the text's end.

Source: prompt lookup decoding (A. Saxena, 2023), as retrieval also used by TR-Jacobi (2406.17404).
Differs from `transformers`' prompt lookup: the longest suffix wins before shorter ones are tried,
the newest match before older ones, and the index is incremental (a step costs its new tokens).
"""

from __future__ import annotations

from collections.abc import Sequence
from weakref import WeakKeyDictionary

from draftless.drafters.common import check_least
from draftless.errors import ConfigError
from draftless.types import DraftPasses, DraftTree, Row, StepRecord

RETRIEVAL = "retrieval"  # the name of this source in `DraftTree.sources`


class NgramIndex:
    """Where each n-gram of a growing text was last followed by something."""

    def __init__(self, max_ngram: int, min_ngram: int = 1) -> None:
        self._lengths = range(max_ngram, min_ngram - 1, -1)
        self._ends: dict[tuple[int, ...], int] = {}
        self._num_indexed = 0

    def continuation(self, token_ids: Sequence[int], count: int) -> list[int]:
        """Up to `count` tokens after the newest earlier match of the longest suffix."""
        return self.match(token_ids, count)[0]

    def match(self, token_ids: Sequence[int], count: int) -> tuple[list[int], int]:
        """Up to `count` tokens after the newest earlier match of the longest suffix, and its length.

        Where the match lies so near the end that fewer tokens follow, what follows is read on
        into the continuation itself: a text with period `p` goes on with period `p`.
        """
        self._index(token_ids)
        for length in self._lengths:
            if length >= len(token_ids):
                continue
            end = self._ends.get(tuple(token_ids[-length:]))
            if end is not None:
                return self._read(token_ids, end, count), length
        return [], 0

    def _index(self, token_ids: Sequence[int]) -> None:
        """Add the n-grams that end before the last token; the newest end wins."""
        for end in range(self._num_indexed, len(token_ids) - 1):
            for length in self._lengths:
                if length <= end + 1:
                    self._ends[tuple(token_ids[end + 1 - length : end + 1])] = end
        self._num_indexed = max(self._num_indexed, len(token_ids) - 1)

    @staticmethod
    def _read(token_ids: Sequence[int], end: int, count: int) -> list[int]:
        found = list(token_ids[end + 1 : end + 1 + count])
        period = len(found)
        while len(found) < count:
            found.append(found[len(found) - period])
        return found


class PromptLookupDrafter:
    """Drafts one chain by n-gram lookup; no forward pass of its own.

    Args:
        num_draft_tokens: longest chain.
        max_ngram: longest suffix that is looked up.
        min_ngram: shortest suffix; below it there is no draft.
    """

    def __init__(self, num_draft_tokens: int = 10, max_ngram: int = 3, min_ngram: int = 1) -> None:
        check_least("prompt-lookup", num_draft_tokens=(num_draft_tokens, 1))
        if not 1 <= min_ngram <= max_ngram:
            raise ConfigError(f"need 1 <= min_ngram <= max_ngram, got {min_ngram} and {max_ngram}")
        self._num_draft_tokens = num_draft_tokens
        self._ngrams = (max_ngram, min_ngram)
        self._indexes: WeakKeyDictionary[Row, NgramIndex] = WeakKeyDictionary()

    def reset(self, row: Row) -> None:
        self._indexes[row] = NgramIndex(*self._ngrams)

    def propose(self, rows: Sequence[Row], _: DraftPasses) -> list[DraftTree]:
        return [DraftTree.chain([row.token_ids[-1], *self._draft(row)], RETRIEVAL) for row in rows]

    def _draft(self, row: Row) -> list[int]:
        count = min(self._num_draft_tokens, row.max_depth)
        return self._indexes[row].continuation(row.token_ids, count) if count else []

    def observe(self, records: Sequence[StepRecord]) -> None:
        """Nothing to learn: the committed text is the memory."""


class NullDrafter:
    """Plain decoding: the root alone. The AR baseline is this drafter in the same loop."""

    def reset(self, row: Row) -> None:
        """No state."""

    def propose(self, rows: Sequence[Row], _: DraftPasses) -> list[DraftTree]:
        return [DraftTree.chain(row.token_ids[-1:]) for row in rows]

    def observe(self, records: Sequence[StepRecord]) -> None:
        """Nothing to learn."""
