"""What a run will measure, and what it refuses."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from draftless.bench.methods import PEER_LOOKUP, TRANSFORMERS, Sampling
from draftless.drafters.registry import DRAFTERS, NEED_CHECKPOINT
from draftless.errors import ConfigError
from support.bench import QUESTIONS, bench_model, carry_out, fresh_model, small_plan


def test_the_cases_are_what_was_asked_for() -> None:
    plan = small_plan(
        drafters=("prompt-lookup",),
        variants=(("tr-jacobi", {"couple": False, "budget": 8}), ("tr-jacobi", {"budget": 4})),
        samplings=(Sampling(), Sampling(1.0, top_p=0.9)),
        has_peers=True,
    )
    ours = ["none", "prompt-lookup", "tr-jacobi [couple=False, budget=8]"]
    ours.append("tr-jacobi [budget=4]")
    greedy = [case.method for case in plan.methods if case.sampling == "greedy"]
    sampled = [case.method for case in plan.methods if case.sampling == "T=1 top-p=0.9"]
    assert greedy == [TRANSFORMERS, PEER_LOOKUP, "transformers early-exit", *ours]
    assert sampled == [TRANSFORMERS, PEER_LOOKUP, *ours]
    assert {(case.model, case.dtype) for case in plan.methods} == {("wide", "float32")}
    assert plan.left_out == {"transformers early-exit, T=1 top-p=0.9": "greedy only"}


@pytest.mark.parametrize(
    "options",
    [
        {"drafters": ("medusa",)},
        {"variants": (("medusa", {"budget": 8}),)},
        {"variants": (("tr-jacobi", {"colour": 8}),)},
        {"repeats": 0},
        {"limit": 0},
        {"max_new_tokens": 0},
        {"samplings": ()},
    ],
)
def test_what_cannot_be_measured_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        small_plan(**options)


def test_drafters_that_need_training_are_left_out_unless_named() -> None:
    untrained = fresh_model(adaptive_ids=())
    plan = small_plan(untrained)
    methods = [case.method for case in plan.methods]
    assert methods == [name for name in DRAFTERS if name not in NEED_CHECKPOINT]
    assert tuple(plan.left_out) == NEED_CHECKPOINT
    assert "adaptive tokens" in plan.left_out["sdsat"]
    assert "draftless calibrate skip" in plan.left_out["layer-skip"]
    assert "draftless calibrate anchors" in plan.left_out["knn-ssd"]
    assert "sdsat" not in plan.facts()["options"]["drafters"]
    assert not small_plan(untrained, drafters=("none",)).left_out
    for options in ({"drafters": ("sdsat",)}, {"variants": (("sdsat", {"k": 3}),)}):
        with pytest.raises(ConfigError, match="adaptive tokens"):
            small_plan(untrained, **options)
    trained = small_plan()
    assert [case.method for case in trained.methods] == list(trained.model.drafters)
    assert "sdsat" in trained.model.drafters


def test_what_a_drafter_remembers_does_not_help_it_with_the_same_question_again(
    tmp_path: Path,
) -> None:
    """Neither the warm-up, nor another temperature, nor an earlier repetition counts."""
    kept = ("recycling", {"keep_table": True})
    options: dict[str, Any] = {"drafters": (), "variants": (kept,), "max_new_tokens": 40}
    questions = QUESTIONS[:1]
    samplings = (Sampling(), Sampling(0.01))
    plan = small_plan(questions=questions, repeats=2, samplings=samplings, **options)
    rows = [row for row in carry_out(plan, tmp_path) if row.case.method != "none"]
    assert len(rows) == 4
    prompt_ids = bench_model().encode(questions[0].turns[0])
    for row in rows:
        method = plan.fresh_methods()[row.case]
        first, second = (method(prompt_ids, row.seed).num_forward_passes for _ in range(2))
        assert row.turns[0].num_forward_passes == first
        assert second < first, "a table that met the question shows"
