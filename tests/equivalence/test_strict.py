"""Strict models are exact in bfloat16: every drafter writes, bit for bit, what plain decoding writes alone."""

from __future__ import annotations

import pytest

from draftless.drafters.registry import DRAFTERS, make_drafter
from draftless.engine.target import TargetModel
from draftless.params import SamplingParams
from draftless.types import Drafter
from support.drafters import anchors_everywhere, registered
from support.driving import Job, run
from support.half_precision import HIDDEN, STRICT_WAYS, strict_target
from support.matrix import MODES
from support.models import prompt_ids
from support.replay import EVERYTHING, ReplayDrafter, coverage

LENGTHS, COUNTS = (5, 1, 120, 34), (24, 27, 30, 33)


@pytest.fixture(scope="module", params=STRICT_WAYS)
def strict_model(request: pytest.FixtureRequest) -> TargetModel:
    return strict_target(request.param)


def every_drafter() -> dict[str, Drafter]:
    anchors = {"knn-ssd": {"store": anchors_everywhere(HIDDEN)}}
    return {name: registered(name, **anchors.get(name, {})) for name in DRAFTERS}


@pytest.mark.parametrize("mode", MODES)
def test_every_drafter_writes_the_plain_text(strict_model: TargetModel, mode: str) -> None:
    jobs = [
        Job(
            prompt_ids(length, seed=2),
            SamplingParams(max_new_tokens=count, seed=length, **MODES[mode]),  # type: ignore[arg-type]
        )
        for length, count in zip(LENGTHS, COUNTS, strict=True)
    ]
    plain = [run(strict_model, make_drafter("none"), [job])[0].token_ids for job in jobs]
    replay = ReplayDrafter(plain, COUNTS)
    for name, drafter in {**every_drafter(), "replay": replay}.items():
        results = run(strict_model, drafter, jobs)
        assert [result.token_ids for result in results] == plain, name
        if name == "replay":
            assert all(coverage(result.steps) == EVERYTHING for result in results)
