"""What the best of a row say, as cells of `fusion`: the shares of few tokens among each other."""

from __future__ import annotations

import math
from collections.abc import Sequence

from draftless.drafters.fusion import Found, share_cell

NUM_SHARED = 8
"""Tokens that share a row."""


def shares_near_top(
    ids: Sequence[int],  # n, the likeliest first
    scores: Sequence[float],  # n, their logits
    least: float,
) -> Found:
    """The best tokens with the cells of their shares among all; none below `least`.

    Shares of logits that are not finite are no numbers; such a row says nothing.
    """
    exp, best = math.exp, scores[0]
    weights = [exp(score - best) for score in scores]
    total = 0.0
    for weight in weights:  # not by `sum`, which newer Pythons round otherwise than other languages
        total += weight
    found = []
    for rank, (token_id, weight) in enumerate(zip(ids, weights, strict=True)):
        share = weight / total
        if not share >= least:
            break
        found.append((token_id, share_cell(share, is_best=not rank)))
    return found
