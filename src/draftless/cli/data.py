"""`draftless data`: training data that a model makes itself."""

from __future__ import annotations

from typing import TYPE_CHECKING

import typer

from draftless.cli import options
from draftless.cli.common import load_model, progress_bar, resumable, set_up_torch, stderr

if TYPE_CHECKING:
    from draftless.regenerate import Regeneration

data_app = typer.Typer(no_args_is_help=True, help="Make training data.")


@data_app.callback()
def data() -> None:
    """Make training data."""


@data_app.command()
def regenerate(  # noqa: PLR0913 - the command line is derived from the signature
    prompts: options.PromptData,
    output: options.ResponseFile,
    model: options.ModelOption = None,
    split: options.Split = "train",
    limit: options.Limit = None,
    prompt_format: options.PromptFormat = "auto",
    drop_loops: options.DropLoops = True,
    max_new_tokens: options.MaxNewTokens[int] = 256,
    temperature: options.Temperature[float] = 0.0,
    top_k: options.TopK[int] = 0,
    top_p: options.TopP[float] = 1.0,
    seed: options.Seed[int] = 0,
    batch_size: options.BatchSize = 32,
    drafter: options.Drafter[str] = "none",
    resume: options.Resume = False,
    threads: options.Threads = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
) -> None:
    """Let a model write its own responses to prompts, to train drafting on what it says itself.

    A response that was cut at --max-new-tokens is kept and marked "finish_reason": "length";
    training teaches no end after it. After a kill, the same with --resume goes on.

    [bold]Examples[/bold]

        draftless data regenerate --model ./my-model --prompts sft.jsonl --output own.jsonl
        draftless data regenerate --model ./my-model --prompts sft.jsonl --output own.jsonl --resume
        draftless data regenerate --prompts data --output own.jsonl --temperature 0.8 --limit 1000
    """
    from draftless.dialogue import check_prompt
    from draftless.regenerate import RegenerateOptions, Regeneration, check_output
    from draftless.training.data import read_records

    chosen = RegenerateOptions(
        max_new_tokens,
        temperature,
        top_k,
        top_p,
        seed,
        batch_size,
        drop_loops,
        prompt_format,  # type: ignore[arg-type]
    )
    check_output(output, is_resumed=resume)
    records = read_records(prompts, split, check_prompt)[:limit]
    set_up_torch(threads)
    loaded = load_model(model, dtype=dtype, device=device, drafter=drafter)
    write(Regeneration(loaded, records, output, chosen, is_resumed=resume))


def write(run: Regeneration) -> None:
    """Carry it out under a progress bar; Ctrl-C ends it with a word on how to go on."""
    pending = run.num_pending
    with resumable(run.output), progress_bar() as progress:
        task = progress.add_task("Generating", total=pending)
        for count in run.batches() if pending else ():
            done = f"{run.counts['tokens']} tokens"
            progress.update(task, advance=count, description=done)
    counts = run.counts
    stderr.print(
        f"{run.output}: {counts['written']} of {run.num_records} records written, "
        f"{counts['unfinished']} of them cut at --max-new-tokens; left out: "
        f"{counts['too_long']} too long for the context, {counts['loops']} loops, "
        f"{counts['refused']} refused by the prompt format",
        soft_wrap=True,
    )
    if run.refusal:
        stderr.print(f"the first one refused: {run.refusal}", soft_wrap=True)
    if counts["empty"]:
        hint = "" if run.format == "chat" else "; for a chat model, use --format chat"
        stderr.print(
            f"warning: {counts['empty']} of {counts['written']} responses are empty (prompts were "
            f"given in the format {run.format}{hint})",
            soft_wrap=True,
        )
