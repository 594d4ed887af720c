"""`draftless demo`: the same questions plain and with every drafter, side by side."""

from __future__ import annotations

import json
import os
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from draftless.cli import options
from draftless.cli.common import load_model, model_name, note, phases
from draftless.cli.encodings import standard_output
from draftless.cli.requests import Asked, PromptFormatting
from draftless.jsonl import parse_lines

if TYPE_CHECKING:
    from draftless import Chunk, Draftless, Output, SamplingParams

PLAIN = "none"
DEMO_MODEL = "smollm2-135m"
"""The model of the demo where `models/` holds it and the environment names no other one."""

EMBEDDED = "embedded"
ALWAYS_SHOWN = (PLAIN, "auto", "prompt-lookup", "recycling")
"""Drafters that need no training; others are shown for a checkpoint that was trained for them."""

MOST_REPEATS = 3
ENOUGH_S = 20.0
"""Seconds after which no further repetition begins, unless their number was given."""

_ROUTED = "skip "  # begins the source of a draft whose skip set was chosen for the request


@dataclass
class Run:
    """One prompt with one drafter; every repetition must write the same ids.

    Attributes:
        output: of the first repetition.
        sources: what drafted its accepted tokens (`Chunk.sources`).
        seconds: of every repetition.
    """

    output: Output
    sources: frozenset[str]
    seconds: list[float] = field(default_factory=list)

    @property
    def median_s(self) -> float:
        return statistics.median(self.seconds)

    @property
    def tokens_per_second(self) -> float:
        """Of the whole call, prefill included."""
        return len(self.output.token_ids) / self.median_s


Runs = dict[str, Run]  # by drafter, plain decoding first
Prompts = Sequence[Mapping[str, str]]


def demo(  # noqa: PLR0913 - the command line is derived from the signature
    model: options.Model = None,
    max_new_tokens: options.MaxNewTokens[int] = 64,
    temperature: options.Temperature[float] = 0.0,
    seed: options.Seed[int] = 0,
    repeats: options.Repeats[int | None] = None,
    as_json: options.AsJson = False,
    threads: options.Threads = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    compile: options.Compile[bool | None] = None,
    strict: options.Strict = False,
) -> None:
    """Show that drafting changes the time and not the text.

    Answers questions plainly (none) and with every drafter that the model can use. Runs take turns
    and repeat (--repeats, else up to 3 times in half a minute); the median counts. Without MODEL:
    models/smollm2-135m if it is there, else the model that ships with Draftless; the environment
    variable DEMO_MODEL names another one, or embedded.

    [bold]Examples[/bold]

        draftless demo
        draftless demo --temperature 1.0 --seed 7
        draftless demo ./my-model --json > demo.json
    """
    from draftless import SamplingParams

    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    chosen = model or find_model()
    plain = load_model(
        chosen, threads=threads, dtype=dtype, device=device, drafter=PLAIN, compile=compile,
        strict=strict,
    )  # fmt: skip
    prompts = read_prompts(plain.has_chat_template)
    console = Console(highlight=False)
    standard_output()

    def show_answer(prompt: Mapping[str, str], output: Output) -> None:
        if not as_json:
            show(console, prompt, output)

    measured = measure(plain, prompts, params, repeats, show_answer)
    if as_json:
        result = as_object(prompts, measured, model=model_name(chosen))
        standard_output().write(json.dumps(result) + "\n")
        return
    console.print(speed_ups(prompts, measured))
    if any(routes(run) for runs in measured for run in runs.values()):
        legend = "In brackets: whose skip set the prompt was given, by its nearest anchor."
        console.print(Text(legend, style="dim"), soft_wrap=True)
    if not all(is_identical(runs, name) for runs in measured for name in runs):
        console.print(Text(f"*: other ids than {PLAIN}", style="dim"))
    console.print()
    console.print(summary(measured))
    console.print()
    console.print(Text(verdict(measured), style="bold"), soft_wrap=True)


