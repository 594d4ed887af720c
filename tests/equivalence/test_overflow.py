"""A draft whose keys and values are no numbers must not reach what it is hidden from.

The embedding of one token is NaN, as after an overflow. Plain decoding never feeds it, since the options
forbid it; drafters do.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace
from functools import cache

import pytest
import torch
from transformers import LlamaConfig

from draftless.drafters.ngram import NullDrafter
from draftless.drafters.registry import DRAFTERS
from draftless.engine.load import Compile
from draftless.engine.native import has_fast_products
from draftless.engine.target import TargetModel
from draftless.params import SamplingParams
from draftless.skip_set import SkipSet
from draftless.types import Drafter, DraftPasses, DraftTree, Row, StepRecord
from support.drafters import registered
from support.driving import Job, run
from support.half_precision import half_precision_model
from support.models import VOCAB_SIZE, build_model, prompt_ids, stock_model

BROKEN = 7
HIDDEN_SIZE = 32
MODES = [{}, {"temperature": 1.0}, {"temperature": 0.9, "top_p": 0.9}]
ROWS = [(9,), (5, 30, 2)]


@cache
def broken_target(family: str, *, compile: Compile) -> TargetModel:
    return break_a_token(TargetModel(copy.deepcopy(stock_model(family, "fp32")), compile=compile))


def break_a_token(target: TargetModel) -> TargetModel:
    with torch.no_grad():
        target.model.get_input_embeddings().weight[BROKEN] = torch.nan
    # Embeddings are read where they lie. A test of the new weights would meet the token.
    assert target._watch.has_new_weights()
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
    ("family", "compile"),
    [
        ("llama", False),
        ("mistral", False),
        ("llama", True),
        ("mistral", True),
        ("llama", "inductor"),
    ],
)
def test_what_is_hidden_stays_hidden(
    family: str, compile: Compile, options: dict[str, float], rows: tuple[int, ...]
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
        num_steps = [len(result.steps) for result in results]
        assert "broken" not in name or num_steps == [20] * len(jobs), "nothing of it is accepted"


@pytest.mark.parametrize("compile", [True, "inductor"])
def test_in_half_precision(compile: Compile) -> None:
    if compile == "inductor" and not has_fast_products():
        pytest.skip("there bits depend on the tree")
    target = break_a_token(half_precision_model(compile=compile))
    job = Job([3, 5, 8, 5], SamplingParams(max_new_tokens=20, suppress_tokens=[BROKEN]))
    (plain,) = run(target, NullDrafter(), [job])
    for drafter in (BrokenDrafts(), BrokenPasses()):
        assert run(target, drafter, [job])[0].token_ids == plain.token_ids
    (beside, _) = run(target, BrokenDrafts(), [job, replace(job, prompt_ids=[9, 9])])
    assert beside.token_ids == plain.token_ids


class RightAndBroken(NullDrafter):
    """Proposes what plain decoding writes, and the broken token beside it."""

    def __init__(self, text: Sequence[int]) -> None:
        self._text = text

    def propose(self, rows: Sequence[Row], passes: DraftPasses) -> list[DraftTree]:
        (row,) = rows
        done = len(row.token_ids) - row.prompt_len
        if done == len(self._text) - 1:
            return super().propose(rows, passes)
        return [DraftTree((row.token_ids[-1], self._text[done], BROKEN), (-1, 0, 0))]


def test_a_key_that_is_infinite_spoils_some_nodes_alone() -> None:
    """In the last layer: minus infinity at the root, where it is hidden, and plus infinity beside it."""
    num_spoiled = 0
    for seed in range(6):
        target, prompt = target_with_an_infinite_key(seed), [3, 14, 25, 36]
        job = Job(prompt, SamplingParams(max_new_tokens=16, suppress_tokens=[BROKEN]))
        (plain,) = run(target, NullDrafter(), [job])
        (drafted,) = run(target, RightAndBroken(plain.token_ids), [job])
        assert drafted.token_ids == plain.token_ids
        num_spoiled += drafted.request.stats.num_forward_passes - len(drafted.steps) - 1  # prefill
    assert num_spoiled


def target_with_an_infinite_key(seed: int) -> TargetModel:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=HIDDEN_SIZE, intermediate_size=32, num_hidden_layers=1,
        num_attention_heads=1, num_key_value_heads=1, initializer_range=0.3,
    )  # fmt: skip
    target = TargetModel(build_model(config, "fp32", seed))
    attention = target.model.model.layers[0].self_attn
    with torch.no_grad():
        norm = target.model.model.layers[0].input_layernorm
        states = norm(target.model.get_input_embeddings().weight)
        shares = states @ states[BROKEN]
        largest = torch.cat([shares[:BROKEN], shares[BROKEN + 1 :]]).abs().max()
        attention.k_proj.weight.zero_()
        attention.k_proj.weight[15] = states[BROKEN] * (
            2.6e38 / largest
        )  # a slow pair of its rotation
        attention.q_proj.weight *= 1e-36
    return target
