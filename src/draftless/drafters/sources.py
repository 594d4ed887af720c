"""What one request knows about its next tokens: retrieval, recycled successors, and what lies ahead.

- Retrieved: what followed this context in prompt and output, the longest context first; several
  contexts may name several tokens.
- Recycled (arXiv 2408.08696): what the target said after these last two tokens before, or else after
  the last one. The table of pairs is what makes candidates per depth depend on the token before.
- Ahead: what the target said about this place already, at an adaptive token (arXiv 2403.18647), or else
  at a rejected draft (arXiv 2406.17404).

Greedy, shares are those of the logits. Sampled, they are shares under the keyed noise of their
positions, as everywhere (`common.competing`).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from draftless.drafters.fusion import (
    MAX_ORDER,
    NONE,
    Found,
    denoised_cells,
    probed_cells,
    retrieved_cell,
)
from draftless.drafters.jacobi import leftover_nodes
from draftless.drafters.near_top import NUM_SHARED, shares_near_top
from draftless.drafters.successors import Said, Successors, said_at
from draftless.drafters.suffix_index import State, SuffixIndex
from draftless.types import DraftTree, Row, StepRecord

LEAST_GREEDY, LEAST_COUPLED = 0.07, 0.03  # of a share; what lies lower is seldom right
MOST_RETRIEVED = 3  # tokens
AHEAD = 5  # depths


class Sources:
    """The memory of one request.

    Args:
        row: the request.
        successors: to learn from and to add to; other requests may do the same.

    Attributes:
        index: what followed each context of the text.
        ahead: candidates for depths 1, 2, ... of the next tree.
        slots: of the probes that named the first of them.
    """

    def __init__(self, row: Row, successors: Successors) -> None:
        self._row = row
        self._successors = successors
        self.index = SuffixIndex(MAX_ORDER)
        self.index.extend(row.token_ids)
        self.ahead: list[Found] = []  # of depths 1, 2, ...
        self.slots: list[int] = []  # of the probes that spoke for the first of them
        params = row.params
        self._noise = row.noise
        self._is_truncated = params.is_truncated
        self._share = LEAST_COUPLED if self._noise is not None else LEAST_GREEDY

    def look(self) -> int:
        """Take in text of steps that were not observed; what was said ahead stands elsewhere then.

        Returns:
            How many tokens at the text's end stand in it before.
        """
        if self.index.extend(self._row.token_ids):
            self.ahead, self.slots = [], []
        return len(self.index.state) - 1

    @property
    def context(self) -> State:
        """Of the end of the text."""
        return self.index.state

    @property
    def end(self) -> tuple[int, int]:
        """The last token of the text and the one before it (-1 if there is none)."""
        token_ids = self._row.token_ids
        return token_ids[-1], token_ids[-2] if len(token_ids) > 1 else -1

    def found(self, context: State, before: int, token_id: int, depth: int) -> tuple[Found, int]:
        """Candidates for a place `depth` tokens behind the text's last one, and what counts none.

        Args:
            context: of the path up to and with `token_id`.
            before: the token before that one (-1 if there is none).
            token_id: what the candidates would follow.
            depth: their distance from the text's last token.
        """
        found, order = self._retrieved(context, depth)
        speaks = 0 if not order else 1 if order == 1 else 2
        said, first = self._successors.after(before, token_id)
        if said is not None:
            speaks += 3
            near = (
                self._under_noise(said, depth)
                if self._noise is not None
                else said.shares(self._share)
            )
            found += [(candidate, cell + first) for candidate, cell in near]
        if depth <= len(self.ahead):
            speaks += 6
            found += self.ahead[depth - 1]
        return found, NONE + speaks

    def _retrieved(self, context: State, depth: int) -> tuple[Found, int]:
        """Retrieved candidates and the longest context that had any."""
        found: Found = []
        seen: list[int] = []
        longest = 0
        followers = self.index.followers
        for order in range(len(context) - 1, 0, -1):
            below = followers[context[order]]
            if len(below) <= len(seen):
                continue  # nothing new: what follows a context follows a shorter one, too
            longest = longest or order
            kind = len(below) > 1
            for place, token_id in enumerate(reversed(below)):
                if token_id not in seen:
                    seen.append(token_id)
                    found.append((token_id, retrieved_cell(order, place, kind)))
                if place:
                    break
            if len(seen) >= MOST_RETRIEVED:
                break
        if self._noise is not None and found:
            values = self._noise.few(self._position(depth), seen)
            found = [
                (token_id, cell - cell % 4 + _noise_kind(value))
                for (token_id, cell), value in zip(found, values, strict=True)
            ]
        return found, longest

    def _under_noise(self, said: Said, depth: int) -> Found:
        assert self._noise is not None
        position, temperature = self._position(depth), self._row.params.temperature
        return said.shares_under(self._noise, position, temperature, self._share)

    def _position(self, depth: int) -> int:
        """Of a place `depth` tokens behind the text's last one."""
        return len(self._row.token_ids) + depth - 1

    def observe(
        self, record: StepRecord, slots: Sequence[tuple[int, int]], num_drafts: int
    ) -> None:
        """Take in the committed tokens and what the target said.

        Args:
            record: of the step.
            slots: probes that speak for depths 1, 2, ... of the next tree, and their slots.
            num_drafts: nodes of the tree that are no probes; they stand first.
        """
        row, tree, path = record.row, record.tree, record.verdict.path
        self.index.extend(row.token_ids)
        leftover = leftover_nodes(tree.parents[:num_drafts], path[-1])[len(slots) : AHEAD]
        ahead = [*(node for node, _ in slots), *leftover]
        firsts = [probed_cells(slot) for _, slot in slots]
        firsts += [denoised_cells(depth) for depth in range(len(slots) + 1, len(ahead) + 1)]
        assert record.logits is not None
        said = said_at(record.logits)
        self.slots = [slot for _, slot in slots]
        place = len(row.token_ids) - len(record.verdict.token_ids) - 2
        self._recycle(tree, said, num_drafts, row.token_ids[place] if place >= 0 else -1)
        if self._noise is not None:
            near = self._ahead(said, record.logits, ahead)
        else:
            near = [said[node].shares(self._share) for node in ahead]
        self.ahead = [
            [(token_id, cell + first) for token_id, cell in found]
            for found, first in zip(near, firsts, strict=True)
        ]

    def _recycle(
        self, tree: DraftTree, said: Sequence[Said], num_drafts: int, before_root: int
    ) -> None:
        """Keep what the target said after the root and the drafts."""
        token_ids, parents, learn = tree.token_ids, tree.parents, self._successors.learn
        for node in range(num_drafts):
            before = token_ids[parents[node]] if node else before_root
            learn(before, token_ids[node], said[node])

    def _ahead(
        self, said: Sequence[Said], logits: torch.Tensor, nodes: Sequence[int]
    ) -> list[Found]:
        """What some nodes say about depths 1, 2, ... of the next tree under the noise there."""
        if self._is_truncated:
            return [self._under_noise(said[node], 1 + place) for place, node in enumerate(nodes)]
        if not nodes:
            return []
        assert self._noise is not None
        first, temperature = len(self._row.token_ids), self._row.params.temperature
        places = range(first, first + len(nodes))
        ids, scores = self._noise.likeliest(logits, nodes, places, temperature, NUM_SHARED)
        return [
            shares_near_top(row, of_row, self._share)
            for row, of_row in zip(ids.tolist(), scores.tolist(), strict=True)
        ]


def _noise_kind(noise: float) -> int:
    """Lucky tokens are drawn though they are unlikely."""
    return 0 if noise < 0.5 else 1 if noise < 2.0 else 2 if noise < 3.5 else 3
