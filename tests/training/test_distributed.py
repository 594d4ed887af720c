"""Two processes under torchrun (gloo) see the losses of one process at the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import yaml

from draftless.training.config import TrainConfig
from draftless.training.trainer import LOG_NAME, prepare, train
from support.training import in_child, write_model, write_records

STEPS = 20


def losses(output: Path) -> list[float]:
    log = json.loads((output / LOG_NAME).read_text())
    return [entry["loss"] for entry in log if "loss" in entry]


KINDS: dict[str, dict[str, Any]] = {
    "inline, dropping layers": {"mode": "inline", "layer_dropout": 0.6, "weight_decay": 0.1},
    "noise and adaptive blocks": {"adaptive": True, "adaptive_weight": 0.5, "kl_weight": 0.1},
    "frozen": {"adaptive": True, "noise": False, "frozen": True, "lr": 0.1},
}


@pytest.mark.slow
@pytest.mark.parametrize(
    "kind",
    [
        "inline, dropping layers",
        "noise and adaptive blocks",
        pytest.param("frozen", marks=pytest.mark.full),
    ],
)
def test_two_processes_equal_one(tmp_path: Path, kind: str) -> None:
    config = TrainConfig(
        model=str(write_model(tmp_path / "model")),
        data=str(write_records(tmp_path / "data.jsonl", 96)),
        output=str(tmp_path / "one"),
        max_length=128, row_length=0, batch_size=4, epochs=2.0, max_steps=STEPS, lr=3e-3,
        dtype="float32", log_every=1, save_every=100, eval_every=100,
    )  # fmt: skip
    config = replace(config, **KINDS[kind])
    assert in_child(lambda: train(prepare(config)) and None) == 0
    two = replace(config, output=str(tmp_path / "two"), batch_size=2)
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(two.to_dict()))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "draftless", "train", "sdsat" if config.adaptive else "msn", "--config", str(file),
    ]  # fmt: skip
    done = subprocess.run(
        command,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    one, other = losses(Path(config.output)), losses(Path(two.output))
    assert len(one) == len(other) == STEPS
    assert other == pytest.approx(one, rel=1e-5)
    # It learns, so the optimizer's steps are compared, too; frozen rows alone learn little.
    assert one[-1] < (0.999 if config.frozen else 0.9) * one[0]
