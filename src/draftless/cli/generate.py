"""`draftless generate`: one prompt, streamed."""

from __future__ import annotations

import json
import sys
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from draftless.cli import options
from draftless.cli.common import (
    drafter_name,
    load_model,
    model_name,
    progress_bar,
    read_text,
    stderr,
)
from draftless.errors import ConfigError, InputError

if TYPE_CHECKING:
    from collections.abc import Iterable
    from pathlib import Path

    from draftless import Chunk, Draftless, Output
    from draftless.prompts import Message

DRAFT_STYLES = ("bold green", "bold cyan")
"""Accepted drafts take turns between these, so that the borders of tokens are seen."""

STAGES = ("prefill", "propose", "forward", "verify", "commit")


def generate(  # noqa: PLR0913 - the command line is derived from the signature
    model: options.Model = None,
    prompt: options.Prompt = None,
    prompt_file: options.PromptFile = None,
    chat: options.Chat = None,
    max_new_tokens: options.MaxNewTokens = 128,
    temperature: options.Temperature = 0.0,
    top_k: options.TopK = 0,
    top_p: options.TopP = 1.0,
    min_p: options.MinP = 0.0,
    seed: options.Seed = None,
    stop: options.Stop = None,
    drafter: options.Drafter = None,
    budget: options.Budget = None,
    show_drafts: options.ShowDrafts = False,
    as_json: options.AsJson = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
    compile: options.Compile = False,
    strict: options.Strict = False,
    int8: options.Int8 = False,
) -> None:
    """Generate text from a prompt.

    The text is the same with every drafter; only the time differs.

    [bold]Examples[/bold]

        draftless generate --prompt "Once upon a time" --show-drafts
        draftless generate --prompt "Once upon a time" --temperature 0.8 --top-p 0.95 --seed 7
        draftless generate --prompt-file question.txt --drafter none --json
        echo "Once upon a time" | draftless generate --prompt-file -
        draftless generate ./my-model --chat messages.json --stop "User:"
    """
    if show_drafts and as_json:
        raise ConfigError("--show-drafts is for people and --json for machines; choose one")
    request = read_prompt(prompt, prompt_file, chat)
    from draftless import SamplingParams

    params = SamplingParams(
        max_new_tokens=max_new_tokens, temperature=temperature, top_k=top_k, top_p=top_p,
        min_p=min_p, seed=seed, stop=stop or (),
    )  # fmt: skip
    loaded = load_model(
        model, dtype=dtype, device=device, drafter=drafter, compile=compile, strict=strict, int8=int8
    )  # fmt: skip
    if budget is not None:
        loaded = with_budget(loaded, budget)
    chunks = loaded.stream(request, params)
    if as_json:
        output = await_output(chunks, max_new_tokens)
        result = as_object(output, drafter=drafter_name(loaded), model=model_name(model))
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
        return
    output = show_chunks(chunks, loaded.tokenizer) if show_drafts else write_chunks(chunks)
    stderr.print(Text(summary(output, drafter_name(loaded)), style="dim"), soft_wrap=True)


def with_budget(loaded: Draftless, budget: int) -> Draftless:
    """The same model and drafter with a limit to its trees; `auto` plans below it."""
    name = drafter_name(loaded)
    return loaded.with_drafter(name, {"max_width" if name == "auto" else "budget": budget})


def read_prompt(
    prompt: str | None, prompt_file: Path | None, chat: Path | None
) -> str | list[Message]:
    """The one prompt that was given: text or chat messages.

    Raises:
        InputError: if there is none or more than one, or a file that cannot be read.
    """
    if (prompt is not None) + (prompt_file is not None) + (chat is not None) != 1:
        raise InputError('give one of --prompt "TEXT", --prompt-file FILE and --chat FILE')
    if prompt is not None:
        return prompt
    if prompt_file is not None:
        return read_text(prompt_file)
    assert chat is not None
    return read_messages(read_text(chat), str(chat))


