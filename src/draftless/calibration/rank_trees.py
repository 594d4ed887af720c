"""Static trees from statistics: which ranks are worth a node, by how often they hit and what nodes cost.

Source: Sequoia (arXiv 2402.12374), section 3: a tree's expected tokens from the chance of each rank,
its size from the cost of a pass. The chances depend on rank and depth here, given that all above was
right; a path's chance is their product. A child is never likelier than its parent then, so taking
the likeliest paths one by one gives the best tree of *every* size at once, which is what Sequoia's
dynamic programme computes. The price list picks the size.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from draftless.prices import PriceList
from draftless.rank_paths import RankPath

_MOST_NODES = 127  # and the root
_WIDTHS = (4, 6, 8, 12, 16, 24, 32, 48, 64)  # that are tried out, the root included
_NEAR = 0.85  # of the best modelled speed
_PRIOR = 20.0  # observations that a depth's own chances weigh as much as those of all depths


@dataclass(frozen=True, slots=True)
class Kind:
    """What a drafter's template may look like.

    Attributes:
        depth: deepest node.
        top_k: ranks per depth.
        has_spine: the chain of best guesses is always there, as deep as it goes, and comes first.
    """

    depth: int
    top_k: int
    has_spine: bool


KINDS = {
    "recycling": Kind(depth=12, top_k=8, has_spine=False),
    # What it sees at the end of the spine is what it guesses from in the next step.
    "tr-jacobi": Kind(depth=5, top_k=10, has_spine=True),
}
"""The drafters that fill a template, with their own depth and ranks."""


@dataclass(frozen=True, slots=True)
class Place:
    """What a drafter would have guessed at one step.

    Attributes:
        ranks: of the tokens that really followed, up to the first that was not guessed.
        num_ahead: how many were looked at; ranks may end because the text does.
    """

    ranks: RankPath
    num_ahead: int


@dataclass(frozen=True)
class Template:
    """A tree, and what it is worth by the chances and the price list.

    Attributes:
        paths: rank paths; of a smaller budget, the first ones are the best tree.
        tokens_per_step: committed tokens that it promises, the target's own included.
        forward_s: seconds of its pass.
    """

    paths: tuple[RankPath, ...]
    tokens_per_step: float
    forward_s: float

    @property
    def tokens_per_second(self) -> float:
        return self.tokens_per_step / self.forward_s


def hit_rates(places: Sequence[Place], kind: Kind) -> np.ndarray:  # [depth, top_k]
    """Chance of each rank at each depth where all above was right; few observations lean on all depths."""
    hits = np.zeros((kind.depth, kind.top_k))
    reached = np.zeros((kind.depth, 1))
    for place in places:
        reached[: min(len(place.ranks) + 1, place.num_ahead, kind.depth)] += 1
        for depth, rank in enumerate(place.ranks[: kind.depth]):
            hits[depth, rank] += 1
    pooled = hits.sum(0) / max(1.0, reached.sum())
    rates: np.ndarray = (hits + _PRIOR * pooled) / (reached + _PRIOR)
    return rates


def likeliest_paths(rates: np.ndarray, count: int) -> list[tuple[RankPath, float]]:
    """The `count` likeliest rank paths with their chances; every path behind its parent."""
    depth, top_k = rates.shape
    heap: list[tuple[float, RankPath]] = [(-1.0, ())]
    found: list[tuple[RankPath, float]] = []
    while heap and len(found) <= count:
        chance, path = heapq.heappop(heap)
        found.append((path, -chance))
        if len(path) < depth:
            for rank in range(top_k):
                below = chance * float(rates[len(path), rank])
                if below < 0.0:
                    heapq.heappush(heap, (below, (*path, rank)))
    return found[1:]


def sized_templates(
    rates: np.ndarray, kind: Kind, prices: PriceList, length: int
) -> list[Template]:
    """The best tree of every size.

    Args:
        rates: `[depth, top_k]`, see `hit_rates`.
        kind: whose tree.
        prices: of the machine.
        length: cached tokens at a typical step.
    """
    paths = likeliest_paths(rates, _MOST_NODES)
    fewest = 1
    if kind.has_spine:
        spine = [(0,) * depth for depth in range(1, kind.depth + 1)]
        chances = np.cumprod(rates[:, 0]).tolist()
        rest = [(path, chance) for path, chance in paths if any(path)]
        paths = [*zip(spine, chances, strict=True), *rest][:_MOST_NODES]
        fewest = kind.depth
    tokens = 1.0 + np.cumsum([chance for _, chance in paths])
    seconds = prices.curve(length, 1, len(paths) + 1)
    every = tuple(path for path, _ in paths)
    return [
        Template(every[:size], float(tokens[size - 1]), float(seconds[size]))
        for size in range(fewest, len(paths) + 1)
    ]


def promising(templates: Sequence[Template]) -> list[Template]:
    """The one with the most modelled tokens per second, and others that are nearly as good."""
    best = max(templates, key=lambda one: one.tokens_per_second)
    least = _NEAR * best.tokens_per_second
    return [best] + [
        one
        for one in templates
        if one is not best and len(one.paths) + 1 in _WIDTHS and one.tokens_per_second >= least
    ]
