"""Random trees: layouts against brute force, reshaping that keeps the law."""

from __future__ import annotations

import torch
from hypothesis import given
from hypothesis import strategies as st

from draftless.engine.tree import merge_siblings, prune, select
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


@given(draft_trees(vocab_size=3, max_nodes=12), TEXTS)
def test_merging_makes_the_walk_as_long_as_the_tree_allows(
    tree: DraftTree, text: list[int]
) -> None:
    merged = merge_siblings(tree)
    drafts = {
        path
        for node, path in enumerate(node_paths(tree))
        if not any(tree.is_probe and tree.is_probe[a] for a in ancestors(tree.parents, node))
    }
    longest = max(len(path) for path in drafts if path == tuple(text[: len(path)]))
    verdict = follow(merged, text)
    assert verdict.token_ids == tuple(text[: longest + 1])
    assert len(follow(tree, text).token_ids) <= longest + 1


@given(draft_trees(vocab_size=3, max_nodes=12))
def test_merged_trees_have_the_same_paths_once(tree: DraftTree) -> None:
    def marked(tree: DraftTree) -> list[tuple[tuple[int, ...], bool]]:
        flags = tree.is_probe or (False,) * tree.num_nodes
        return list(zip(node_paths(tree), flags, strict=True))

    merged = merge_siblings(tree)
    assert set(marked(merged)) == set(marked(tree))
    keys = [
        (merged.parents[n], merged.token_ids[n], bool(merged.is_probe and merged.is_probe[n]))
        for n in range(1, merged.num_nodes)
    ]
    assert len(keys) == len(set(keys))
    assert merge_siblings(merged) is merged


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