def find_model() -> str | None:
    """The model that the demo shows; None is the embedded one, and a line says so."""
    wanted = os.environ.get("DEMO_MODEL") or DEMO_MODEL
    if wanted == EMBEDDED:
        return None
    for path in (Path("models") / wanted, Path(wanted)):
        if path.exists():
            return str(path)
    if "/" in wanted:  # a name on the hub
        return wanted
    note(
        f"{Path('models') / wanted} is not there, so this is the small model that ships with "
        "Draftless; make real-models fetches pretrained ones"
    )
    return None


def read_prompts(is_chat: bool = False) -> list[dict[str, str]]:
    """The packaged prompts: `id`, `domain`, `prompt` and `source`."""
    name = "questions.jsonl" if is_chat else "prompts.jsonl"
    source = files("draftless") / "assets" / "demo" / name
    lines = source.read_text(encoding="utf-8").split("\n")
    return [line.value for line in parse_lines(lines, name)]


def shown_drafters(model: Draftless) -> list[str]:
    """The drafters that are compared."""
    trained = model.manifest.methods if model.manifest else {}
    return [name for name in model.drafters if name in ALWAYS_SHOWN or name in trained]


def measure(
    model: Draftless,
    prompts: Prompts,
    params: SamplingParams,
    repeats: int | None,
    on_answer: Callable[[Mapping[str, str], Output], None],
) -> list[Runs]:
    """Run every prompt with every drafter, taking turns so that other load hits all alike.

    Each repetition has new drafters: one that remembers must not meet its own answers.

    Args:
        model: with any drafter.
        prompts: as `read_prompts` gives them.
        params: of all runs.
        repeats: how often; None is up to `MOST_REPEATS`, as time allows.
        on_answer: called with every prompt and its plain output when it was answered first.
    """
    names = shown_drafters(model)
    encoded = [PromptFormatting().encode(model, Asked(one["prompt"])) for one in prompts]
    with phases("first passes, which pay for what later ones do not"):
        few = replace(params, max_new_tokens=min(8, params.max_new_tokens))
        for name in names:
            model.with_drafter(name).generate(encoded[0], few)
    measured: list[Runs] = [{} for _ in prompts]
    started = time.perf_counter()
    for repetition in range(repeats or MOST_REPEATS):
        if repeats is None and repetition and time.perf_counter() - started > ENOUGH_S:
            break
        models = {name: model.with_drafter(name) for name in names}
        for number, (prompt, ids, runs) in enumerate(zip(prompts, encoded, measured, strict=True)):
            phrase = f"repetition {repetition + 1}: prompt {number + 1} of {len(prompts)}"
            with phases(phrase):
                for name, drafting in models.items():
                    run_once(drafting, ids, params, runs, name)
            if repetition == 0:
                on_answer(prompt, runs[PLAIN].output)
    return measured


def run_once(
    model: Draftless, ids: list[int], params: SamplingParams, runs: Runs, name: str
) -> None:
    """One timed answer."""
    started = time.perf_counter()
    chunks = list(model.stream(ids, params))
    seconds = time.perf_counter() - started
    runs.setdefault(name, as_run(chunks)).seconds.append(seconds)


def as_run(chunks: Sequence[Chunk]) -> Run:
    """A run without times yet."""
    output = chunks[-1].output
    assert output is not None
    return Run(output, frozenset(source for chunk in chunks for source in chunk.sources))


def routes(run: Run) -> list[str]:
    """Labels of the skip sets that were chosen for the prompt (KNN-SSD)."""
    return sorted(s.removeprefix(_ROUTED) for s in run.sources if s.startswith(_ROUTED))


def is_identical(runs: Runs, name: str) -> bool:
    return runs[name].output.token_ids == runs[PLAIN].output.token_ids


def speed_up(runs: Runs, name: str) -> float:
    return runs[name].tokens_per_second / runs[PLAIN].tokens_per_second


def show(console: Console, prompt: Mapping[str, str], output: Output) -> None:
    """One prompt and its answer."""
    is_cut = output.finish_reason == "length"
    body = Text.assemble((prompt["prompt"] + "\n\n", "dim"), output.text, " ..." if is_cut else "")
    console.print(Panel(body, title=Text(prompt["domain"]), title_align="left"))


