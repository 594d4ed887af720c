"""Two processes under torchrun (gloo) see the losses of one process at the same global batch."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from draftless.training.config import TrainConfig
from draftless.training.trainer import LOG_NAME, prepare, train
from support.training import in_child, write_model, write_records

STEPS = 20


def losses(output: Path) -> list[float]:
    log = json.loads((output / LOG_NAME).read_text())
    return [entry["loss"] for entry in log if "loss" in entry]


@pytest.mark.slow
@pytest.mark.parametrize("mode", ["branch", "inline"])
def test_two_processes_equal_one(tmp_path: Path, mode: str) -> None:
    config = TrainConfig(
        model=str(write_model(tmp_path / "model")),
        data=str(write_records(tmp_path / "data.jsonl", 96)),
        output=str(tmp_path / "one"),
        mode=mode,  # type: ignore[arg-type]
        max_length=128, row_length=0, batch_size=4, epochs=2.0, max_steps=STEPS, lr=3e-3,
        dtype="float32", log_every=1, save_every=100, eval_every=100,
    )  # fmt: skip
    assert in_child(lambda: train(prepare(config)) and None) == 0
    two = replace(config, output=str(tmp_path / "two"), batch_size=2)
    file = tmp_path / "two.yaml"
    file.write_text(yaml.safe_dump(two.to_dict()))
    command = [
        sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2",
        "-m", "draftless", "train", "msn", "--config", str(file),
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
    assert one[-1] < 0.9 * one[0]  # it learns, so the optimizer's steps are compared, too
