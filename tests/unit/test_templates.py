"""The drafters that fill a given template, and what they say of ranks to learn one from."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

from draftless import ConfigError
from draftless.drafters.jacobi import TRJacobiDrafter, jacobi_template
from draftless.drafters.recycling import RecyclingDrafter
from draftless.drafters.registry import make_drafter
from draftless.params import SamplingParams
from draftless.types import DraftTree, Row, StepRecord, Verdict

V = 61
FULL = [[0], [1], [0, 0], [0, 1], [1, 0], [0, 0, 2]]


def row_of(*token_ids: int) -> Row:
    row = Row(0, token_ids, SamplingParams(), None)
    row.max_depth = 20
    return row


def peaks(*ranked: list[int]) -> torch.Tensor:
    """Logits whose best tokens are these, in order."""
    logits = torch.zeros(len(ranked), V)
    for line, ids in zip(logits, ranked, strict=True):
        for place, token_id in enumerate(ids):
            line[token_id] = 20.0 - place
    return logits


def observe(drafter: Any, row: Row, tree: DraftTree, logits: torch.Tensor) -> None:
    """A step in which nothing of the tree was accepted and token 40 was drawn."""
    row.token_ids.append(40)
    drafter.observe([StepRecord(row, tree, Verdict((0,), (40,), "recovered"), logits)])


def recycling(**options: Any) -> tuple[Any, Row]:
    """It knows the successors of 40 (5, 6, 7), 5 (8, 9, 10) and 6 (11, 12, 13)."""
    drafter = make_drafter("recycling", {"learn_prompt": False, "top_k": 3, **options})
    row = row_of(1)
    drafter.reset(row)
    tree = DraftTree((40, 5, 6, 8), (-1, 0, 0, 1))
    observe(drafter, row, tree, peaks([5, 6, 7], [8, 9, 10], [11, 12, 13], [20, 21, 22]))
    return drafter, row


def jacobi(**options: Any) -> tuple[Any, Row]:
    """Its guesses are 5, 6, 7 and then 8, 9, 10."""
    drafter = make_drafter("tr-jacobi", {"depth": 3, "top_k": 3, "retrieval_len": 0, **options})
    row = row_of(1)
    drafter.reset(row)
    tree = DraftTree((1, 2, 3), (-1, 0, 1))
    observe(drafter, row, tree, peaks([30], [5, 6, 7], [8, 9, 10]))
    return drafter, row


def paths_of(tree: DraftTree) -> list[tuple[int, ...]]:
    """The tokens of every node's path."""
    paths: list[tuple[int, ...]] = []
    for token_id, parent in zip(tree.token_ids, tree.parents, strict=True):
        paths.append((*paths[parent], token_id) if parent >= 0 else ())
    return paths[1:]


def test_recycling_fills_its_template() -> None:
    drafter, row = recycling(template=FULL)
    (tree,) = drafter.propose([row], None)
    assert paths_of(tree) == [(5,), (6,), (5, 8), (5, 9), (6, 11), (5, 8, 22)]
    learned, other = recycling(template=[[0], [0, 0], [1], [1, 0], [0, 0, 2], [0, 1]])
    assert learned.propose([other], None) == [tree]  # whatever the order in which they are likely
    row.max_depth = 2
    (tree,) = drafter.propose([row], None)
    assert paths_of(tree) == [(5,), (6,), (5, 8), (5, 9), (6, 11)]


def test_a_budget_takes_the_first_paths() -> None:
    drafter, row = recycling(template=[[0], [0, 0], [0, 0, 0], [2]], budget=4)
    (tree,) = drafter.propose([row], None)
    assert paths_of(tree) == [(5,), (5, 8), (5, 8, 20)]  # not (7,), though it is nearer


def test_tr_jacobi_keeps_its_spine() -> None:
    drafter, row = jacobi(template=[[2], [1], [2, 1], [0], [0, 1]])
    (tree,) = drafter.propose([row], None)
    found = paths_of(tree)
    noise = found[2][2]
    assert found == [(5,), (5, 8), (5, 8, noise), (7,), (6,), (7, 9), (5, 9)]
    default, row = jacobi(template=jacobi_template(3, 3))
    without, other = jacobi()
    assert default.propose([row], None) == without.propose([other], None)


@pytest.mark.parametrize(
    ("make", "future", "ranks"),
    [
        (recycling, [6, 11], (1, 0)),
        (recycling, [5, 10, 5], (0, 2)),
        (recycling, [9], ()),
        (recycling, [5, 8, 22, 5], (0, 0, 2)),  # nothing is known of what follows 22
        (jacobi, [6, 10, 5], (1, 2)),  # there are two guesses
        (jacobi, [6, 5], (1,)),
        (jacobi, [8], ()),
        (jacobi, [7], (2,)),
    ],
)
def test_ranks_of_what_follows(make: Any, future: list[int], ranks: tuple[int, ...]) -> None:
    drafter, row = make()
    assert drafter.future_ranks(row, future) == ranks
    before = drafter.propose([row], None)
    again, other = make()
    assert before == again.propose([other], None)  # being asked changes nothing


@pytest.mark.parametrize("kind", [RecyclingDrafter, TRJacobiDrafter])
def test_templates_from_files_and_what_does_not_fit(kind: Any, tmp_path: Path) -> None:
    file = tmp_path / "tree.json"
    file.write_text(json.dumps({"format_version": 1, "template": [[0], [3]]}))
    kind(template=str(file), top_k=4)
    with pytest.raises(ConfigError, match=r"rank 3, the drafter depth \d+ and rank 2"):
        kind(template=file, top_k=3)
    with pytest.raises(ConfigError, match="depth 2 and rank 0, the drafter depth 1"):
        kind(template=[[0], [0, 0]], depth=1)
