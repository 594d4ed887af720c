"""Building and reshaping draft trees: pure functions."""

from __future__ import annotations

from collections.abc import Sequence

from draftless.types import DraftTree


def prune(tree: DraftTree, max_depth: int) -> DraftTree:
    """Drop the nodes deeper than `max_depth`."""
    depths = tree.layout.depths
    if max(depths) <= max_depth:
        return tree
    return select(tree, [node for node in range(tree.num_nodes) if depths[node] <= max_depth])


def select(tree: DraftTree, nodes: Sequence[int]) -> DraftTree:
    """The tree of the given nodes, in ascending order; each one's parent must be among them."""
    new_index = {old: new for new, old in enumerate(nodes)}
    return DraftTree(
        token_ids=tuple(tree.token_ids[n] for n in nodes),
        parents=tuple(new_index[tree.parents[n]] if n else -1 for n in nodes),
        is_probe=tuple(tree.is_probe[n] for n in nodes) if tree.is_probe else (),
        scores=tuple(tree.scores[n] for n in nodes) if tree.scores else (),
        sources=tuple(tree.sources[n] for n in nodes) if tree.sources else (),
    )
