"""`draftless train`: fine-tune a model so that it drafts for itself."""

from __future__ import annotations

import inspect
import json
import os
import shlex
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table
from rich.text import Text

from draftless.cli import options
from draftless.cli.common import stderr
from draftless.errors import ConfigError
from draftless.prompts import IGNORED_LABEL
from draftless.training.config import build_config, flags_of

if TYPE_CHECKING:
    from draftless.training.block_places import TokenRun
    from draftless.training.trainer import Run

train_app = typer.Typer(no_args_is_help=True, help="Train a model so that it drafts for itself.")
_SHARE_DOCUMENTS = 2000  # documents that the shares of noise and blocks are counted on


@train_app.callback()
def train() -> None:
    """Train a model so that it drafts for itself."""


def _run(
    defaults: Mapping[str, Any],
    *,
    preset: options.Preset = None,
    config: options.ConfigFile = None,
    preview: options.Preview = 0,
    resume: options.Resume = False,
    **flags: Any,
) -> None:
    """Build the configuration, then show samples of it or train."""
    if preview and flags["output"] is None:
        flags["output"] = "."  # nothing is written
    chosen = build_config(preset, config, flags, defaults)
    run = _prepare(chosen)
    if preview:
        _show_samples(run, preview)
        return
    is_main = os.environ.get("RANK", "0") == "0"
    if is_main:
        _show_run(run)
        if resume:
            _show_resumed(chosen.output)
    metrics = _train(run, resume=resume, is_main=is_main)
    if is_main:
        stderr.print(Text(f"Saved to {chosen.output}", style="bold"))
        typer.echo(json.dumps({"output": chosen.output, **metrics}))


