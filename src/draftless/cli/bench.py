"""`draftless bench`: which drafter is best for this model, machine and texts, and is it exact."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.table import Table
from rich.text import Text

from draftless.cli import options
from draftless.cli.bench_methods import read_mixes, read_samplings, read_variants, split
from draftless.cli.common import (
    load_model,
    model_name,
    progress_bar,
    resumable,
    set_up_torch,
    stderr,
)
from draftless.cli.tables import shown
from draftless.errors import ConfigError

if TYPE_CHECKING:
    from collections.abc import Sequence

    from draftless import Draftless
    from draftless.bench.plan import Plan, RunOptions
    from draftless.bench.questions import Question
    from draftless.bench.rows import Row
    from draftless.bench.runner import Run
    from draftless.bench.summary import CaseSummary

HEADINGS = ("tok/step", "tok/s", "speed-up [95 %]", "identical", "near-ties", "failed")

bench_app = typer.Typer(
    no_args_is_help=True, help="Measure drafters on your model, machine and texts."
)


@bench_app.callback()
def bench() -> None:
    """Measure drafters on your model, machine and texts."""


@bench_app.command()
def run(  # noqa: PLR0913 - the command line is derived from the signature
    model: options.Model = None,
    suite: options.Suite = "tiny",
    data: options.SuiteData = None,
    categories: options.Categories = None,
    limit: options.Limit = None,
    mix: options.Mixes = None,
    raw: options.Raw = False,
    drafters: options.Drafters = None,
    drafter_option: options.MethodOption = None,
    sweep: options.Sweep = None,
    temperature: options.Temperatures = None,
    top_k: options.TopK[int] = 0,
    top_p: options.TopP[float] = 1.0,
    min_p: options.MinP[float] = 0.0,
    max_new_tokens: options.MaxNewTokens[int] = 128,
    peers: options.Peers = True,
    repeats: options.Repeats[int] = 1,
    seed: options.Seed[int] = 0,
    output: options.RunFolder = None,
    resume: options.Resume = False,
    name: options.Name = None,
    spec_bench_out: options.SpecBenchOut = None,
    threads: options.Threads = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    compile: options.Compile[bool | None] = None,
    strict: options.Strict = False,
    int8: options.Int8 = False,
) -> None:
    """Run every drafter and the loops of transformers on the same questions.

    A difference from plain decoding that is no near-tie in fp32 is a defect (exit code 1).

    [bold]Examples[/bold]

        draftless bench run ./my-model --suite prompts.jsonl --temperature 0,1 --output runs/mine
        draftless bench run ./my-model --suite spec-bench --data question.jsonl --max-new-tokens 1024
        draftless bench run --drafter-option sdsat.steps=2 --sweep sdsat.k=1..13 --no-peers
        draftless bench run ./my-model --suite data --categories code,sql --limit 80 --mix 0,0.5,1
    """
    from draftless.bench import plan, runner

    called, suite_name = name or _short_name(model), Path(suite).name
    folder = output or Path("bench-runs") / f"{called}-{suite_name.partition('.')[0]}"
    chosen = plan.RunOptions(
        name=called, suite=suite_name, mixes=read_mixes(mix), limit=limit, repeats=repeats,
        seed=seed, max_new_tokens=max_new_tokens, is_raw=raw, has_peers=peers,
        drafters=tuple(split(drafters)) or None,
        variants=read_variants(drafter_option or [], sweep or []),
        samplings=read_samplings(temperature or ["0"], top_k=top_k, top_p=top_p, min_p=min_p),
    )  # fmt: skip
    questions = _questions(suite, data, split(categories))
    runner.check_folder(folder, is_resumed=resume)
    set_up_torch(threads)
    loaded = load_model(
        model, dtype=dtype, device=device, drafter="none", compile=compile, strict=strict, int8=int8
    )
    if not carry_out(_plan(loaded, questions, chosen), folder, resume, spec_bench_out):
        raise typer.Exit(1)


def _questions(suite: str, data: Path | None, categories: Sequence[str]) -> list[Question]:
    """The questions of these categories; none of random text, which waits for the model."""
    from draftless.bench.averages import of_categories
    from draftless.bench.questions import RANDOM, load_suite

    if suite != RANDOM:
        return of_categories(load_suite(suite, data), categories)
    if categories:
        raise ConfigError(f"the suite {RANDOM!r} has no --categories; leave them out")
    return []


def _plan(model: Draftless, questions: list[Question], chosen: RunOptions) -> Plan:
    from draftless.bench.plan import make_plan
    from draftless.bench.questions import random_questions

    return make_plan(model, questions or random_questions(model, chosen.seed), chosen)


@bench_app.command()
def report(
    runs: options.Runs,
    output: options.ReportFolder = Path("report"),
    categories: options.Categories = None,
    anchor_map: options.AnchorMap = None,
) -> None:
    """Make one HTML page, Markdown and JSON of one run or of several.

    [bold]Examples[/bold]

        draftless bench report runs/mine --output report
        draftless bench report runs/before runs/after --output report
        draftless bench report runs/mine --categories code,sql --output report-code
    """
    from draftless.bench.report import write_report

    typer.echo(str(write_report(list(runs), output, split(categories), anchor_map)))


@bench_app.command()
def quality(  # noqa: PLR0913 - the command line is derived from the signature
    data: options.QualityData,
    model: options.Model = None,
    before: options.Before = None,
    output: options.QualityFile = Path("quality.json"),
    limit: options.Limit = None,
    max_new_tokens: options.MaxNewTokens[int] = 256,
    batch_size: options.BatchSize = 8,
    run_code: options.RunCode = False,
    dtype: options.Dtype = None,
    device: options.Device = None,
) -> None:
    """Measure what a model's answers are worth, and what training has changed.

    Clean loss, SQL, BLEU and chrF, ROUGE, GSM8K and, with --run-code, HumanEval and MBPP; with
    --before two models side by side, the differences with intervals.

    [bold]Examples[/bold]

        draftless bench quality ./my-model --data data --output quality.json
        draftless bench quality ./msn --before ./base --data data --output quality.json
    """
    from draftless.bench.quality import QualityOptions, write_quality

    loaded = load_model(model, dtype=dtype, device=device, drafter="none")
    other = None
    if before is not None:
        loaded_before = load_model(before, dtype=dtype, device=device, drafter="none")
        other = (_short_name(before), loaded_before)
    with progress_bar() as progress:
        tasks: dict[str, Any] = {}

        def show(name: str, num_done: int, num_records: int) -> None:
            task = tasks.setdefault(name, None)
            if task is None:
                task = tasks[name] = progress.add_task(name, total=num_records)
            progress.update(task, completed=num_done, total=num_records)

        file = write_quality(
            (_short_name(model), loaded),
            data,
            output,
            before=other,
            options=QualityOptions(limit, max_new_tokens, batch_size, run_code),
            on_progress=show,
        )
    typer.echo(file.with_suffix(".md").read_text(encoding="utf-8"))


def carry_out(plan: Plan, folder: Path, is_resumed: bool, spec_bench_out: Path | None) -> bool:
    """Measure what is missing and show the result; returns whether all outputs are as they must be."""
    from draftless.bench.runner import Run

    started = Run(plan, folder, is_resumed=is_resumed)
    _show_plan(plan, started)
    measure(started)
    if spec_bench_out is not None:
        write_spec_bench(folder, spec_bench_out)
    return show_result(folder)


def measure(started: Run) -> None:
    """Carry the run out under a progress bar; Ctrl-C ends it with a word on how to go on."""
    pending = len(started.pending)
    if not pending:
        stderr.print(f"{started.folder} is complete; nothing is left to measure")
        return
    with resumable(started.folder), progress_bar() as progress:
        task = progress.add_task("Warming up", total=pending)
        for rows in started.rows():
            for row in rows:
                if row.error is not None:
                    progress.console.print(_failure(row), soft_wrap=True)
            progress.update(task, advance=1, description="Questions")


def show_result(folder: Path) -> bool:
    """Print the table of a run; returns whether all outputs are plain decoding's or near-ties."""
    from draftless.bench.answers import answers
    from draftless.bench.mixes import stream_summaries
    from draftless.bench.rows import read_rows
    from draftless.bench.stream_tables import short_stream_table
    from draftless.bench.summary import summarise

    rows = read_rows(folder)
    summary = summarise(rows)
    console = Console(highlight=False)
    told = {answer.group: answer for answer in answers(summary)}
    for group, cases in summary.groups().items():
        console.print(result_table(cases))
        if streams := stream_summaries(rows, cases):
            console.print(shown(short_stream_table(streams)))
        console.print(Text(told[group].text, style="bold"), soft_wrap=True)
        for note in told[group].notes:
            console.print(Text(note, style="dim"), soft_wrap=True)
        console.print()
    defects = [one.row for one in summary.divergences if one.is_defect]
    if defects:
        methods = ", ".join(sorted({row.case.method for row in defects}))
        message = (
            f"{len(defects)} outputs differ from plain decoding by more than rounding ({methods}); "
            f"the first is question {defects[0].question_id}. This is a defect of Draftless."
        )
        stderr.print(Text(message, style="bold red"), soft_wrap=True)
    else:
        again = shlex.join(["draftless", "bench", "report", str(folder), "--output", "report"])
        stderr.print(f"rows: {folder}; the whole report: {again}", soft_wrap=True)
    return not defects


