"""Masks and positions of draft trees: pure functions of the parents, computed once and reused."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch

from draftless.errors import ConfigError


@dataclass(frozen=True)
class TreeLayout:
    """What follows from a tree's parents alone.

    Attributes:
        parents: index of each node's parent, -1 for the root; a parent stands before its children.
        depths: distance of each node from the root, `N` ints; a node's position is root position
            plus depth.
        children: indices of each node's children, in order.
        mask: `[N, N]` bool, true where column is the row's ancestor or the row itself.
        depth_tensor: `depths` as `[N]` int64.
    """

    parents: tuple[int, ...]
    depths: tuple[int, ...]
    children: tuple[tuple[int, ...], ...]
    mask: torch.Tensor
    depth_tensor: torch.Tensor

    @property
    def num_nodes(self) -> int:
        return len(self.parents)


def tree_layout(parents: tuple[int, ...]) -> TreeLayout:
    """Layout of the tree with these parents; small ones are computed once.

    Raises:
        ConfigError: if node 0 is not the only root or a parent does not stand before its child.
    """
    return _cached_layout(parents) if len(parents) <= _CACHED_NODES else _layout(parents)


EMPTY_LAYOUT = TreeLayout(
    (), (), (), torch.zeros(0, 0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
)
"""Of a row that feeds nothing in a pass of its batch: padding alone."""

_CACHED_NODES = 128  # a prefill chunk's mask is large and seldom needed twice


def _layout(parents: tuple[int, ...]) -> TreeLayout:
    if not parents or parents[0] != -1:
        raise ConfigError(f"a draft tree starts with its root (parent -1), not with {parents[:1]}")
    num_nodes = len(parents)
    depths = [0] * num_nodes
    children: list[list[int]] = [[] for _ in range(num_nodes)]
    mask = np.eye(num_nodes, dtype=np.bool_)  # row by row, several times faster than in torch
    for node in range(1, num_nodes):
        parent = parents[node]
        if not 0 <= parent < node:
            raise ConfigError(
                f"node {node} has parent {parent}; a parent is an earlier node (0 to {node - 1})"
            )
        depths[node] = depths[parent] + 1
        children[parent].append(node)
        mask[node] |= mask[parent]
    return TreeLayout(
        parents=parents,
        depths=tuple(depths),
        children=tuple(tuple(c) for c in children),
        mask=torch.from_numpy(mask),
        depth_tensor=torch.tensor(depths, dtype=torch.int64),
    )


_cached_layout = lru_cache(maxsize=4096)(_layout)


def chain_parents(num_nodes: int) -> tuple[int, ...]:
    """Parents of a root followed by one chain of `num_nodes - 1` drafts."""
    return tuple(range(-1, num_nodes - 1))
