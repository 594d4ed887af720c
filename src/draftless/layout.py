"""Masks and positions of draft trees: pure functions of the parents, computed once and reused."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache

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


@lru_cache(maxsize=4096)
def tree_layout(parents: tuple[int, ...]) -> TreeLayout:
    """Layout of the tree with these parents.

    Raises:
        ConfigError: if node 0 is not the only root or a parent does not stand before its child.
    """
    if not parents or parents[0] != -1:
        raise ConfigError(f"a draft tree starts with its root (parent -1), not with {parents[:1]}")
    num_nodes = len(parents)
    depths = [0] * num_nodes
    children: list[list[int]] = [[] for _ in range(num_nodes)]
    mask = torch.eye(num_nodes, dtype=torch.bool)
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
        mask=mask,
        depth_tensor=torch.tensor(depths, dtype=torch.int64),
    )


def chain_parents(num_nodes: int) -> tuple[int, ...]:
    """Parents of a root followed by one chain of `num_nodes - 1` drafts."""
    return tuple(range(-1, num_nodes - 1))


def layout_of(parents: Sequence[int]) -> TreeLayout:
    """`tree_layout` for any sequence of parents."""
    return tree_layout(tuple(parents))
