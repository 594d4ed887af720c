"""Single steps of SDSAT's drafter, without an engine behind it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from draftless.drafters.sdsat import SDSATDrafter
from draftless.types import DraftTree, Row, StepRecord, Verdict
from support.drafters import ADAPTIVE_ID
from support.driving import RandomPasses
from support.models import VOCAB_SIZE

ID = ADAPTIVE_ID


def propose(drafter: SDSATDrafter, row: Row) -> DraftTree:
    (tree,) = drafter.propose([row], RandomPasses())
    assert tree.token_ids[0] == row.token_ids[-1]
    return tree


def probes(tree: DraftTree) -> list[int]:
    return [node for node, flag in enumerate(tree.is_probe) if flag]


def drafts(tree: DraftTree) -> list[int]:
    return [node for node in range(1, tree.num_nodes) if node not in probes(tree)]


def observe(
    drafter: SDSATDrafter,
    row: Row,
    tree: DraftTree,
    says: dict[int, Sequence[int]],
    path: tuple[int, ...] = (0,),
    drawn: int = 0,
) -> None:
    """A step that accepted `path` and drew a token; node `n` predicts `says[n]`, the best first."""
    logits = torch.zeros(tree.num_nodes, VOCAB_SIZE)
    for node, token_ids in says.items():
        logits[node, list(token_ids)] = torch.arange(6.0, 6.0 - len(token_ids), -1)
    committed = (*(tree.token_ids[node] for node in path[1:]), drawn)
    row.token_ids.extend(committed)
    below = [c for c in tree.layout.children[path[-1]] if c in drafts(tree)]
    kind = "recovered" if below else "bonus"
    drafter.observe([StepRecord(row, tree, Verdict(path, committed, kind), logits)])


def started(row: Row, **options: Any) -> SDSATDrafter:
    drafter = SDSATDrafter(**{"adaptive_ids": [ID], "retrieval_len": 0, **options})
    drafter.reset(row)
    return drafter
