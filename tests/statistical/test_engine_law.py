"""The law through the whole engine: cache, batches, trees, keyed draws and drafters that look.

Three tokens over a vocabulary of six give 216 texts; their exact probabilities come from plain
forwards of the stock model. The seeds are fixed, so each test passes always or never; a correct
engine would have failed with probability `ALPHA` at each.
"""

from __future__ import annotations

from functools import cache
from itertools import product

import pytest
import torch
import transformers as hf
from scipy import stats

from draftless.drafters.layer_skip import LayerSkipDrafter
from draftless.drafters.registry import DRAFTERS, NEED_CHECKPOINT, make_drafter
from draftless.drafters.sdsat import SDSATDrafter
from draftless.engine.sampling import warp
from draftless.engine.target import TargetModel
from draftless.params import SamplingParams
from draftless.skip_set import SkipSet
from draftless.types import Drafter
from support.drafters import FREE
from support.driving import Job, run
from support.models import build_model
from support.mutants import MUTANTS

ALPHA = 1e-6
NUM_TEXTS = 1500
VOCAB = 6
PROMPT = [1, 2, 3, 1, 2, 4, 1, 2]


@cache
def small_target(*input_only_ids: int) -> TargetModel:
    config = hf.LlamaConfig(
        vocab_size=VOCAB, hidden_size=16, intermediate_size=24, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return TargetModel(build_model(config, "fp32"), "eager", input_only_ids=input_only_ids)


def exact_law(params: SamplingParams, *input_only_ids: int) -> dict[tuple[int, ...], float]:
    """The product of conditionals, from one plain forward over every prefix."""
    prefixes = torch.tensor([[*PROMPT, *p] for p in product(range(VOCAB), repeat=2)])
    with torch.inference_mode():
        logits = small_target().model(prefixes).logits[:, -3:].double()
        logits[:, :, list(input_only_ids)] = -torch.inf
    law = {}
    for prefix, rows in zip(product(range(VOCAB), repeat=2), logits, strict=True):
        chances = torch.zeros(3, VOCAB, dtype=torch.float64)
        for place, row in enumerate(rows):
            scores, ids = warp(row, params)
            kept = torch.arange(VOCAB) if ids is None else ids
            chances[place, kept] = scores.softmax(0)
        before = chances[0, prefix[0]] * chances[1, prefix[1]]
        for token_id in range(VOCAB):
            law[*prefix, token_id] = float(before * chances[2, token_id])
    return law


def chance_of(
    drafter: Drafter, options: dict[str, float], *input_only_ids: int, audit: bool = True
) -> float:
    """Chi-square's chance of texts like these, or more unlike the law, if they do follow it."""

    def params(seed: int) -> SamplingParams:
        return SamplingParams(max_new_tokens=3, temperature=1.0, seed=seed, **options)

    jobs = [Job(PROMPT, params(seed)) for seed in range(NUM_TEXTS)]
    model = small_target(*input_only_ids)
    results = [
        result
        for begin in range(0, NUM_TEXTS, 250)
        for result in run(model, drafter, jobs[begin : begin + 250], audit=audit)
    ]
    assert any(step.verdict.num_accepted_tokens for r in results for step in r.steps)
    law = exact_law(params(0), *input_only_ids)
    assert sum(law.values()) == pytest.approx(1.0)
    texts = [tuple(r.token_ids) for r in results]
    assert all(law[text] > 0 for text in texts)
    common = [text for text, p in law.items() if p * NUM_TEXTS >= 5]
    observed = [texts.count(text) for text in common]
    expected = [law[text] * NUM_TEXTS for text in common]
    observed.append(NUM_TEXTS - sum(observed))  # the rare ones, pooled
    expected.append(NUM_TEXTS - sum(expected))
    if expected[-1] < 5:
        observed[-2:], expected[-2:] = [sum(observed[-2:])], [sum(expected[-2:])]
    return float(stats.chisquare(observed, expected).pvalue)


@pytest.mark.parametrize("options", [{}, {"top_p": 0.8}], ids=str)
@pytest.mark.parametrize("name", [n for n in DRAFTERS if n not in ("none", *NEED_CHECKPOINT)])
def test_texts_follow_the_exact_law(name: str, options: dict[str, float]) -> None:
    drafter = make_drafter(name, {"prices": FREE} if name == "auto" else {})
    assert chance_of(drafter, options) > ALPHA


@pytest.mark.parametrize(
    ("steps", "options", "input_only_ids"), [(1, {}, (5,)), (2, {"top_p": 0.8}, ()), (1, {}, ())]
)
def test_texts_of_sdsat_follow_the_exact_law(
    steps: int, options: dict[str, float], input_only_ids: tuple[int, ...]
) -> None:
    """Whether or not its adaptive token may be emitted."""
    assert chance_of(SDSATDrafter([5], steps=steps), options, *input_only_ids) > ALPHA


@pytest.mark.parametrize(
    ("skip_set", "siblings", "options"),
    [
        (SkipSet(), 0, {}),
        (SkipSet((1,), (0,)), 2, {"top_p": 0.8}),
        (SkipSet((0, 1), (0, 1)), 3, {}),
    ],
    ids=["none", "half", "all"],
)
def test_texts_of_layer_skipping_follow_the_exact_law(
    skip_set: SkipSet, siblings: int, options: dict[str, float]
) -> None:
    drafter = LayerSkipDrafter(skip_set, threshold=0.2, depth=2, siblings=siblings)
    assert chance_of(drafter, options) > ALPHA


def test_the_nucleus_rule_of_sdsats_reference_is_caught(monkeypatch: pytest.MonkeyPatch) -> None:
    MUTANTS["every_path_drawn_anew"](monkeypatch, small_target())
    assert chance_of(SDSATDrafter([5], couple=False), {}, audit=False) < ALPHA
