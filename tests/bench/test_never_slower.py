"""The script that asks where drafting is slower: alternating turns, medians, and all five places."""

from __future__ import annotations

import json
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import never_slower
import pytest

from draftless import Output, SamplingParams, Statistics
from support.bench import save_bench_model


@dataclass
class Clock:
    """Seconds pass while a model generates, and at no other time."""

    now: float = 0.0
    calls: list[str] = field(default_factory=list)
    seconds: dict[str, list[float]] = field(default_factory=dict)

    def perf_counter(self) -> float:
        return self.now


@dataclass
class FakeModel:
    clock: Clock
    drafter: str = "none"
    eos_token_ids: tuple[int, ...] = ()

    def generate(self, batch: list[list[int]], params: SamplingParams) -> list[Output]:
        assert params.max_new_tokens == 2
        self.clock.calls.append(self.drafter)
        own = self.clock.seconds[self.drafter]
        self.clock.now += own.pop(0) if len(own) > 1 else own[0]
        return [Output([1, 2], "", "length", 0, Statistics()) for _ in batch]


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(never_slower, "time", clock)
    monkeypatch.setattr(never_slower, "silent", lambda model, name: FakeModel(model.clock, name))
    return clock


def measured(clock: Clock, repeats: int = 3) -> dict[str, Any]:
    batches = [[[1], [2]], [[3], [4]]]
    params = SamplingParams(max_new_tokens=2)
    return never_slower.measure(FakeModel(clock), "auto", batches, params, repeats)  # type: ignore[arg-type]


def test_medians_of_turns_that_alternate(clock: Clock) -> None:
    warm_up = 99.0
    clock.seconds = {"none": [warm_up, 1.0, 50.0, 1.0, 1.0], "auto": [warm_up, 2.0, 2.0, 9.0, 2.0]}
    found = measured(clock)
    assert found["ratio"] == pytest.approx(0.5) and found["is_slower"]
    assert found["plain_tokens_per_second"] == 4.0
    assert (found["num_batches"], found["batch_size"], found["num_differing"]) == (2, 2, 0)
    turns = clock.calls[2:]
    assert turns[:4] == turns[8:] == ["auto", "none", "none", "auto"], (
        "a repeat is over all batches"
    )
    assert turns[4:8] == ["none", "auto", "auto", "none"]


def test_each_repeat_begins_with_a_drafter_that_met_nothing(
    clock: Clock, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The warm-up has its own, too."""
    clock.seconds = {"none": [1.0], "auto": [1.0]}
    made: list[FakeModel] = []

    def silent(model: FakeModel, name: str) -> FakeModel:
        made.append(FakeModel(model.clock, name))
        return made[-1]

    monkeypatch.setattr(never_slower, "silent", silent)
    measured(clock, repeats=3)
    assert [model.drafter for model in made].count("auto") == 1 + 3


@pytest.mark.parametrize(("seconds", "is_slower"), [(1.01, False), (1.03, True), (0.5, False)])
def test_two_percent_are_allowed(clock: Clock, seconds: float, is_slower: bool) -> None:
    clock.seconds = {"none": [1.0], "auto": [seconds]}
    assert measured(clock)["is_slower"] == is_slower


def test_all_places_are_written_with_their_provenance(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    model, out = save_bench_model(tmp_path / "model"), tmp_path / "out.json"
    options = ["--prompts", "2", "--tokens", "3", "--repeats", "1", "--dtype", "float32"]
    options += ["--drafter", "prompt-lookup", "--model", str(model), "--output", str(out)]
    monkeypatch.setattr(sys, "argv", ["never_slower.py", *options])
    never_slower.main()
    result = json.loads(out.read_text())
    found = result["places"]
    assert set(found) == {"random text", "T=1.5", "untrained", "untrained, T=1", "batch of 8"}
    assert found["batch of 8"]["batch_size"] == 8 and found["T=1.5"]["num_batches"] == 2
    assert all(one["num_differing"] == 0 for one in found.values())  # fp32: the same ids
    assert result["provenance"]["torch"] and result["prices"]["dtype"] == "float32"
    assert "untrained, T=1" in capsys.readouterr().out
