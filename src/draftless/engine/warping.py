"""Temperature, top-k, top-p and min-p, in this order, as `transformers`' warpers do them.

Twice: of one row on a CPU (`warp`), where a partial sort pays, and of a block of rows on any device
(`warp_block`). Tests hold both against `transformers`.
"""

from __future__ import annotations

import numpy as np
import torch

from draftless.params import SamplingParams

_LIKELY = 1e-4
"""Least probability of the tokens that top-p sorts first; mostly they hold the mass."""


def warp(
    scores: torch.Tensor,  # [V] float32 or float64, on a CPU
    params: SamplingParams,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """What stays of one row.

    Returns:
        The kept scores `[n]`, divided by the temperature, and their ids `[n]` int64, or None for
        the ids if everything is kept.
    """
    if params.temperature != 1.0:
        scores = scores / params.temperature
    if not params.is_truncated:
        return scores, None
    kept, ids = scores.numpy(), None
    if params.top_k:
        place = max(kept.shape[0] - params.top_k, 0)
        ids = np.flatnonzero(kept >= np.partition(kept, place)[place])
        kept = kept[ids]
    if params.top_p < 1.0:
        order = _top_p(kept, params.top_p)
        kept, ids = kept[order], order if ids is None else ids[order]
    if params.min_p:
        inside = np.flatnonzero(kept >= kept.max() + np.log(kept.dtype.type(params.min_p)))
        kept, ids = kept[inside], inside if ids is None else ids[inside]
    return torch.from_numpy(kept), torch.from_numpy(ids)


def _top_p(scores: np.ndarray, top_p: float) -> np.ndarray:
    """Ascending indices of the tokens before which, the likeliest first, less than `top_p` lies.

    Of equal tokens the lower index comes first. A full sort is avoided: tokens that are less likely
    than `(1 - top_p) / V` together have no more than `1 - top_p`, so none of them is kept.
    """
    peak = scores.max()
    shares = np.exp(scores - peak)
    total = shares.sum(dtype=np.float64)
    for least in (_LIKELY, 0.5 * (1.0 - top_p) / len(scores)):
        likely = np.flatnonzero(shares >= least * total)
        values = np.sort(scores[likely])[::-1]
        ahead = np.exp(values - peak).cumsum(dtype=np.float64)[:-1]
        num_kept = 1 + int(np.searchsorted(ahead, top_p * total))
        if num_kept < len(values):
            break
    least_kept = values[num_kept - 1]
    is_kept = scores[likely] >= least_kept
    surplus = int(np.count_nonzero(is_kept)) - num_kept
    if surplus:
        is_kept[np.flatnonzero(scores[likely] == least_kept)[-surplus:]] = False
    kept: np.ndarray = likely[is_kept]
    return kept


def warp_block(scores: torch.Tensor, params: SamplingParams) -> torch.Tensor:
    """What stays of `scores [N, V]` (float32 or float64): `[N, V]`, -inf where a token is dropped."""
    scores = scores / params.temperature
    if params.top_k:
        kth = scores.topk(min(params.top_k, scores.shape[1])).values[:, -1:]
        scores = scores.masked_fill(scores < kth, -torch.inf)
    if params.top_p < 1.0:
        ranked, order = scores.sort(dim=1, descending=True, stable=True)
        probabilities = ranked.double().softmax(1)
        is_dropped = probabilities.cumsum(1) - probabilities >= params.top_p
        is_dropped[:, 0] = False
        scores = scores.masked_fill(is_dropped.scatter(1, order, is_dropped), -torch.inf)
    if params.min_p:
        least = scores.amax(1, keepdim=True) + np.log(params.min_p)
        scores = scores.masked_fill(scores < least, -torch.inf)
    return scores
