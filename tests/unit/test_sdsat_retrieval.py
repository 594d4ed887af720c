"""The retrieved chain that competes with SDSAT's candidates."""

from __future__ import annotations

import pytest

from draftless.types import DraftTree
from support.driving import make_row
from support.sdsat_steps import observe, probes, propose, started


def retrieved(tree: DraftTree) -> list[int]:
    return [
        t for t, source in zip(tree.token_ids, tree.sources, strict=True) if source == "retrieval"
    ]


def test_what_followed_the_last_match_is_drafted_no_deeper_than_it_can_be_used() -> None:
    row = make_row([5, 6, 7, 8, 9, 5, 6])
    assert retrieved(propose(started(row, retrieval_len=3, budget=9), row)) == [7, 8, 9]
    row.max_depth = 2
    assert retrieved(propose(started(row, retrieval_len=3, budget=9), row)) == [7, 8]
    assert not retrieved(propose(started(row, budget=9), row))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("is_right", [True, False])
def test_retrieval_is_trusted_as_far_as_it_was_right(is_right: bool, temperature: float) -> None:
    """The slots always say 30 and the text says 5, 6, 7, 8: who was right comes first."""
    text = [5, 6, 7, 8]
    row = make_row(text * 3, temperature=temperature)
    drafter = started(row, retrieval_len=1, budget=9, k=1, couple=False)
    for _ in range(12):
        tree = propose(drafter, row)
        drawn = text[len(row.token_ids) % 4] if is_right else 30
        observe(drafter, row, tree, {node: [30] for node in probes(tree)}, (0,), drawn)
        if not is_right:
            row.token_ids[-1:] = text  # what follows is to be found again
    tree = propose(drafter, row)
    assert tree.sources[1] == ("retrieval" if is_right else "adaptive")
