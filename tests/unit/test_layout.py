"""Masks and positions of trees: exact tensors."""

from __future__ import annotations

import pytest

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


def test_a_layout_is_made_once() -> None:
    assert tree_layout((-1, 0, 0)) is tree_layout((-1, 0, 0))


@pytest.mark.parametrize("parents", [(), (0,), (-1, 1), (-1, 0, -1), (-1, 0, 2), (-1, -1)])
def test_other_parents_are_refused(parents: tuple[int, ...]) -> None:
    with pytest.raises(ConfigError, match=r"root|parent"):
        tree_layout(parents)


def test_large_trees_are_laid_out_too() -> None:
    layout = tree_layout(chain_parents(300))
    assert layout.depths[-1] == 299
    assert layout.mask.sum() == 300 * 301 // 2
