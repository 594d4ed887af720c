"""Drafters as tests need them: every registered one, its variants, and SDSAT that was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import product
from typing import Any

import torch

from draftless.drafters.registry import default_options, make_drafter
from draftless.drafters.sdsat import SDSATDrafter
from draftless.types import Drafter, DraftTree, Row, StepRecord
from support.models import VOCAB_SIZE

ADAPTIVE_ID = VOCAB_SIZE - 1  # losslessness does not depend on which id is fed as a probe

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("recycling", {"keep_table": True}),
    ("recycling", {"couple": False}),
    ("tr-jacobi", {"couple": False}),
    ("sdsat", {"couple": False}),
    ("sdsat", {"retrieval_len": 0}),
    ("sdsat", {"steps": 2}),
    ("sdsat", {"adaptive_ids": [ADAPTIVE_ID, 3, 11], "top_k": 1}),
)
"""Options that change what is proposed; they take turns in the cells of the matrix."""

PLANTED = tuple({"steps": steps, "k": k} for steps, k in product((1, 2), (1, 3, 5, 8)))
"""What SDSAT must be exact with (issue 4)."""


def registered(name: str, **options: Any) -> Drafter:
    """A drafter of the registry, as on a CPU with a model of `VOCAB_SIZE` tokens."""
    given = {"adaptive_ids": [ADAPTIVE_ID]} if name == "sdsat" else {}
    return make_drafter(name, {**default_options(name, "cpu", VOCAB_SIZE), **given, **options})


class PlantedSDSAT:
    """SDSAT on a model that might have been trained: probes predict the true text.

    A random model accepts nothing, so that a wrong slot or a wrong path would go unseen. Here the
    logits of probes are replaced before the drafter sees them. A probe that predicts the `i`-th new
    token puts it first, second (behind a wrong token), or nowhere, by a fixed rhythm of `i`; so
    accepted paths are long, leave the best branch, and end everywhere.

    Args:
        texts: per request id, the plain new ids, going on beyond the stop.
        **options: of the drafter.
    """

    def __init__(self, texts: Sequence[Sequence[int]], **options: Any) -> None:
        # Without retrieval, or a text that repeats itself would hide a wrong slot.
        drafter = registered("sdsat", **{"retrieval_len": 0, **options})
        assert isinstance(drafter, SDSATDrafter)
        self.inner = drafter
        self._texts = texts

    def reset(self, row: Row) -> None:
        self.inner.reset(row)

    def propose(self, rows: Sequence[Row]) -> list[DraftTree]:
        return self.inner.propose(rows)

    def observe(self, records: Sequence[StepRecord]) -> None:
        self.inner.observe([self._planted(record) for record in records])

    def _planted(self, record: StepRecord) -> StepRecord:
        assert record.logits is not None
        tree, row = record.tree, record.row
        logits = record.logits.clone()
        before = len(row.token_ids) - len(record.verdict.token_ids) - row.prompt_len
        for node, depth in enumerate(tree.layout.depths):
            if tree.is_probe and tree.is_probe[node]:
                plant(logits[node], self._texts[row.request_id], before + depth)
        return replace(record, logits=logits)


def plant(logits: torch.Tensor, text: Sequence[int], place: int) -> None:
    """Make `logits [V]` predict the token at `place` of the text, or not, by the place's turn."""
    token_id = text[place] if place < len(text) else 0
    wrong, other = ((token_id + offset) % len(logits) for offset in (1, 2))
    turn = place % 7
    logits.fill_(-60.0)  # against any noise
    first, second = (wrong, token_id) if turn == 2 else (token_id, wrong)
    logits[first], logits[second], logits[other] = 60.0, 58.0, 57.0
    if turn == 5:
        logits[token_id] = -60.0
