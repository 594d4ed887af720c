"""A draft whose keys and values are no numbers must not reach what it is hidden from.

The embedding of one token is NaN, as after an overflow. Plain decoding never feeds it, since the options
forbid it; drafters do.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from functools import cache

import pytest
import torch

from draftless.drafters.ngram import NullDrafter
from draftless.drafters.registry import DRAFTERS
from draftless.engine.target import TargetModel
from draftless.params import SamplingParams
from draftless.skip_set import SkipSet
from draftless.types import Drafter, DraftPasses, DraftTree, Row, StepRecord
from support.drafters import registered
from support.driving import Job, run
from support.models import VOCAB_SIZE, prompt_ids, stock_model

BROKEN = 7
MODES = [{}, {"temperature": 1.0}, {"temperature": 0.9, "top_p": 0.9}]
ROWS = [(9,), (5, 30, 2)]


@cache
def broken_target(family: str, *, compile: bool) -> TargetModel:
    model = copy.deepcopy(stock_model(family, "fp32"))
    target = TargetModel(model, compile=compile)
    with torch.no_grad():
        model.get_input_embeddings().weight[BROKEN] = torch.nan
    return target


class BrokenDrafts:
    """Proposes the broken token beside another one, and another one below it."""

    def reset(self, row: Row) -> None: ...

    def propose(self, rows: Sequence[Row], _: DraftPasses) -> list[DraftTree]:
        return [
            DraftTree((row.token_ids[-1], BROKEN, 3, 4), (-1, 0, 0, 1))
            if len(row.token_ids) % 2
            else DraftTree.chain(row.token_ids[-1:])
            for row in rows
        ]

    def observe(self, records: Sequence[StepRecord]) -> None:
        for record in records:
            assert record.logits is not None
            assert not record.logits[0].isnan().any(), "what the root says is there to learn from"


class BrokenPasses(NullDrafter):
    """Draft passes over the broken token, of which no tree tells."""

    def propose(self, rows: Sequence[Row], passes: DraftPasses) -> list[DraftTree]:
        short = min(range(len(rows)), key=lambda index: len(rows[index].token_ids))
        passes.feed({short: [3, BROKEN, BROKEN]}, SkipSet())
        return super().propose(rows, passes)


@pytest.mark.parametrize("rows", ROWS, ids=str)
@pytest.mark.parametrize("options", MODES, ids=str)
@pytest.mark.parametrize(
    ("family", "compile"), [("llama", False), ("mistral", False), ("llama", True)]
)
def test_what_is_hidden_stays_hidden(
    family: str, compile: bool, options: dict[str, float], rows: tuple[int, ...]
) -> None:
    target = broken_target(family, compile=compile)
    jobs = [
        Job(
            [one if one != BROKEN else 8 for one in prompt_ids(length)],
            SamplingParams(max_new_tokens=20, seed=length, suppress_tokens=[BROKEN], **options),  # type: ignore[arg-type]
        )
        for length in rows
    ]
    plain = [run(target, NullDrafter(), [job])[0].token_ids for job in jobs]
    assert all(len(set(ids)) > 2 for ids in plain), "the model says something"
    drafters: dict[str, Drafter] = {name: registered(name) for name in DRAFTERS}
    drafters["noise"] = registered(
        "tr-jacobi", noise_source="vocabulary", vocab_size=VOCAB_SIZE, retrieval_len=0
    )
    drafters |= {"broken drafts": BrokenDrafts(), "broken passes": BrokenPasses()}
    for name, drafter in drafters.items():
        results = run(target, drafter, jobs)
        assert [result.token_ids for result in results] == plain, name
    assert all(len(result.steps) == 20 for result in results), "nothing of it was accepted"
