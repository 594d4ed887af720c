"""Masks and positions of trees: exact tensors."""

from __future__ import annotations

import pytest
import torch

from draftless.errors import ConfigError
from draftless.layout import chain_parents, tree_layout

#     0
#    / \
#   1   3
#   |   |\
#   2   4 5
PARENTS = (-1, 0, 1, 0, 3, 3)


def test_mask_shows_ancestors_and_self() -> None:
    assert tree_layout(PARENTS).mask.int().tolist() == [
        [1, 0, 0, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [1, 1, 1, 0, 0, 0],
        [1, 0, 0, 1, 0, 0],
        [1, 0, 0, 1, 1, 0],
        [1, 0, 0, 1, 0, 1],
    ]


def test_depths_and_children() -> None:
    layout = tree_layout(PARENTS)
    assert layout.depths == (0, 1, 2, 1, 2, 2)
    assert layout.depth_tensor.tolist() == [0, 1, 2, 1, 2, 2]
    assert layout.children == ((1, 3), (2,), (), (4, 5), (), ())
    assert layout.num_nodes == 6


def test_chain_is_causal() -> None:
    layout = tree_layout(chain_parents(4))
    assert layout.mask.equal(layout.mask.new_ones(4, 4).tril())
    assert layout.depths == (0, 1, 2, 3)


@pytest.mark.parametrize("num_nodes", [3, 128, 129, 300])
def test_a_layout_is_made_once(num_nodes: int) -> None:
    """A walk asks for it at every node."""
    assert tree_layout(chain_parents(num_nodes)) is tree_layout(chain_parents(num_nodes))


@pytest.mark.parametrize("num_nodes", [1, 2, 7, 8, 9, 16, 17, 63, 64, 65, 130])
def test_masks_of_any_size(num_nodes: int) -> None:
    """Every node sees its ancestors and itself, also across the borders of bytes."""
    parents = (-1, *(node // 3 for node in range(num_nodes - 1)))
    mask = tree_layout(parents).mask
    assert mask.dtype == torch.bool and mask.shape == (num_nodes, num_nodes)
    for node in range(num_nodes):
        seen, above = set(), node
        while above >= 0:
            seen.add(above)
            above = parents[above]
        assert set(mask[node].nonzero()[:, 0].tolist()) == seen


@pytest.mark.parametrize("parents", [(), (0,), (-1, 1), (-1, 0, -1), (-1, 0, 2), (-1, -1)])
def test_other_parents_are_refused(parents: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"root|parent"):
        tree_layout(parents)


def test_large_trees_are_laid_out_too() -> None:
    layout = tree_layout(chain_parents(300))
    assert layout.depths[-1] == 299
    assert layout.mask.sum() == 300 * 301 // 2