def result_table(cases: Sequence[CaseSummary]) -> Table:
    """One line per case of a model, sampling and dtype."""
    group = cases[0].group
    title = Text(f"{group.model}, {group.sampling}, {group.dtype}", style="bold")
    table = Table(box=None, padding=(0, 1), pad_edge=False, title=title, title_justify="left")
    table.add_column("method", min_width=13, overflow="fold")
    for heading in HEADINGS:
        table.add_column(heading, justify="right", no_wrap=True)
    for case in cases:
        table.add_row(Text(case.case.method), *_numbers(case))
    return table


def _numbers(case: CaseSummary) -> list[str]:
    up, trust = case.speed_up, case.trust
    compared = f"{trust.num_identical} of {trust.num_compared}" if trust.num_compared else "-"
    return [
        _number(case.acceptance_length, ".2f"),
        _number(case.tokens_per_second, ".0f"),
        str(up) if up else "-",
        compared,
        str(trust.num_near_ties) if trust.num_compared else "-",
        str(case.num_failed),
    ]


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _failure(row: Row) -> Text:
    place = f"{row.case.method}, {row.case.sampling}, question {row.question_id}: "
    return Text.assemble((place, "red"), str(row.error))


def write_spec_bench(run_folder: Path, output: Path) -> None:
    """Write Spec-Bench's answer files of a run."""
    from draftless.bench.formats import write_spec_bench as write
    from draftless.bench.rows import read_rows, read_sessions

    files = write(read_rows(run_folder), output, read_sessions(run_folder))
    stderr.print(f"{len(files)} answer files of Spec-Bench in {output}")


def _show_plan(plan: Plan, started: Run) -> None:
    """What will be measured, and what will not."""
    repeats = f" x {plan.options.repeats}" if plan.options.repeats > 1 else ""
    stderr.print(
        f"{len(plan.questions)} questions of {plan.options.suite} x {len(plan.methods)} cases"
        f"{repeats}; {len(started.pending)} left to measure"
    )
    if plan.too_long:
        stderr.print(f"{len(plan.too_long)} questions are too long for the model's context")
    for name, reason in plan.left_out.items():
        stderr.print(f"left out: {name}: {reason}")


def _short_name(model: str | None) -> str:
    """The last part of a folder or hub id."""
    return model_name(None) if model is None else Path(model).resolve().name
