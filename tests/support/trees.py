"""Hypothesis strategies of trees."""

from __future__ import annotations

from hypothesis import strategies as st

from draftless.types import DraftTree


@st.composite
def parent_lists(draw: st.DrawFn, max_nodes: int) -> tuple[int, ...]:
    """Parents of any tree with up to `max_nodes` nodes."""
    num_nodes = draw(st.integers(1, max_nodes))
    return (-1, *(draw(st.integers(0, node - 1)) for node in range(1, num_nodes)))


@st.composite
def draft_trees(
    draw: st.DrawFn, vocab_size: int, max_nodes: int, root: int | None = None
) -> DraftTree:
    """Any tree; under a probe hang probes only."""
    parents = draw(parent_lists(max_nodes))
    token_ids = [draw(st.integers(0, vocab_size - 1)) for _ in parents]
    if root is not None:
        token_ids[0] = root
    if not draw(st.booleans()):
        return DraftTree(tuple(token_ids), parents)
    is_probe = [False]
    for parent in parents[1:]:
        is_probe.append(is_probe[parent] or draw(st.booleans()))
    return DraftTree(tuple(token_ids), parents, tuple(is_probe))


def node_paths(tree: DraftTree) -> list[tuple[int, ...]]:
    """The tokens on the way to each node, the root's left out."""
    paths: list[tuple[int, ...]] = [()]
    for node in range(1, tree.num_nodes):
        paths.append((*paths[tree.parents[node]], tree.token_ids[node]))
    return paths