def speed_ups(prompts: Prompts, measured: Sequence[Runs]) -> Table:
    """For each prompt the tokens/s of plain decoding and what each drafter makes of them."""
    table = _table("tokens/s", *measured[0])
    for prompt, runs in zip(prompts, measured, strict=True):
        cells = [f"{runs[PLAIN].tokens_per_second:.0f}"]
        for name, run in list(runs.items())[1:]:
            route = f" ({', '.join(routes(run))})" if routes(run) else ""
            other = "" if is_identical(runs, name) else " *"
            cells.append(f"{speed_up(runs, name):.2f}x{route}{other}")
        table.add_row(prompt["domain"], *cells)
    return table


def summary(measured: Sequence[Runs]) -> Table:
    """One line for each drafter over all prompts."""
    table = _table("drafter", "tokens/s", "speed-up", "mean acceptance length", "identical ids")
    for name in measured[0]:
        total = totals(measured, name)
        is_all = total["num_identical"] == total["num_prompts"]
        same = "yes" if is_all else f"{total['num_identical']} of {total['num_prompts']}"
        table.add_row(
            name,
            f"{total['tokens_per_second']:.0f}",
            "-" if name == PLAIN else f"{total['speed_up']:.2f}x",
            f"{total['acceptance_length']:.2f}",
            "-" if name == PLAIN else same,
        )
    return table


def _table(first: str, *headings: str) -> Table:
    table = Table(box=None, padding=(0, 1))
    table.add_column(first, overflow="fold")
    for heading in headings:
        table.add_column(heading, justify="right", overflow="fold")
    return table


def totals(measured: Sequence[Runs], name: str) -> dict[str, Any]:
    """Over all prompts: identical outputs, tokens per step, tokens per second, speed-up."""
    runs = [by_drafter[name] for by_drafter in measured]
    num_tokens = sum(len(run.output.token_ids) for run in runs)
    num_steps = sum(run.output.stats.num_steps for run in runs)
    rate = num_tokens / sum(run.median_s for run in runs)
    plain = [by_drafter[PLAIN] for by_drafter in measured]
    plain_rate = sum(len(r.output.token_ids) for r in plain) / sum(r.median_s for r in plain)
    return {
        "num_identical": sum(is_identical(by_drafter, name) for by_drafter in measured),
        "num_prompts": len(measured),
        "acceptance_length": num_tokens / num_steps,
        "tokens_per_second": rate,
        "speed_up": rate / plain_rate,
    }


def verdict(measured: Sequence[Runs]) -> str:
    """Two sentences: is the text the same, and what does the fastest drafter bring."""
    drafters = [name for name in measured[0] if name != PLAIN]
    same = sum(all(is_identical(runs, name) for name in drafters) for runs in measured)
    count = len(measured)
    identity = f"All drafters wrote the same ids as {PLAIN} on "
    if same == count:
        identity += f"all {count} prompts"
    else:
        identity += f"{same} of {count} prompts (half precision rounds near-ties differently)"
    best = max(drafters, key=lambda name: totals(measured, name)["speed_up"])
    total = totals(measured, best)
    return (
        f"{identity}. The fastest, {best}, had {total['speed_up']:.2f}x its speed "
        f"(mean acceptance length {total['acceptance_length']:.2f})."
    )


def as_object(prompts: Prompts, measured: Sequence[Runs], *, model: str) -> dict[str, Any]:
    """The object of `--json`."""
    results = [
        {
            **prompt,
            "runs": {
                name: {
                    "text": run.output.text,
                    "token_ids": list(run.output.token_ids),
                    "is_identical": is_identical(runs, name),
                    "acceptance_length": run.output.stats.acceptance_length,
                    "tokens_per_second": run.tokens_per_second,
                    "speed_up": speed_up(runs, name),
                    "seconds": run.seconds,
                }
                for name, run in runs.items()
            },
        }
        for prompt, runs in zip(prompts, measured, strict=True)
    ]
    return {
        "model": model,
        "verdict": verdict(measured),
        "totals": {name: totals(measured, name) for name in measured[0]},
        "prompts": results,
    }
