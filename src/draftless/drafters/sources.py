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

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from draftless.drafters.fusion import (
    AFTER_PAIR,
    AFTER_TOKEN,
    MAX_ORDER,
    NONE,
    Found,
    denoised_cells,
    probed_cells,
    retrieved_cell,
)
from draftless.drafters.jacobi import leftover_nodes
from draftless.drafters.near_top import likeliest, shares_near_top
from draftless.drafters.suffix_index import State, SuffixIndex
from draftless.types import DraftTree, Row, StepRecord

_LEAST_GREEDY, _LEAST_COUPLED = 0.07, 0.03  # of a share; what lies lower is seldom right
_LIKELY, _LIKELY_TRUNCATED = 32, 32  # successors that compete under the noise
_MOST_RETRIEVED = 3  # tokens
_AHEAD = 5  # depths

Scores = npt.NDArray[np.float32]
Ids = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class Entry:
    """Successors that the target named once: with cells, or still without the noise of a place.

    Attributes:
        found: tokens and cells, if decoding is greedy.
        ids: `[n]` tokens, else.
        scores: `[n]`, their logits / T.
    """

    found: Sequence[tuple[int, int]] = ()
    ids: Ids | None = None
    scores: Scores | None = None


class Sources:
    """The memory of one request.

    Args:
        row: the request.

    Attributes:
        index: what followed each context of the text.
        ahead: candidates for depths 1, 2, ... of the next tree.
        slots: of the probes that named the first of them.
    """

    def __init__(self, row: Row) -> None:
        self._row = row
        self.index = SuffixIndex(MAX_ORDER)
        self.index.extend(row.token_ids)
        self._after_token: dict[int, Entry] = {}
        self._after_pair: dict[tuple[int, int], Entry] = {}
        self.ahead: list[Found] = []  # of depths 1, 2, ...
        self.slots: list[int] = []  # of the probes that spoke for the first of them
        params = row.params
        self._is_sampled = row.noise is not None
        self._is_truncated = bool(params.top_k or params.top_p < 1.0 or params.min_p)
        self._scale = 1.0 / params.temperature if self._is_sampled else 1.0
        self._share = _LEAST_COUPLED if self._is_sampled else _LEAST_GREEDY
        self._num_likely = _LIKELY_TRUNCATED if self._is_truncated else _LIKELY
        self._noise: dict[int, Scores] = {}

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
        entry = self._after_pair.get((before, token_id))
        first = AFTER_PAIR
        if entry is None:
            entry, first = self._after_token.get(token_id), AFTER_TOKEN
        if entry is not None:
            speaks += 3
            said = self._under_noise(entry, depth) if self._is_sampled else entry.found
            found += [(candidate, cell + first) for candidate, cell in said]
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
            if len(seen) >= _MOST_RETRIEVED:
                break
        if self._is_sampled and found:
            noise = self._noise_of(len(self._row.token_ids) + depth - 1, np.array(seen)).tolist()
            found = [
                (token_id, cell - cell % 4 + _noise_kind(value))
                for (token_id, cell), value in zip(found, noise, strict=True)
            ]
        return found, longest

    def _under_noise(self, entry: Entry, depth: int) -> Found:
        ids, scores = entry.ids, entry.scores
        assert ids is not None and scores is not None
        noisy = scores + self._noise_of(len(self._row.token_ids) + depth - 1, ids)
        weights = np.exp(noisy - noisy.max())
        near = np.flatnonzero(weights >= 0.03)
        total = float(weights.sum()) + 1e-9
        pairs = sorted(zip(weights[near].tolist(), ids[near].tolist(), strict=True), reverse=True)
        return [
            (token_id, _share_cell(weight / total, not rank))
            for rank, (weight, token_id) in enumerate(pairs[:4])
        ]

    def _noise_of(self, position: int, ids: npt.NDArray[np.int64]) -> Scores:
        """Noise of some ids at a position."""
        if self._is_truncated:
            assert self._row.noise is not None
            return self._row.noise(position, torch.from_numpy(ids)).cpu().numpy()
        return self._noise_at(position)[ids]

    def _noise_at(self, position: int) -> Scores:
        """Of the whole vocabulary, which the target's own draw there needs as well."""
        known = self._noise.get(position)
        if known is None:
            assert self._row.noise is not None
            known = self._row.noise(position, None).cpu().numpy().astype(np.float32)
            self._noise[position] = known
        return known

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
        position = len(row.token_ids)
        self._noise = {at: noise for at, noise in self._noise.items() if at >= position}
        leftover = leftover_nodes(tree.parents[:num_drafts], path[-1])[len(slots) : _AHEAD]
        ahead = [*(node for node, _ in slots), *leftover]
        firsts = [probed_cells(slot) for _, slot in slots]
        firsts += [denoised_cells(depth) for depth in range(len(slots) + 1, len(ahead) + 1)]
        assert record.logits is not None
        said, near = self._said(record.logits, num_drafts, ahead)
        place = len(row.token_ids) - len(record.verdict.token_ids) - 2
        self.slots = [slot for _, slot in slots]
        self._recycle(tree, said, row.token_ids[place] if place >= 0 else -1)
        self.ahead = [
            [(token_id, cell + first) for token_id, cell in found]
            for found, first in zip(near, firsts, strict=True)
        ]

    def _recycle(self, tree: DraftTree, said: Sequence[Entry], before_root: int) -> None:
        """Keep what the target said after the root and the drafts."""
        token_ids, parents = tree.token_ids, tree.parents
        for node, entry in enumerate(said):
            token_id = token_ids[node]
            before = token_ids[parents[node]] if node else before_root
            self._after_token[token_id] = self._after_pair[before, token_id] = entry

    def _said(
        self,
        logits: torch.Tensor,  # [N, V]
        num_drafts: int,
        ahead: Sequence[int],
    ) -> tuple[list[Entry], list[Found]]:
        """Entries of the first nodes, and what some nodes say about depths 1, 2, ..."""
        if not self._is_sampled:  # all rows as they lie: some are not needed, but none is copied
            found = shares_near_top(*likeliest(logits), self._share)
            return [Entry(one) for one in found[:num_drafts]], [found[node] for node in ahead]
        ids, best = likeliest(logits[:num_drafts], self._num_likely)
        best *= np.float32(self._scale)
        entries = [Entry(ids=row, scores=of_row) for row, of_row in zip(ids, best, strict=True)]
        return entries, self._coupled(logits[list(ahead)]) if ahead else []

    def _coupled(self, logits: torch.Tensor) -> list[Found]:  # [m, V]
        """What competes for the next `m` positions under their noise."""
        assert self._row.noise is not None
        first = len(self._row.token_ids)
        positions = range(first, first + len(logits))
        if self._is_truncated:
            ids, best = likeliest(logits, self._num_likely)
            noise = self._row.noise(positions, torch.from_numpy(ids)).cpu().numpy()
            noisy = best * np.float32(self._scale) + noise.astype(np.float32)
            places, scores = likeliest(torch.from_numpy(noisy))
            return shares_near_top(np.take_along_axis(ids, places, 1), scores, self._share)
        noise = np.stack([self._noise_at(position) for position in positions])
        noisy = logits.float().cpu().numpy() * np.float32(self._scale) + noise
        return shares_near_top(*likeliest(torch.from_numpy(noisy)), self._share)


def _noise_kind(noise: float) -> int:
    """Lucky tokens are drawn though they are unlikely."""
    return 0 if noise < 0.5 else 1 if noise < 2.0 else 2 if noise < 3.5 else 3


def _share_cell(share: float, is_best: bool) -> int:
    odds = round(math.log(share / (1.0 + 1e-9 - share)))
    return (max(-4, min(4, odds)) + 4) * 2 + (not is_best)
