"""Random trees: layouts against brute force, reshaping that keeps the law."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from draftless.engine.tree import prune, select
from draftless.engine.verify import walk
from draftless.layout import tree_layout
from draftless.types import DraftTree, Verdict
from support.trees import draft_trees, node_paths, parent_lists


def ancestors(parents: tuple[int, ...], node: int) -> set[int]:
    found = {node}
    while node:
        node = parents[node]
        found.add(node)
    return found


@given(parent_lists(max_nodes=40))
def test_the_mask_is_ancestors_and_self(parents: tuple[int, ...]) -> None:
    layout = tree_layout(parents)
    wanted = torch.zeros(len(parents), len(parents), dtype=torch.bool)
    for node in range(len(parents)):
        wanted[node, sorted(ancestors(parents, node))] = True
        assert layout.depths[node] == len(ancestors(parents, node)) - 1
        assert layout.children[node] == tuple(
            child for child in range(1, len(parents)) if parents[child] == node
        )
    assert layout.mask.equal(wanted)
    assert layout.depth_tensor.tolist() == list(layout.depths)


def follow(tree: DraftTree, text: list[int]) -> Verdict:
    """Walk with the target's text given, long enough for any tree."""
    return walk(tree, lambda _, path: text[len(path)], lambda _: None)


TEXTS = st.lists(st.integers(0, 2), min_size=12, max_size=12)


@given(draft_trees(vocab_size=3, max_nodes=12), TEXTS)
def test_the_walk_commits_a_prefix_of_the_text(tree: DraftTree, text: list[int]) -> None:
    verdict = follow(tree, text)
    committed = verdict.token_ids
    assert list(committed) == text[: len(committed)]
    assert [tree.token_ids[node] for node in verdict.path[1:]] == list(committed[:-1])
    assert not any(tree.is_probe[node] for node in verdict.path if tree.is_probe)


@given(draft_trees(vocab_size=3, max_nodes=12), TEXTS, st.integers(0, 5))
def test_pruning_only_shortens_the_walk(tree: DraftTree, text: list[int], depth: int) -> None:
    pruned = prune(tree, depth)
    assert [p for p in node_paths(tree) if len(p) <= depth] == node_paths(pruned)
    whole, short = follow(tree, text), follow(pruned, text)
    assert short.token_ids == whole.token_ids[: depth + 1]


@given(draft_trees(vocab_size=3, max_nodes=12), st.data())
def test_any_selection_closed_under_parents_keeps_the_law(
    tree: DraftTree, data: st.DataObject
) -> None:
    text = data.draw(TEXTS)
    wanted = data.draw(st.sets(st.integers(0, tree.num_nodes - 1)))
    nodes = sorted({0}.union(*(ancestors(tree.parents, node) for node in wanted)))
    committed = follow(select(tree, nodes), text).token_ids
    assert list(committed) == text[: len(committed)]
