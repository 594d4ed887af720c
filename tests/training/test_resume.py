"""A run that is killed at any moment and resumed ends with the weights of one that was not."""

from __future__ import annotations

import signal
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import Trainer

from draftless.errors import ConfigError
from draftless.training import checkpoint, draft_trainer, trainer
from draftless.training.config import TrainConfig
from draftless.training.draft_trainer import DraftTrainer
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