def read_messages(source: str, name: str) -> list[Message]:
    """Chat messages from JSON text.

    Raises:
        InputError: if it is no list of objects with `role` and `content`.
    """
    from draftless.prompts import check_messages

    try:
        messages = json.loads(source)
    except json.JSONDecodeError as error:
        raise InputError(f"{name} is not JSON: {error}") from error
    return check_messages(messages, name)


def await_output(chunks: Iterable[Chunk], num_tokens: int) -> Output:
    """Wait for the last chunk, with a bar for who is watching."""
    last: Chunk | None = None
    with progress_bar() as progress:
        task = progress.add_task("Generating", total=num_tokens)
        for last in chunks:
            progress.advance(task, len(last.token_ids))
    assert last is not None and last.output is not None
    return last.output


def write_chunks(chunks: Iterable[Chunk]) -> Output:
    """Write text as it becomes certain."""
    last: Chunk | None = None
    for last in chunks:
        sys.stdout.write(last.text)
        sys.stdout.flush()
    sys.stdout.write("\n")
    assert last is not None and last.output is not None
    return last.output


def show_chunks(chunks: Iterable[Chunk], tokenizer: Any) -> Output:
    """Write text as it becomes certain, with the accepted drafts coloured."""
    stderr.print(
        Text.assemble(
            ("accepted drafts look ", "dim"), ("like ", DRAFT_STYLES[0]), ("this", DRAFT_STYLES[1]),
            ("; the rest are the tokens that the target had to draw itself\n", "dim"),
        )
    )  # fmt: skip
    console = Console(highlight=False)
    painter = DraftPainter(tokenizer)
    last: Chunk | None = None
    for last in chunks:
        console.print(painter.paint(last), end="", soft_wrap=True)
    console.print()
    assert last is not None and last.output is not None
    return last.output


class DraftPainter:
    """Finds which characters of a stream come from accepted drafts.

    Text lags behind ids (unfinished characters, beginnings of stop strings), so the styles of
    characters wait here until the stream shows them.
    """

    def __init__(self, tokenizer: Any) -> None:
        from draftless.engine.stops import TextDecoder

        self._decoder = TextDecoder(tokenizer)
        self._waiting: list[str] = []  # one style per character
        self._num_drafts = 0

    def paint(self, chunk: Chunk) -> Text:
        """The chunk's text with its styles; brackets in it are text, not markup."""
        for index, token_id in enumerate(chunk.token_ids):
            style = ""
            if index < chunk.num_accepted_tokens:
                style = DRAFT_STYLES[self._num_drafts % len(DRAFT_STYLES)]
                self._num_drafts += 1
            self._waiting += [style] * len(self._decoder.push([token_id]))
        shown, self._waiting = self._waiting[: len(chunk.text)], self._waiting[len(chunk.text) :]
        shown += [""] * (len(chunk.text) - len(shown))
        return Text.assemble(*zip(chunk.text, shown, strict=True))


def summary(output: Output, drafter: str) -> str:
    """One line for people."""
    stats = output.stats
    drafts = f", {stats.num_accepted_tokens} of {stats.num_draft_tokens} drafts accepted"
    return (
        f"{drafter}: {len(output.token_ids)} tokens in {stats.num_steps} steps, "
        f"{stats.acceptance_length:.2f} per step{drafts if stats.num_draft_tokens else ''}; "
        f"{stats.tokens_per_second:.0f} tokens/s; ended by {output.finish_reason}; "
        f"seed {output.seed}"
    )


def as_object(output: Output, *, drafter: str, model: str) -> dict[str, Any]:
    """The object of `--json`; its keys are a public contract."""
    stats = output.stats.as_dict()
    time_s = dict(output.stats.time_s)
    # The drafter's time is one number here: proposing, and learning from what became of it.
    time_s["propose"] = time_s.get("propose", 0.0) + time_s.pop("observe", 0.0)
    stats["time_s"] = {stage: time_s.get(stage, 0.0) for stage in STAGES}
    return {
        "text": output.text,
        "token_ids": list(output.token_ids),
        "finish_reason": output.finish_reason,
        "stats": stats,
        "seed": output.seed,
        "drafter": drafter,
        "model": model,
    }