def _with_flags(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command of `train` its flags: those of `_run`, and one per option of `TrainConfig`."""
    _, *shared, _ = inspect.signature(_run, eval_str=True).parameters.values()
    parameters = []
    for name, (kind, option) in flags_of(command.__name__).items():
        flag = options.option(option.panel, option.help, "--" + name.replace("_", "-"))
        parameters.append(
            shared[0].replace(name=name, default=None, annotation=Annotated[kind | None, flag])
        )
    command.__signature__ = inspect.Signature([*parameters, *shared])  # type: ignore[attr-defined]
    return command


@train_app.command()
@_with_flags
def msn(**flags: Any) -> None:
    """Make Some Noise (arXiv 2406.17404): supervised fine-tuning that also teaches to denoise.

    The result is a plain checkpoint folder with a `draftless.json`, so that
    `draftless generate FOLDER` uses what it learned without further flags; `--drafter tr-jacobi`
    is the paper's.

    [bold]Examples[/bold]

        draftless train msn --preset tiny-sample --output runs/sample
        draftless train msn --model ./base --data sft.jsonl --output runs/msn --preview 3
        draftless train msn --model ./base --data sft.jsonl --output runs/msn --lr 1e-5
        draftless train msn --config run.yaml --resume
        torchrun --nproc-per-node 2 -m draftless train msn --config run.yaml
    """
    _run({}, **flags)


@train_app.command()
@_with_flags
def sdsat(**flags: Any) -> None:
    """SDSAT (arXiv 2403.18647): fine-tuning that teaches adaptive tokens to predict ahead.

    The result is a plain checkpoint folder with a `draftless.json`, so that
    `draftless generate FOLDER` uses its adaptive tokens without further flags; `--drafter sdsat`
    is the paper's.

    [bold]Examples[/bold]

        draftless train sdsat --preset tiny-sample --output runs/sample
        draftless train sdsat --model ./base --data sft.jsonl --output runs/sdsat
        draftless train sdsat --model ./base --data sft.jsonl --output runs/both --noise
        draftless train sdsat --model ./released --data own.jsonl --output runs/rows --frozen
        torchrun --nproc-per-node 2 -m draftless train sdsat --config run.yaml
    """
    _run({"adaptive": True, "noise": False}, **flags)


def _train(run: Run, *, resume: bool, is_main: bool) -> dict[str, float]:
    """Train; Ctrl-C ends it with a checkpoint and the command that goes on."""
    from draftless.training.saving import TrainingInterrupted
    from draftless.training.trainer import train

    def say(text: str) -> None:
        if is_main:
            stderr.print(text, soft_wrap=True)

    try:
        return train(
            run,
            resume=resume,
            callbacks=_progress(run) if is_main else [],
            on_interrupt=lambda: say(
                "stopping after this step, to save it; Ctrl-C again stops at once"
            ),
        )
    except TrainingInterrupted as stopped:
        command = [Path(sys.argv[0]).name, *sys.argv[1:], *(() if resume else ("--resume",))]
        say(f"stopped at step {stopped.step}, which is saved; to go on: {shlex.join(command)}")
        raise
    except KeyboardInterrupt:
        say("stopped; what was done since the newest checkpoint is lost")
        raise


def _show_resumed(output: str) -> None:
    """What `--resume` goes on from."""
    from draftless.training.checkpoint import checkpoints, step_of

    folder = Path(output) / "checkpoints"
    found = checkpoints(folder)
    stderr.print(
        f"going on from step {step_of(found[0])}"
        if found
        else f"--resume: {folder} has no complete checkpoint; training begins anew",
        soft_wrap=True,
    )


def _prepare(config: Any) -> Run:
    try:
        import accelerate  # noqa: F401 - Trainer needs it and says so only when it starts
    except ImportError as error:
        raise ConfigError("training needs more packages: pip install 'draftless[train]'") from error
    from transformers.utils import logging

    from draftless.training.trainer import prepare

    logging.disable_progress_bar()
    # On purpose: the head never emits an adaptive token, so that its row need not be tied.
    warnings.filterwarnings("ignore", message="Model has `tie_word_embeddings=True`")
    # A matter between peft and transformers.
    warnings.filterwarnings("ignore", message="`is_gradient_checkpointing` is deprecated")
    with stderr.status("Reading data and model ..."):
        return prepare(config)


def _show_run(run: Run) -> None:
    from draftless.training.data import describe_reasons

    stderr.print(
        f"{run.num_documents} documents, {len(run.held)} of them held back; {len(run.train)} rows; "
        f"prompt format {run.prompt_format.kind}",
        soft_wrap=True,
    )
    if run.left_out:
        stderr.print(
            f"{sum(run.left_out.values())} of {run.num_records} records are left out: "
            f"{describe_reasons(run.left_out)}",
            soft_wrap=True,
        )
    if run.config.layer_dropout:
        stderr.print(
            f"layer dropout: up to {run.config.layer_dropout:.0%} of the steps, in the last layer"
        )
    shares = _shares(run)
    if run.collator.noise is not None:
        stderr.print(
            f"noise {run.config.mode}: {shares['noise']:.1%} noise tokens per response token"
        )
    if run.adaptive_ids:
        ids = ", ".join(map(str, run.adaptive_ids))
        alone = "their rows alone are trained, so the clean loss cannot change"
        what = alone if run.config.frozen else "all weights are trained"
        stderr.print(
            f"adaptive ids {ids}: {shares['adaptive']:.1%} adaptive tokens per response token; "
            + ("adapters and rows are trained" if run.config.lora else what)
        )


def _shares(run: Run) -> dict[str, float]:
    """Noise and adaptive tokens per response token, over the first documents."""
    counts, responses = {"noise": 0, "adaptive": 0}, 0
    for _, labels, runs in _plans(run, _SHARE_DOCUMENTS):
        for one in runs:
            counts[_kind(run, one)] += len(one.token_ids)
        responses += sum(label != IGNORED_LABEL for label in labels)
    return {kind: count / max(1, responses) for kind, count in counts.items()}


def _kind(run: Run, one: TokenRun) -> str:
    return "adaptive" if one.token_ids[0] in run.adaptive_ids else "noise"


def _plans(run: Run, count: int) -> Iterator[tuple[list[int], list[int], list[TokenRun]]]:
    """Ids, labels, noise runs and adaptive blocks of the first `count` documents."""
    shown = 0
    for row in run.train:
        start = 0
        for length in row.get("seq_lengths", [len(row["input_ids"])]):
            ids = row["input_ids"][start : start + length]
            labels = row["labels"][start : start + length]
            start += length
            if shown < count:
                shown += 1
                yield ids, labels, run.collator.plan(ids, labels)


def _show_samples(run: Run, count: int) -> None:
    """Samples with their noise and blocks in colour, as the model will see them."""
    is_inline = run.config.noise and run.config.mode == "inline"
    shown = set()
    for ids, labels, runs in _plans(run, count):
        begin = next(i for i, label in enumerate(labels) if label != IGNORED_LABEL)
        text = Text()
        text.append(run.tokenizer.decode(ids[:begin]), style="dim")
        for place in range(begin, len(ids)):
            for one in (one for one in runs if one.start == place):
                shown.add(_kind(run, one))
                if _kind(run, one) == "adaptive":
                    text.append(f"⟨{len(one.token_ids)} adaptive⟩", style="bold cyan")
                else:
                    text.append(f"⟨{run.tokenizer.decode(list(one.token_ids))}⟩", style="bold red")
            is_replaced = is_inline and any(
                one.start <= place < one.start + len(one.token_ids) for one in runs
            )
            style = "strike red" if is_replaced else ""
            text.append(run.tokenizer.decode(ids[place : place + 1]), style=style)
        stderr.print(text)
        stderr.rule()
    if shown:
        colours = {"noise": "red: noise", "adaptive": "cyan: adaptive tokens"}
        names = ", ".join(name for kind, name in colours.items() if kind in shown)
        how = "replaced by the noise before it" if is_inline else "seen beside them"
        stderr.print(f"{names}; the text that follows is {how}")


def _progress(run: Run) -> Sequence[Any]:
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
                self._bar.console.print(
                    _evaluation_line(state.global_step, logs, is_frozen=run.config.frozen)
                )

        def on_train_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
            self._bar.stop()

    return [Bar()]


def _evaluation_line(step: int, logs: dict[str, float], *, is_frozen: bool) -> Table:
    """One evaluation: clean loss, and how often the d-th token of a block predicts right."""
    table = Table.grid(padding=(0, 2))
    fixed = " (cannot change)" if is_frozen else ""
    cells = [f"step {step}", f"clean loss {logs['eval_clean_loss']:.4f}{fixed}"]
    for kind in ("denoising", "adaptive"):
        depths = [v for k, v in logs.items() if k.startswith(f"eval_{kind}_accuracy_")]
        if depths:
            cells.append(f"{kind} " + " ".join(f"{value:.1%}" for value in depths))
    table.add_row(*cells)
    return table
