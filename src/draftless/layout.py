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
    """Layout of the tree with these parents, computed once as long as it is remembered.

    Raises:
        ConfigError: if node 0 is not the only root or a parent does not stand before its child.
    """
    return _small_layout(parents) if len(parents) <= _SMALL_NODES else _large_layout(parents)


EMPTY_LAYOUT = TreeLayout(
    (), (), (), torch.zeros(0, 0, dtype=torch.bool), torch.zeros(0, dtype=torch.int64)
)
"""Of a row that feeds nothing in a pass of its batch: padding alone."""

_SMALL_NODES = 128  # larger masks are remembered for a step or two: a prefill chunk's is 256 kB


def _layout(parents: tuple[int, ...]) -> TreeLayout:
    if not parents or parents[0] != -1:
        raise ConfigError(f"a draft tree starts with its root (parent -1), not with {parents[:1]}")
    num_nodes = len(parents)
    depths = [0] * num_nodes
    children: list[list[int]] = [[] for _ in range(num_nodes)]
    seen = [1] * num_nodes  # per node, bit by bit, the nodes on its path
    for node in range(1, num_nodes):
        parent = parents[node]
        if not 0 <= parent < node:
            raise ConfigError(
                f"node {node} has parent {parent}; a parent is an earlier node (0 to {node - 1})"
            )
        depths[node] = depths[parent] + 1
        children[parent].append(node)
        seen[node] = seen[parent] | 1 << node
    num_bytes = (num_nodes + 7) // 8
    packed = np.frombuffer(b"".join(bits.to_bytes(num_bytes, "little") for bits in seen), np.uint8)
    mask = np.unpackbits(packed.reshape(num_nodes, -1), 1, num_nodes, bitorder="little")
    return TreeLayout(
        parents=parents,
        depths=tuple(depths),
        children=tuple(map(tuple, children)),
        mask=torch.from_numpy(mask.view(np.bool_)),
        depth_tensor=torch.tensor(depths, dtype=torch.int64),
    )


_small_layout = lru_cache(maxsize=4096)(_layout)
_large_layout = lru_cache(maxsize=16)(_layout)


def chain_parents(num_nodes: int) -> tuple[int, ...]:
    """Parents of a root followed by one chain of `num_nodes - 1` drafts."""
    return tuple(range(-1, num_nodes - 1))
