"""Draft passes: what a drafter may run through part of the target before it proposes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence

import torch

from draftless.engine.cache import KVCache
from draftless.engine.target import TargetModel
from draftless.layout import EMPTY_LAYOUT, chain_parents, tree_layout
from draftless.skip_set import SkipSet


class CachedPasses:
    """`DraftPasses` over a cache, inside `cache.scratch()`.

    Attributes:
        counts: passes that each row took part in.
        seconds: in all of them.
    """

    def __init__(self, target: TargetModel, cache: KVCache) -> None:
        self._target = target
        self._cache = cache
        self.counts = [0] * cache.num_rows
        self.seconds = 0.0

    def feed(
        self, token_ids: Mapping[int, Sequence[int]], skip_set: SkipSet
    ) -> dict[int, torch.Tensor]:  # [N, V] each
        """See `DraftPasses.feed`.

        Rows in between that are not fed ride along as padding: what they write lies behind their
        length, and moving the others together would copy their whole cache in every layer.
        """
        started = time.perf_counter()
        first, last = min(token_ids), max(token_ids)
        fed = [token_ids.get(row, ()) for row in range(first, last + 1)]
        layouts = [tree_layout(chain_parents(len(t))) if t else EMPTY_LAYOUT for t in fed]
        logits = self._target.forward(self._cache, fed, layouts, first_row=first, skip_set=skip_set)
        if logits[0].is_cuda:
            torch.cuda.synchronize(logits[0].device)  # or the wait would be booked on the drafter
        for row, ids in token_ids.items():
            self._cache.commit(row, range(len(ids)))
            self.counts[row] += 1
        self.seconds += time.perf_counter() - started
        return {row: logits[row - first] for row in token_ids}
