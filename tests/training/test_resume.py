"""A run that is killed at any moment and resumed ends with the weights of one that was not."""

from __future__ import annotations

import os
import shutil
import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer, TrainerCallback, TrainerControl, TrainerState

from draftless.errors import ConfigError
from draftless.manifest import read_manifest
from draftless.training import checkpoint, draft_trainer, saving, trainer
from draftless.training.config import TrainConfig
from draftless.training.draft_trainer import DraftTrainer
from draftless.training.saving import TrainingInterrupted
from draftless.training.trainer import prepare, train
from support.training import in_child, kill_self, write_model, write_records

STEPS = 9


# The moments are tried on plain noise training; every other kind of run passes two of them.
KINDS: dict[str, dict[str, Any]] = {
    "noise": {},
    "joint": {"adaptive": True, "adaptive_first": 0.5, "kl_weight": 0.5},
    "frozen": {"adaptive": True, "noise": False, "frozen": True},
    "layer dropout": {"layer_dropout": 0.6, "weight_decay": 0.1},
}


@pytest.fixture(scope="module")
def config(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> TrainConfig:
    folder = tmp_path_factory.mktemp("run")
    base = TrainConfig(
        model=str(write_model(folder / "model")),
        data=str(write_records(folder / "data.jsonl")),
        output=str(folder / "whole"),
        max_length=128, row_length=0, batch_size=4, epochs=2.0, max_steps=STEPS, lr=1e-2,
        dtype="float32", save_every=3, eval_every=100, eval_share=0.1,
    )  # fmt: skip
    return replace(base, **KINDS[request.param])


@pytest.fixture(scope="module")
def whole(config: TrainConfig) -> dict[str, torch.Tensor]:
    train(prepare(config))
    return load_file(Path(config.output) / "model.safetensors")


def kill_at_call(owner: object, name: str, number: int) -> Callable[[], None]:
    """Replace a function by one that kills the process at its `number`-th call."""
    calls = []
    original = getattr(owner, name)

    def wrapped(*args: object, **more: object) -> object:
        calls.append(1)
        if len(calls) == number:
            kill_self()
        return original(*args, **more)

    return lambda: setattr(owner, name, wrapped)


MOMENTS = {
    "between two steps": (DraftTrainer, "compute_loss", 6),
    "before the first save": (DraftTrainer, "compute_loss", 2),
    "save: model written, optimizer not": (Trainer, "_save_optimizer_and_scheduler", 2),
    "save: random state not written": (Trainer, "_save_rng_state", 1),
    "save: all written, not marked": (draft_trainer, "mark_complete", 2),
    "save: flushed, not marked": (Path, "touch", 1),
    "the final model is being written": (trainer, "write_manifest", 1),
}


CASES = [
    *[("noise", moment) for moment in MOMENTS],
    ("joint", "between two steps"),
    pytest.param("joint", "save: random state not written", marks=pytest.mark.full),
    pytest.param("frozen", "between two steps", marks=pytest.mark.full),
    ("frozen", "save: random state not written"),
    ("layer dropout", "between two steps"),
]


@pytest.mark.parametrize(("config", "moment"), CASES, indirect=["config"])
def test_killed_and_resumed_equals_whole(
    config: TrainConfig, whole: dict[str, torch.Tensor], tmp_path: Path, moment: str
) -> None:
    cut = replace(config, output=str(tmp_path))
    plant = kill_at_call(*MOMENTS[moment])

    def run_to_the_kill() -> None:
        plant()
        train(prepare(cut))

    assert in_child(run_to_the_kill) == -signal.SIGKILL
    assert in_child(lambda: train(prepare(cut), resume=True) and None) == 0
    resumed = load_file(tmp_path / "model.safetensors")
    assert resumed.keys() == whole.keys()
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_an_unmarked_checkpoint_does_not_count(tmp_path: Path) -> None:
    for step in (3, 12, 6):
        (tmp_path / f"checkpoint-{step}").mkdir()
        (tmp_path / f"checkpoint-{step}" / "model.safetensors").touch()
    for step in (3, 6):
        checkpoint.mark_complete(tmp_path / f"checkpoint-{step}")
    assert checkpoint.prepare_folder(tmp_path, resume=True) == tmp_path / "checkpoint-6"
    assert not (tmp_path / "checkpoint-12").exists()


@pytest.mark.parametrize("config", ["noise"], indirect=True)
def test_a_second_run_does_not_overwrite_the_first(
    config: TrainConfig, whole: dict[str, torch.Tensor]
) -> None:
    assert whole
    with pytest.raises(ConfigError, match="--resume"):
        train(prepare(config))


@pytest.mark.parametrize("config", ["noise"], indirect=True)
def test_a_run_goes_on_only_as_it_began(
    config: TrainConfig, whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    assert whole
    folder = Path(config.output).parent
    write_records(tmp_path / "other.jsonl", 47)
    write_model(tmp_path / "other", is_tied=True)
    shutil.copytree(folder / "model", tmp_path / "moved")
    for options, message in (
        ({"lr": 0.5}, "with lr=0.01, not 0.5"),
        ({"seed": 5}, "with seed=0, not 5"),
        ({"batch_size": 2}, "with batch_size=4, not 2"),
        ({"max_length": 64}, "with max_length=128, not 64"),
        ({"data": str(tmp_path / "other.jsonl")}, "a run on another --data"),
        ({"model": str(tmp_path / "other")}, "a run on another --model"),
    ):
        with pytest.raises(ConfigError, match=message):
            train(prepare(replace(config, **options)), resume=True)  # type: ignore[arg-type]
    # Longer, from a copy of the same model, saved more often: honoured, and written down.
    longer = replace(config, model=str(tmp_path / "moved"), max_steps=STEPS + 2, save_every=1)
    train(prepare(longer), resume=True)
    manifest = read_manifest(config.output)
    assert manifest is not None
    sessions = manifest.provenance["sessions"]
    assert [(one["first_step"], one["max_steps"]) for one in sessions] == [
        (0, STEPS),
        (STEPS, STEPS + 2),
    ]
    (Path(config.output) / "checkpoints" / "run.json").unlink()
    with pytest.raises(ConfigError, match=r"has no run.json"):
        train(prepare(longer), resume=True)


@pytest.mark.parametrize("config", ["frozen"], indirect=True)
def test_ctrl_c_saves_the_step_and_the_run_goes_on(
    config: TrainConfig, whole: dict[str, torch.Tensor], tmp_path: Path
) -> None:
    class Press(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            if state.global_step == 4:
                os.kill(os.getpid(), signal.SIGINT)

    pressed: list[int] = []
    cut = replace(config, output=str(tmp_path), save_every=None)
    before = signal.getsignal(signal.SIGINT)
    with pytest.raises(TrainingInterrupted) as stopped:
        train(prepare(cut), callbacks=[Press()], on_interrupt=lambda: pressed.append(1))
    assert (stopped.value.step, pressed) == (5, [1])
    assert isinstance(stopped.value, KeyboardInterrupt)
    assert signal.getsignal(signal.SIGINT) is before
    (saved,) = checkpoint.checkpoints(tmp_path / "checkpoints")
    assert saved.name == "checkpoint-5"
    rows = load_file(saved / "adapter_model.safetensors")
    assert [tuple(row.shape) for row in rows.values()] == [(1, 32)], "the rows and nothing else"
    train(prepare(cut), resume=True)
    resumed = load_file(tmp_path / "model.safetensors")
    assert all(torch.equal(resumed[name], whole[name]) for name in whole)


def test_a_checkpoint_is_due_by_the_clock_and_at_once_at_a_second_ctrl_c(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    now = [0.0]
    monkeypatch.setattr(saving.time, "monotonic", lambda: now[0])
    state = TrainerState(global_step=1, max_steps=9)
    due: list[float] = []
    with saving.SaveWhenDue(600.0) as when:
        for now[0] in (0.0, 599.0, 600.0, 601.0, 1199.0, 1200.0):
            control = TrainerControl()
            when.on_step_end(None, state, control)
            if control.should_save:
                due.append(now[0])
                when.on_save(None, state, control)
        assert due == [600.0, 1200.0] and not when.is_interrupted
        os.kill(os.getpid(), signal.SIGINT)
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
    never = saving.SaveWhenDue(None)
    now[0] = 1e9
    control = TrainerControl()
    never.on_step_end(None, state, control)
    assert not control.should_save
