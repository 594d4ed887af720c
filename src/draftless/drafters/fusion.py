"""One estimate from several sources: how likely is each candidate the target's next token?

Each source says how it knows a candidate: a *cell*, an index into one table of weights. A candidate's
score is the sum of the weights of its cells, and its chance the softmax of the scores of all candidates
of a node and of "none of them". So sources that agree add up, and one that never was right is outvoted.

The weights start from `priors`, measured offline, and follow the text: every node whose parent was
accepted is one step of this softmax's own gradient. That is a counter table that is shared
between the cells that were right together, and it forgets at the same rate as it learns.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

Found = list[tuple[int, int]]
"""Candidates of a node, each a token and a cell; a token that several sources name stands here often."""

MAX_ORDER = 6
"""Longest context that retrieval tells apart."""

KINDS = 4  # of a retrieved token, see `sources`
NEWEST = 2  # tokens that one context may name
_BUCKETS = 9  # of log-odds, -4 to 4
RANKS = 2  # the best of its source, or not
PLACES = 4  # depths or slots that are told apart
SHARES = _BUCKETS * RANKS

NONE = 0  # no candidate is right: by what speaks at this node
RETRIEVED = NONE + 12
AFTER_TOKEN = RETRIEVED + MAX_ORDER * NEWEST * KINDS
AFTER_PAIR = AFTER_TOKEN + SHARES
DENOISED = AFTER_PAIR + SHARES
PROBED = DENOISED + PLACES * SHARES
NUM_CELLS = PROBED + PLACES * SHARES

RATE = 0.08  # of learning; log-loss on validation prompts is flat from 0.03 to 0.2
SURE = 0.02  # what was expected as well as this teaches nothing


def retrieved_cell(order: int, place: int, kind: int) -> int:
    """Cell of the token that followed a context of `order` tokens, `place` others being newer."""
    return RETRIEVED + ((order - 1) * NEWEST + place) * KINDS + kind


def denoised_cells(depth: int) -> int:
    """First of the cells of a guess for this depth (1 for the root's children)."""
    return DENOISED + min(depth - 1, PLACES - 1) * SHARES


def probed_cells(slot: int) -> int:
    """First of the cells of what the adaptive token at this slot predicts."""
    return PROBED + min(slot - 1, PLACES - 1) * SHARES


def share_cell(share: float, *, is_best: bool) -> int:
    """What the cell of a source's share adds to the source's first: by its log-odds and by rank."""
    odds = round(math.log(share / (1.0 + 1e-6 - share)))
    return (max(-4, min(4, odds)) + 4) * RANKS + (not is_best)


class Fusion:
    """The weights of one request.

    Args:
        weights: to start from, one per cell; they are copied.

    Attributes:
        weights: as learnt so far.
    """

    def __init__(self, weights: Sequence[float]) -> None:
        self.weights = list(weights)

    def chances(self, found: Found, none_cell: int) -> list[tuple[float, int]]:
        """Chance and token of every candidate, the likeliest first."""
        scores, total, _ = self._scores(found, none_cell)
        ranked = [(score / total, token_id) for token_id, score in scores.items()]
        ranked.sort(reverse=True)
        return ranked

    def learn(self, found: Found, none_cell: int, token_id: int) -> None:
        """`token_id` was the target's token after a node with these candidates."""
        scores, total, none = self._scores(found, none_cell)
        weights = self.weights
        for candidate, cell in found:
            error = (candidate == token_id) - scores[candidate] / total
            if abs(error) > SURE:
                weights[cell] += RATE * error
        weights[none_cell] += RATE * ((token_id not in scores) - none / total)

    def chance(
        self, found: Found, none_cell: int, token_id: int, without: range = range(0)
    ) -> float:
        """Chance of a candidate, or what it would be had the source with these cells been silent."""
        heard = [pair for pair in found if pair[1] not in without] if without else found
        scores, total, _ = self._scores(heard, none_cell)
        return scores.get(token_id, 0.0) / total

    def _scores(self, found: Found, none_cell: int) -> tuple[dict[int, float], float, float]:
        """Exponentials of the candidates' scores, their sum with that of none of them, and this one."""
        weights, exp = self.weights, math.exp
        scores: dict[int, float] = {}
        for token_id, cell in found:
            scores[token_id] = scores.get(token_id, 0.0) + weights[cell]
        total = none = exp(weights[none_cell])
        for token_id, score in scores.items():
            scores[token_id] = value = exp(score)
            total += value
        return scores, total, none
