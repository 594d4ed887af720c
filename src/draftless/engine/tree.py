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


def merge_siblings(tree: DraftTree) -> DraftTree:
    """Merge siblings that carry the same token, so that a walk reaches all of their children.

    A draft and a probe are never merged. The first of equal siblings keeps its place and source;
    scores of merged nodes keep the largest.
    """
    key_to_node: dict[tuple[int, int, bool], int] = {}
    target: list[int] = []
    for node in range(tree.num_nodes):
        if node == 0:
            target.append(0)
            continue
        probe = bool(tree.is_probe) and tree.is_probe[node]
        key = (target[tree.parents[node]], tree.token_ids[node], probe)
        target.append(key_to_node.setdefault(key, node))
    if all(kept == node for node, kept in enumerate(target)):
        return tree
    scores = list(tree.scores)
    for node, kept in enumerate(target):
        if scores and kept != node:
            scores[kept] = max(scores[kept], scores[node])
    merged = DraftTree(
        tree.token_ids,
        tuple(target[parent] if node else -1 for node, parent in enumerate(tree.parents)),
        tree.is_probe,
        tuple(scores),
        tree.sources,
    )
    return select(merged, [node for node, kept in enumerate(target) if kept == node])
