"""A tiny model and runs of the benchmark on it."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GPTNeoXConfig, GPTNeoXForCausalLM, LlamaConfig, LlamaForCausalLM

from draftless import Draftless
from draftless.bench.methods import Method
from draftless.bench.plan import Plan, RunOptions, make_plan
from draftless.bench.questions import Question
from draftless.bench.rows import Case, Row, Turn
from draftless.bench.runner import Run
from draftless.engine import loop
from draftless.engine.verify import walk
from draftless.manifest import Manifest, write_manifest
from draftless.types import DraftTree, Verdict
from support.small_model import training_tokenizer

ADAPTIVE_ID = 299  # the tokenizer makes no id above 296

Call = tuple[str, tuple[int, ...], int]  # method, prompt ids, seed

QUESTIONS = (
    Question("a", "cats", ("the cat sat on the mat the cat",)),
    Question("b", "talk", ("the dog", "and the log")),
    Question("c", "cats", ("print(a[0])",)),
)


def wide_model(dtype: torch.dtype = torch.float32, seed: int = 0) -> LlamaForCausalLM:
    """A Llama of 2 layers with weights drawn wide: at the usual 0.02 all logits are alike."""
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        initializer_range=0.3, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return _seeded(LlamaForCausalLM, config, seed).to(dtype).eval()


def neox_model() -> GPTNeoXForCausalLM:
    """A model whose code does not look at the number of layers while it runs."""
    config = GPTNeoXConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, max_position_embeddings=512, bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    return _seeded(GPTNeoXForCausalLM, config, 0).eval()


@cache
def bench_model() -> Draftless:
    """Plain decoding of the wide model in fp32."""
    return fresh_model()


def fresh_model(model: Any = None, adaptive_ids: Sequence[int] = (ADAPTIVE_ID,)) -> Draftless:
    """The same, not shared: for tests that change it; without `adaptive_ids` it knows no SDSAT."""
    loaded = Draftless.from_pretrained(
        model or wide_model(),
        tokenizer=training_tokenizer(),
        drafter="none",
        input_only_ids=adaptive_ids,
    )
    manifest = _manifest(adaptive_ids) if adaptive_ids else None
    return Draftless(loaded.target, loaded.tokenizer, loaded.drafter, manifest)


def save_bench_model(folder: Path) -> Path:
    """Model and tokenizer as a checkpoint folder."""
    wide_model().save_pretrained(folder)
    training_tokenizer().save_pretrained(folder)
    write_manifest(folder, _manifest([ADAPTIVE_ID]))
    return folder


def _manifest(adaptive_ids: Sequence[int]) -> Manifest:
    sdsat = {"adaptive_ids": list(adaptive_ids), "block_length": 3}
    return Manifest(methods={"sdsat": sdsat}, default_drafter="none")


def small_plan(
    model: Draftless | None = None, questions: Sequence[Question] = QUESTIONS, **options: Any
) -> Plan:
    """A plan of our methods on a few questions."""
    chosen = {"max_new_tokens": 12, "has_peers": False, "name": "wide", **options}
    return make_plan(model or bench_model(), questions, RunOptions(**chosen))


def _seeded(kind: Any, config: Any, seed: int) -> Any:
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return kind(config)


def plant_wrong_token(patch: pytest.MonkeyPatch) -> None:
    """One wrong token: the first that is drawn at the root of a tree with drafts, in every request."""
    seen: set[int] = set()

    def broken(tree: DraftTree, draw: Any, stop: Any) -> Verdict:
        def wrong(node: int, path_ids: Sequence[int]) -> int:
            token_id: int = draw(node, path_ids)
            request = id(draw.__self__)
            if tree.num_nodes == 1 or node or request in seen:
                return token_id
            seen.add(request)
            kept.append(draw.__self__)  # an id is unique only while its object lives
            return (token_id + 1) % 300

        return walk(tree, wrong, stop)

    kept: list[Any] = []
    patch.setattr(loop, "walk", broken)


def carry_out(plan: Plan, folder: Path, *, is_resumed: bool = False) -> list[Row]:
    """All rows that a run measures now."""
    return [row for rows in Run(plan, folder, is_resumed=is_resumed).rows() for row in rows]


def with_methods(plan: Plan, methods: Mapping[Case, Method]) -> Plan:
    """The same plan with other methods, for the warm-up and for all that is measured."""
    return replace(plan, methods=methods, fresh_methods=lambda: methods)


def watched(plan: Plan, answers: dict[str, str] | None = None) -> tuple[Plan, list[Call]]:
    """The same plan with methods that only note their calls; the warm-up counts, too."""
    calls: list[Call] = []

    def fake(name: str) -> Any:
        def run(prompt_ids: Sequence[int], seed: int) -> Turn:
            calls.append((name, tuple(prompt_ids), seed))
            return Turn(len(prompt_ids), [7, 8], text=(answers or {}).get(name, "same"))

        return run

    methods = {case: fake(case.method) for case in plan.methods}
    return with_methods(plan, methods), calls


def keys(rows: Sequence[Row]) -> Counter[tuple[Case, tuple[str, int, float | None]]]:
    return Counter(row.key for row in rows)
