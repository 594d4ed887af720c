"""The number of threads that nobody named."""

from __future__ import annotations

import copy
import os
from typing import Any

import pytest
import torch

from draftless.drafters.ngram import NullDrafter
from draftless.engine import threads
from draftless.engine.loop import decode, make_request
from draftless.engine.target import TargetModel
from draftless.params import SamplingParams
from support.models import stock_model


@pytest.fixture(autouse=True)
def _two_processors_and_one_thread(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(threads, "_is_settled", False)
    monkeypatch.setattr(threads, "_DEFAULT", 1)
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1}, raising=False)
    used = {"threads": 1}
    monkeypatch.setattr(torch, "get_num_threads", lambda: used["threads"])
    monkeypatch.setattr(torch, "set_num_threads", lambda count: used.update(threads=count))


def seconds_of(monkeypatch: pytest.MonkeyPatch, one: float, two: float) -> list[int]:
    """A pass that takes so long with one thread and with two; returns what it ran with."""
    clock, ran = [0.0], []
    monkeypatch.setattr(threads.time, "perf_counter", lambda: clock[0])

    def run() -> None:
        ran.append(torch.get_num_threads())
        clock[0] += one if torch.get_num_threads() == 1 else two

    threads.choose_threads(run)
    return ran


@pytest.mark.parametrize(("one", "two", "chosen"), [(1.0, 0.6, 2), (1.0, 1.2, 1)])
def test_the_faster_number_is_taken_once(
    one: float, two: float, chosen: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert set(seconds_of(monkeypatch, one, two)) == {1, 2}
    assert torch.get_num_threads() == chosen
    assert not seconds_of(monkeypatch, two, one)
    assert torch.get_num_threads() == chosen


def test_what_somebody_said_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    threads.use_threads(1)
    assert not seconds_of(monkeypatch, 1.0, 0.5)
    assert torch.get_num_threads() == 1


def test_torchs_own_setting_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.set_num_threads(3)
    assert not seconds_of(monkeypatch, 1.0, 0.5)
    assert torch.get_num_threads() == 3


def test_where_every_processor_has_its_thread_nothing_is_measured(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(threads, "_DEFAULT", 2)
    torch.set_num_threads(2)
    assert not seconds_of(monkeypatch, 1.0, 0.5)


def test_torch_has_one_thread_between_passes_that_keep_theirs() -> None:
    torch.set_num_threads(2)
    with threads.torch_on_one_thread():
        assert torch.get_num_threads() == 1
        assert threads.threads_of_passes() == 2
    assert torch.get_num_threads() == threads.threads_of_passes() == 2
    with pytest.raises(ZeroDivisionError), threads.torch_on_one_thread():
        raise ZeroDivisionError
    assert torch.get_num_threads() == threads.threads_of_passes() == 2
    with threads.torch_on_one_thread(False):
        assert torch.get_num_threads() == 2


def test_a_step_of_a_native_model_runs_so(monkeypatch: pytest.MonkeyPatch) -> None:
    """And what the caller does between two steps has torch's threads."""
    torch.set_num_threads(2)
    monkeypatch.setattr(threads, "_is_settled", True)
    model = TargetModel(copy.deepcopy(stock_model("llama", "fp32")), compile=True)
    seen: list[tuple[int, int]] = []
    forward = model.forward

    def noting(*args: Any, **kwargs: Any) -> list[torch.Tensor]:
        seen.append((torch.get_num_threads(), threads.threads_of_passes()))
        return forward(*args, **kwargs)

    monkeypatch.setattr(model, "forward", noting)
    request = make_request(model, 0, [1, 2, 3], SamplingParams(max_new_tokens=3), None, ())
    for _ in decode(model, NullDrafter(), [request]):
        assert torch.get_num_threads() == 2
    assert set(seen) == {(1, 2)}
