"""Reshaping trees."""

from __future__ import annotations

import pytest

from draftless.engine.tree import prune, select
from draftless.errors import ConfigError
from draftless.types import DraftTree

TREE = DraftTree(
    token_ids=(9, 1, 2, 1, 3, 4),
    parents=(-1, 0, 1, 0, 3, 4),
    is_probe=(False, False, True, False, False, False),
    scores=(1.0, 0.2, 0.1, 0.5, 0.4, 0.3),
)


def test_prune_drops_deep_nodes_and_keeps_the_rest_in_order() -> None:
    pruned = prune(TREE, 1)
    assert pruned == DraftTree((9, 1, 1), (-1, 0, 0), (False,) * 3, (1.0, 0.2, 0.5))
    assert prune(TREE, 3) is TREE
    assert prune(TREE, 0).token_ids == (9,)


def test_select_renumbers_parents() -> None:
    assert select(TREE, [0, 3, 4]) == DraftTree(
        (9, 1, 3), (-1, 0, 1), (False,) * 3, (1.0, 0.5, 0.4)
    )


def test_fields_of_unequal_length_are_refused() -> None:
    for fields in ({"parents": (-1,)}, {"is_probe": (True,)}, {"scores": (0.5,)}):
        with pytest.raises(ConfigError, match="has 1"):
            DraftTree(**{"token_ids": (0, 1), "parents": (-1, 0), **fields})


def test_drafts_are_counted_without_root_and_probes() -> None:
    assert TREE.num_nodes == 6
    assert TREE.num_draft_tokens == 4
    assert DraftTree.chain([5]).num_draft_tokens == 0


def test_child_carrying_skips_probes_and_takes_the_first() -> None:
    tree = DraftTree((0, 1, 1, 1, 2), (-1, 0, 0, 0, 0), (False, True, False, False, False))
    assert tree.child_carrying(0, 1) == 2
    assert tree.child_carrying(0, 2) == 4
    assert tree.child_carrying(0, 3) is None
    assert tree.child_carrying(4, 1) is None
