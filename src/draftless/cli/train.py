"""`draftless train`: fine-tune a model so that it drafts for itself."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import typer
from rich.table import Table
from rich.text import Text

from draftless.cli import options
from draftless.cli.common import stderr
from draftless.errors import ConfigError

if TYPE_CHECKING:
    from draftless.training.trainer import Run

train_app = typer.Typer(no_args_is_help=True, help="Train a model so that it drafts for itself.")
_SHARE_DOCUMENTS = 2000  # documents that the measured share of noise is counted on


@train_app.callback()
def train() -> None:
    """Train a model so that it drafts for itself."""


@train_app.command()
def msn(  # noqa: PLR0913 - the command line is derived from the signature
    model: options.StartModel = None,
    data: options.Data = None,
    output: options.OutputFolder = None,
    config: options.ConfigFile = None,
    preset: options.Preset = None,
    mode: options.NoiseMode = None,
    noise_length: options.NoiseLength = None,
    noise_source: options.NoiseSource = None,
    noise_targets: options.NoiseTargets = None,
    clean_share: options.CleanShare = None,
    epochs: options.Epochs = None,
    max_steps: options.MaxSteps = None,
    batch_size: options.BatchSize = None,
    lr: options.LearningRate = None,
    max_length: options.MaxLength = None,
    dtype: options.TrainDtype = None,
    seed: options.TrainSeed = None,
    lora: options.Lora = None,
    preview: options.Preview = 0,
    resume: options.Resume = False,
) -> None:
    """Make Some Noise (arXiv 2406.17404): supervised fine-tuning that also teaches to denoise.

    The result is a plain checkpoint folder with a `draftless.json`, so that
    `draftless generate FOLDER` drafts with TR-Jacobi without further flags.

    [bold]Examples[/bold]

        draftless train msn --preset tiny-sample --output runs/sample
        draftless train msn --model ./base --data sft.jsonl --output runs/msn --preview 3
        draftless train msn --model ./base --data sft.jsonl --output runs/msn --lr 1e-5
        draftless train msn --config run.yaml --resume
        torchrun --nproc-per-node 2 -m draftless train msn --config run.yaml
    """
    from draftless.training.config import build_config

    flags = {
        "model": model, "data": data, "output": output, "mode": mode, "epochs": epochs,
        "noise_length": noise_length, "noise_source": noise_source, "clean_share": clean_share,
        "noise_targets": noise_targets, "max_steps": max_steps, "batch_size": batch_size, "lr": lr, "max_length": max_length,
        "dtype": dtype, "seed": seed, "lora": lora,
    }  # fmt: skip
    if preview and output is None:
        flags["output"] = "."  # nothing is written
    chosen = build_config(preset, config, flags)
    run = _prepare(chosen)
    if preview:
        _show_samples(run, preview)
        return
    from draftless.training.trainer import train as train_run

    is_main = os.environ.get("RANK", "0") == "0"
    if is_main:
        _show_run(run)
    metrics = train_run(run, resume=resume, callbacks=_progress() if is_main else [])
    if is_main:
        stderr.print(Text(f"Saved to {chosen.output}", style="bold"))
        typer.echo(json.dumps({"output": chosen.output, **metrics}))


def _prepare(config: Any) -> Run:
    try:
        import accelerate  # noqa: F401 - Trainer needs it and says so only when it starts
    except ImportError as error:
        raise ConfigError("training needs more packages: pip install 'draftless[train]'") from error
    from transformers.utils import logging

    from draftless.training.trainer import prepare

    logging.disable_progress_bar()
    with stderr.status("Reading data and model ..."):
        return prepare(config)


def _show_run(run: Run) -> None:
    config = run.config
    noised, responses = _noise_share(run)
    skipped = run.num_records - run.num_documents
    stderr.print(
        f"{run.num_documents} documents ({skipped} records without a response in reach), "
        f"{len(run.held)} of them held back; {len(run.train)} rows"
    )
    stderr.print(
        f"mode {config.mode}: {noised / max(1, responses):.1%} noise tokens per response token"
    )


def _noise_share(run: Run) -> tuple[int, int]:
    """Noise tokens and response tokens of the first documents."""
    noised = responses = 0
    for _, labels, runs in _plans(run, _SHARE_DOCUMENTS):
        noised += sum(len(one.token_ids) for one in runs)
        responses += sum(label != -100 for label in labels)
    return noised, responses


def _plans(run: Run, count: int) -> Any:
    """Ids, labels and noise runs of the first `count` documents."""
    shown = 0
    for row in run.train:
        start = 0
        for length in row.get("seq_lengths", [len(row["input_ids"])]):
            ids = row["input_ids"][start : start + length]
            labels = row["labels"][start : start + length]
            start += length
            if shown < count:
                shown += 1
                yield ids, labels, run.collator.planner.plan(ids, labels, 0)


def _show_samples(run: Run, count: int) -> None:
    """Samples with their noise in colour, as the model will see it."""
    for ids, labels, runs in _plans(run, count):
        begin = next(i for i, label in enumerate(labels) if label != -100)
        text = Text()
        text.append(run.tokenizer.decode(ids[:begin]), style="dim")
        for place in range(begin, len(ids)):
            here = next((r for r in runs if r.start == place), None)
            if here is not None:
                noise = run.tokenizer.decode(list(here.token_ids))
                text.append(f"⟨{noise}⟩", style="bold red")
            is_replaced = run.config.mode == "inline" and any(
                r.start <= place < r.start + len(r.token_ids) for r in runs
            )
            style = "strike red" if is_replaced else ""
            text.append(run.tokenizer.decode(ids[place : place + 1]), style=style)
        stderr.print(text)
        stderr.rule()
    word = "replaced by the noise before it" if run.config.mode == "inline" else "seen beside it"
    stderr.print(f"red: noise; the text that follows is {word}")


def _progress() -> Sequence[Any]:
    """A progress bar with the loss, and a table line per evaluation."""
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeRemainingColumn,
    )
    from transformers import TrainerCallback

    class Bar(TrainerCallback):
        def __init__(self) -> None:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                MofNCompleteColumn(),
                TimeRemainingColumn(),
                console=stderr,
                disable=not stderr.is_terminal,
            )
            self._task: Any = None

        def on_train_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            self._bar.start()
            self._task = self._bar.add_task(
                "training", total=state.max_steps, completed=state.global_step
            )

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            self._bar.update(self._task, completed=state.global_step)

        def on_log(self, args: Any, state: Any, control: Any, logs: Any = None, **_: Any) -> None:  # noqa: ARG002
            if "loss" in logs:
                self._bar.update(self._task, description=f"loss {logs['loss']:.3f}")
            elif "eval_clean_loss" in logs:
                self._bar.console.print(_evaluation_line(state.global_step, logs))

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            self._bar.stop()

    return [Bar()]


def _evaluation_line(step: int, logs: dict[str, float]) -> Table:
    """One evaluation: clean loss, and how often the d-th noise token predicts right."""
    table = Table.grid(padding=(0, 2))
    depths = [v for k, v in logs.items() if k.startswith("eval_denoising_accuracy_")]
    accuracy = " ".join(f"{value:.1%}" for value in depths)
    table.add_row(
        f"step {step}", f"clean loss {logs['eval_clean_loss']:.4f}", f"denoising {accuracy}"
    )
    return table
