"""`draftless demo`: the same prompts plain and with every drafter, side by side."""

from __future__ import annotations

import json
import statistics
import sys
import time
from dataclasses import dataclass, field
from importlib.resources import files
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from draftless.cli import options
from draftless.cli.common import load_model, model_name, progress_bar

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from draftless import Chunk, Draftless, Output, SamplingParams

PLAIN = "none"
LABELS = {
    "none": "plain decoding",
    "auto": "all sources",
    "prompt-lookup": "prompt lookup",
    "recycling": "Token Recycling",
    "tr-jacobi": "TR-Jacobi",
    "sdsat": "SDSAT",
    "layer-skip": "layer skipping",
    "knn-ssd": "KNN-SSD",
}
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


def demo(  # noqa: PLR0913 - the command line is derived from the signature
    model: options.Model = None,
    max_new_tokens: options.MaxNewTokens = 64,
    temperature: options.Temperature = 0.0,
    seed: options.Seed = 0,
    repeats: options.Repeats = 3,
    as_json: options.AsJson = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
    compile: options.CompileHere = None,
    strict: options.Strict = False,
) -> None:
    """Show that drafting changes the time and not the text.

    Writes answers to real prompts of several domains, held out from training, with plain decoding
    and with every drafter that the model can use. Runs take turns and repeat; the median counts. The
    sources of the prompts stand in `assets/demo/SOURCES.md`.

    [bold]Examples[/bold]

        draftless demo
        draftless demo --temperature 1.0 --seed 7
        draftless demo ./my-model --json > demo.json
    """
    from draftless import SamplingParams

    params = SamplingParams(max_new_tokens=max_new_tokens, temperature=temperature, seed=seed)
    plain = load_model(
        model, dtype=dtype, device=device, drafter=PLAIN, compile=compile, strict=strict
    )
    prompts = read_prompts()
    measured = measure(plain, [prompt["prompt"] for prompt in prompts], params, repeats)
    if as_json:
        result = as_object(prompts, measured, model=model_name(model))
        sys.stdout.write(json.dumps(result, ensure_ascii=False) + "\n")
        return
    console = Console(highlight=False)
    for prompt, runs in zip(prompts, measured, strict=True):
        show(console, prompt, runs)
    if any(routes(run) for runs in measured for run in runs.values()):
        note = "In brackets: whose skip set the prompt was given, by its nearest anchor."
        console.print(Text(note, style="dim"), soft_wrap=True)
    console.print(Text(verdict(measured), style="bold"), soft_wrap=True)


def read_prompts() -> list[dict[str, str]]:
    """The packaged prompts: `id`, `domain`, `prompt` and `source`."""
    source = files("draftless") / "assets" / "demo" / "prompts.jsonl"
    return [json.loads(line) for line in source.read_text(encoding="utf-8").splitlines()]


def measure(
    model: Draftless, prompts: Sequence[str], params: SamplingParams, repeats: int
) -> list[Runs]:
    """Run every prompt with every drafter, taking turns so that other load hits all alike.

    Each repetition has new drafters: one that remembers must not meet its own answers.
    """
    names = model.drafters
    for name in names:  # the first call pays for things that later ones do not
        model.with_drafter(name).generate(prompts[0], params)
    measured: list[Runs] = [{} for _ in prompts]
    with progress_bar() as progress:
        task = progress.add_task("Generating", total=repeats * len(prompts) * len(names))
        for _ in range(repeats):
            models = {name: model.with_drafter(name) for name in names}
            for prompt, runs in zip(prompts, measured, strict=True):
                for name, model in models.items():
                    started = time.perf_counter()
                    chunks = list(model.stream(prompt, params))
                    seconds = time.perf_counter() - started
                    runs.setdefault(name, as_run(chunks)).seconds.append(seconds)
                    progress.advance(task)
    return measured


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


def show(console: Console, prompt: Mapping[str, str], runs: Runs) -> None:
    """One prompt: its text, and a line for each drafter."""
    from draftless.bench.near_ties import first_difference

    body = Text.assemble((prompt["prompt"] + "\n", "dim"), runs[PLAIN].output.text)
    console.print(Panel(body, title=Text(prompt["domain"]), title_align="left"))
    table = Table(box=None, padding=(0, 2))
    for heading in ("", "same ids", "tokens/step", "tokens/s", "speed-up"):
        table.add_column(heading, justify="right" if heading else "left")
    for name, run in runs.items():
        same_until = first_difference(run.output.token_ids, runs[PLAIN].output.token_ids)
        same = "yes" if same_until is None else f"up to {same_until}"
        route = f" ({', '.join(routes(run))})" if routes(run) else ""
        table.add_row(
            LABELS[name] + route,
            "-" if name == PLAIN else same,
            f"{run.output.stats.acceptance_length:.2f}",
            f"{run.tokens_per_second:.0f}",
            "-" if name == PLAIN else f"{speed_up(runs, name):.2f}x",
        )
    console.print(table)
    console.print()


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
    identity = "All drafters wrote the same ids as plain decoding on "
    if same == count:
        identity += f"all {count} prompts"
    else:
        identity += (
            f"{same} of {count} prompts "
            "(half precision rounds near-ties differently; --strict does not)"
        )
    best = max(drafters, key=lambda name: totals(measured, name)["speed_up"])
    total = totals(measured, best)
    return (
        f"{identity}. The fastest, {LABELS[best]}, had {total['speed_up']:.2f}x its speed "
        f"({total['acceptance_length']:.2f} tokens per step)."
    )


def as_object(
    prompts: Sequence[Mapping[str, str]], measured: Sequence[Runs], *, model: str
) -> dict[str, Any]:
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
