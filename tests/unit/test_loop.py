"""Requests: bad input, full contexts, and what a request leaves behind."""

from __future__ import annotations

import copy
import gc
import weakref
from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from draftless.drafters.ngram import NullDrafter
from draftless.drafters.registry import DRAFTERS, default_options, make_drafter
from draftless.engine.loop import decode, make_request
from draftless.engine.target import TargetModel
from draftless.errors import CapabilityError, ConfigError, InputError
from draftless.params import SamplingParams
from draftless.prices import PriceList
from draftless.types import DraftPasses, DraftTree, Row
from support.drafters import HALF, registered
from support.driving import Job, run
from support.models import CONTEXT, VOCAB_SIZE, prompt_ids, stock_model, target


@pytest.mark.parametrize(
    ("prompt", "message"),
    [
        ([], "the prompt is empty"),
        ([3, VOCAB_SIZE], f"token id {VOCAB_SIZE} lies outside the vocabulary 0..{VOCAB_SIZE - 1}"),
        ([3, -1], "token id -1 lies outside"),
        ([1] * CONTEXT, f"the prompt has {CONTEXT} tokens and the model's context is {CONTEXT}"),
        ([1] * (CONTEXT + 9), "shorten the prompt"),
    ],
    ids=["empty", "high id", "low id", "full", "too long"],
)
def test_bad_prompts(prompt: list[int], message: str) -> None:
    with pytest.raises(InputError, match=message):
        make_request(target("llama"), 0, prompt, SamplingParams(), None, ())


