"""One training stage of recipes/gpu.sh: as many steps as fit into its minutes, and resumable.

    python recipes/gpu_train.py base --work runs/gpu --minutes 7 --limit-s 520

How long a step takes is measured first, on little data, so that the learning rate comes to its end
when the minutes do. The numbers of steps are kept in WORK: an interrupted stage goes on with them.
Exit code 75: the limit came first; the same command goes on from the checkpoint.
"""

from __future__ import annotations

import argparse
import json
import shutil
import statistics
import sys
import time
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import torch
from transformers import TrainerCallback
from transformers.utils import logging

from draftless.jsonl import write_json
from draftless.training.config import EMBEDDED, TrainConfig
from draftless.training.trainer import prepare, train

TRY_AGAIN = 75  # what a shell calls a temporary failure
SHAPE = {  # 188M parameters with the embedded model's vocabulary
    "hidden_size": 1024,
    "intermediate_size": 2816,
    "num_hidden_layers": 16,
    "num_attention_heads": 16,
    "num_key_value_heads": 4,
}
TOY_SHAPE = {
    "hidden_size": 48,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 3,
    "num_key_value_heads": 1,
}
TOY: dict[str, Any] = {
    "max_length": 128,
    "row_length": 256,
    "batch_size": 2,
    "eval_records": 4,
    "dtype": "float32",
}
PROBE_STEPS, WARM_UP_STEPS = 14, 6
SAVES = 3  # checkpoints of a stage


def stage_config(stage: str, work: Path, is_toy: bool) -> TrainConfig:
    """What a stage trains, but for its number of steps."""
    options: dict[str, Any] = {
        "output": str(work / stage),
        "data": str(work / "sft.jsonl.gz"),
        "format": "plain",
        "max_length": 1024,
        "row_length": 2048,
        "batch_size": 16,
        "eval_share": 0.005,
        "lr": 2e-4,
        "clean_share": 1.0,  # no noise but in evaluations
        "block_targets": "model",
        "noise_weight": 0.5,
    }
    if stage == "base":
        options |= {"model": str(EMBEDDED), "data": str(work / "base.jsonl.gz"), "lr": 1e-3}
        options |= {"from_scratch": TOY_SHAPE if is_toy else SHAPE}
    elif stage == "control":
        options |= {"model": str(work / "base")}
    elif stage == "msn":
        options |= {"model": str(work / "base"), "clean_share": 0.0}
    else:
        options |= {"model": str(work / "msn"), "clean_share": 0.0, "adaptive": True}
    return TrainConfig(**{**options, **(TOY if is_toy else {})})


class StepClock(TrainerCallback):
    """When each step ended."""

    def __init__(self) -> None:
        self.times: list[float] = []

    def on_step_end(self, *_: Any, **__: Any) -> None:
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        self.times.append(time.perf_counter())


class OutOfTimeError(Exception):
    """The limit came before the last step; a checkpoint is written."""


class Deadline(TrainerCallback):
    """Saves and stops when the limit comes."""

    def __init__(self, limit_s: float) -> None:
        self._end = time.perf_counter() + limit_s
        self._is_late = False

    def on_step_end(self, _: Any, state: Any, control: Any, **__: Any) -> None:
        if time.perf_counter() > self._end and state.global_step < state.max_steps:
            self._is_late = control.should_save = True

    def on_save(self, *_: Any, **__: Any) -> None:
        if self._is_late:
            raise OutOfTimeError


def planned_steps(stage: str, args: argparse.Namespace) -> int:
    """Steps that fit into the minutes; the control makes as many as MSN, which costs more."""
    plan = args.work / f"plan-{'msn' if stage == 'control' else stage}.json"
    if not plan.exists():
        folder = args.work / "probe"
        config = stage_config("msn" if stage == "control" else stage, args.work, args.toy)
        config = replace(
            config,
            data=str(args.work / "probe.jsonl.gz"),
            output=str(folder),
            max_steps=PROBE_STEPS,
            eval_share=0.0,
        )
        clock = StepClock()
        shutil.rmtree(folder, ignore_errors=True)
        train(prepare(config), callbacks=[clock])
        shutil.rmtree(folder)
        times = clock.times[WARM_UP_STEPS:]
        step_s = statistics.median(b - a for a, b in pairwise(times))
        steps = args.steps or max(20, int(60 * args.minutes / step_s))
        write_json(plan, {"steps": steps, "step_s": round(step_s, 4), "minutes": args.minutes})
    return int(json.loads(plan.read_text(encoding="utf-8"))["steps"])


def main() -> None:
    begun = time.perf_counter()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("stage", choices=("base", "control", "msn", "adaptive"))
    parser.add_argument("--work", type=Path, required=True)
    parser.add_argument("--minutes", type=float, required=True, help="of training")
    parser.add_argument("--limit-s", type=float, required=True, help="seconds after which to stop")
    parser.add_argument("--steps", type=int, help="so many, however long it takes")
    parser.add_argument("--toy", action="store_true")
    args = parser.parse_args()
    logging.disable_progress_bar()
    steps = planned_steps(args.stage, args)
    every = max(1, -(-steps // SAVES))
    config = replace(
        stage_config(args.stage, args.work, args.toy),
        max_steps=steps,
        save_every=every,
        eval_every=every,
    )
    limit_s = args.limit_s - (time.perf_counter() - begun)
    try:
        metrics = train(prepare(config), resume=True, callbacks=[Deadline(limit_s)])
    except OutOfTimeError:
        print(f"{args.stage}: out of time; the same command goes on from the checkpoint")
        sys.exit(TRY_AGAIN)
    print(f"{args.stage}: {steps} steps, {json.dumps(metrics)}")


if __name__ == "__main__":
    main()
