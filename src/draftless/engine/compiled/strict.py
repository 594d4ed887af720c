"""Attention whose bits do not depend on the tree: each node by itself, over its own path in order.

Half-precision sums depend on their order. In a tree pass the keys of a path lie wherever its nodes
stand, with other nodes between; in plain decoding they lie one after another. Here a node's keys are
brought into the order of its path, and one query at a time looks at exactly as many of them as in
plain decoding: the same call on the same numbers. All else of a pass works on tokens one by one, in
passes of one of few widths (`WIDTH`); whether their bits hold still is tested when a model is loaded.
"""

from __future__ import annotations

from functools import lru_cache

import torch

from draftless.engine.attention import attend
from draftless.layout import TreeLayout

WIDTH = 16
"""Passes are padded to a multiple of this many tokens."""


def attend_one_by_one(
    query: torch.Tensor,  # [1, Hq, W, D]
    keys: torch.Tensor,  # [1, Hkv, C, D], the tree's own at the end
    values: torch.Tensor,  # [1, Hkv, C, D]
    layout: TreeLayout,
    window: int | None,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:  # [1, Hq, W, D]
    """Attention of every node of a row to what is cached and its own path; padding, which stands
    behind the nodes, gives zeros."""
    out = torch.zeros_like(query)
    length = keys.shape[2] - query.shape[2]
    for node, path in enumerate(_paths(layout.parents)):
        position = length + len(path)  # tokens that the node sees, itself included
        first = 0 if window is None else max(0, position - window)
        seen_keys, seen_values = (
            _in_order(states, length, path)[:, :, first:position] for states in (keys, values)
        )
        one = query[:, :, node : node + 1]
        found = attend(one, seen_keys, seen_values, None, scaling, softcap)
        out[:, :, node : node + 1] = found
    return out


def _in_order(states: torch.Tensor, length: int, path: tuple[int, ...]) -> torch.Tensor:
    if path[-1] == len(path) - 1:  # the path's nodes are the tree's first ones
        return states
    places = torch.tensor(path, device=states.device) + length
    return torch.cat([states[:, :, :length], states.index_select(2, places)], dim=2)


@lru_cache(maxsize=4096)
def _paths(parents: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
    """Per node the nodes from the root to it."""
    paths: list[tuple[int, ...]] = []
    for node, parent in enumerate(parents):
        paths.append((*paths[parent], node) if node else (0,))
    return tuple(paths)