@pytest.mark.parametrize("name", DRAFTERS)
@pytest.mark.parametrize("length", [CONTEXT - 1, CONTEXT - 2, CONTEXT - 7])
def test_a_context_that_fills_up_ends_with_length(name: str, length: int) -> None:
    drafter = registered(name)
    job = Job([5, 6, 7] * (length // 3) + [5] * (length % 3), SamplingParams(max_new_tokens=50))
    (result,) = run(target("llama"), drafter, [job])
    assert len(result.token_ids) == CONTEXT - length
    assert result.finish_reason == "length"


def test_unknown_drafters_and_options() -> None:
    with pytest.raises(ConfigError, match="drafter 'magic' is unknown; known are none, auto, "):
        make_drafter("magic")
    with pytest.raises(ConfigError, match=r"'tr-jacobi' has no option bugdet; it knows budget,"):
        make_drafter("tr-jacobi", {"bugdet": 3})
    with pytest.raises(ConfigError, match="'none' has no option budget; it knows none"):
        make_drafter("none", {"budget": 3})


def test_a_tree_that_begins_elsewhere_is_refused() -> None:
    """It would be written as if the row had ended so."""

    class Elsewhere(NullDrafter):
        def propose(self, rows: Sequence[Row], _: DraftPasses) -> list[DraftTree]:
            return [DraftTree.chain([row.token_ids[-1] + 1]) for row in rows]

    job = Job([1, 2], SamplingParams(max_new_tokens=2))
    with pytest.raises(ConfigError, match=r"with root 3; node 0 must carry .* the row, 2"):
        run(target("llama"), Elsewhere(), [job], audit=False)


@pytest.mark.parametrize(
    ("name", "options", "told"),
    [
        ("tr-jacobi", {"top_k": 2.0}, "top_k=2.0 of tr-jacobi is no int, as 10 is"),
        ("recycling", {"budget": None}, "budget=None of recycling is no int"),
        ("auto", {"max_width": "8"}, "max_width='8' of auto is no int"),
        ("auto", {"adaptive_ids": 5}, r"'auto' cannot take \{'adaptive_ids': 5\}: .*iterable"),
        ("auto", {"adaptive_ids": [-1]}, r"adaptive_ids=\[-1\] of auto .* from 0 on"),
        ("sdsat", {"adaptive_ids": ["x"]}, r"adaptive_ids=\['x'\] of sdsat are not all ids"),
        ("auto", {"prices": 3}, r"'auto' cannot take \{'prices': 3\}"),
        ("sdsat", {"adaptive_ids": [3], "steps": 3}, "^steps=3 of sdsat is neither 1 nor 2"),
        ("sdsat", {"adaptive_ids": [3], "couple": "false"}, "couple='false' of sdsat is no bool"),
        ("layer-skip", {"skip_set": HALF, "depth": 2.5}, "depth=2.5 of layer-skip is no integer"),
        (
            "layer-skip",
            {"skip_set": HALF, "threshold": "x"},
            "threshold=x of layer-skip is not between",
        ),
    ],
)
def test_options_of_another_type(name: str, options: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        make_drafter(name, options)


@pytest.mark.parametrize(
    ("free", "of_a_token", "budget"),
    [(1.0, 0.0, 80), (1.0, 1 / 64, 16), (1.0, 0.3, 4), (0.0, 1.0, 4)],
)
def test_a_budget_is_what_costs_little_more_than_one_node(
    free: float, of_a_token: float, budget: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    points = {(width, 512, 1): free + of_a_token * width for width in (1, 2, 64, 128)}
    prices = PriceList.from_points(points)
    monkeypatch.setattr("draftless.drafters.registry.prices_of", lambda _: prices)
    assert default_options("recycling", target("llama"))["budget"] == budget


def test_default_options_fit_every_drafter() -> None:
    for name in DRAFTERS:
        registered(name)
    on_cpu = target("llama")
    assert default_options("tr-jacobi", on_cpu) == {"budget": 16, "vocab_size": VOCAB_SIZE}
    assert default_options("tr-jacobi", on_cpu, {"budget"}) == {"vocab_size": VOCAB_SIZE}
    on_gpu = SimpleNamespace(device=torch.device("cuda"), vocab_size=VOCAB_SIZE)
    assert default_options("tr-jacobi", on_gpu)["budget"] == 70
    assert default_options("unknown", on_cpu) == {}
    layers = {"num_layers": 2, "model_fingerprint": on_cpu.fingerprint()}
    assert default_options("knn-ssd", on_cpu) == layers


def test_the_first_token_comes_at_the_prompts_length() -> None:
    """`max_depth` tells a drafter what can still be used, and shrinks to nothing at the end."""
    seen: list[int] = []

    class Spy:
        def reset(self, row: Row) -> None:
            seen.append(len(row.token_ids))

        def propose(self, rows: list[Row], _: object) -> list[DraftTree]:
            seen.extend(row.max_depth for row in rows)
            return [DraftTree.chain(row.token_ids[-1:]) for row in rows]

        def observe(self, records: object) -> None:
            pass

    run(target("llama"), Spy(), [Job(prompt_ids(6), SamplingParams(max_new_tokens=3))])
    assert seen == [6, 2, 1, 0]


@pytest.mark.parametrize(
    ("name", "options"),
    [*((name, {}) for name in DRAFTERS), ("auto", {"in_python": True})],
    ids=str,
)
def test_a_stream_that_is_given_up_leaves_nothing_behind(
    name: str, options: dict[str, bool]
) -> None:
    drafter = registered(name, **options)
    request = make_request(target("llama"), 0, prompt_ids(9), SamplingParams(), None, ())
    steps = decode(target("llama"), drafter, [request])
    next(steps)
    steps.close()
    row = weakref.ref(request.row)
    del request, steps
    gc.collect()
    assert row() is None, "the drafter holds its rows weakly"


@pytest.mark.parametrize("part", ["whole", "layer"])
def test_a_model_in_training_mode_is_refused(part: str) -> None:
    """Dropout would make every pass random; a trainer may have switched it, whole or in part."""
    own = TargetModel(copy.deepcopy(stock_model("llama")))
    params = SamplingParams(max_new_tokens=2)
    (before,) = run(own, make_drafter("none"), [Job([1, 2], params)])
    switched = own.model if part == "whole" else own.model.model.layers[1].mlp
    switched.train()
    with pytest.raises(CapabilityError, match=r"is in training mode.*call model.eval\(\)"):
        run(own, make_drafter("none"), [Job([1, 2], params)])
    assert switched.training  # whoever trains goes on training
    own.model.eval()
    (after,) = run(own, make_drafter("none"), [Job([1, 2], params)])
    assert after.token_ids == before.token_ids


def test_records_of_a_stream_hold_no_logits() -> None:
    (result,) = run(
        target("llama"), make_drafter("none"), [Job([1, 2], SamplingParams(max_new_tokens=2))]
    )
    assert [step.logits for step in result.steps] == [None, None]
    assert set(result.steps[0].time_s) == {
        "propose",
        "draft",
        "forward",
        "verify",
        "commit",
        "observe",
    }
    assert set(result.request.stats.time_s) == {"prefill", *result.steps[0].time_s}
