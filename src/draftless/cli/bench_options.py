"""Options of `draftless bench`, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _option(panel: str, help_text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **more)


_QUESTIONS = "Questions"
_METHODS = "Methods"
_RUN = "Run"

Suite = Annotated[
    str,
    _option(
        _QUESTIONS,
        "tiny (shipped), random (text of random tokens, by --seed), spec-bench, code (HumanEval and MBPP), a JSONL file, or a folder with DOMAIN/test.jsonl.gz.",
    ),
]
Data = Annotated[
    Path | None,
    _option(_QUESTIONS, "Where spec-bench and code lie: a folder, or spec-bench's question.jsonl."),
]
Limit = Annotated[
    int | None, _option(_QUESTIONS, "Most questions, taken from the categories in turn.")
]
Mixes = Annotated[
    list[str] | None,
    _option(
        _QUESTIONS,
        "Ask in streams: chance of another category after each request, 0 to 1; with commas between them for several streams of the same questions. --seed gives their order.",
        "--mix",
    ),
]
Raw = Annotated[
    bool, _option(_QUESTIONS, "Prompts as they are: no chat template, no trained format.", "--raw")
]

Drafters = Annotated[
    list[str] | None,
    _option(
        _METHODS,
        "Drafters, with commas between them. Default: all that the checkpoint was trained for.",
    ),
]
DrafterOption = Annotated[
    list[str] | None,
    _option(
        _METHODS,
        "NAME.KEY=VALUE: this drafter runs with these options, too, as one more method.",
    ),
]
Sweep = Annotated[
    list[str] | None,
    _option(
        _METHODS,
        "NAME.KEY=VALUES, such as sdsat.k=1..13 or layer-skip.skip_set=a.json,b.json: every value is one more method, with the --drafter-option values of that drafter.",
    ),
]
Temperatures = Annotated[
    list[str] | None,
    _option(
        _METHODS, "Temperatures, with commas between them. Default: 0, greedy.", "--temperature"
    ),
]
Peers = Annotated[
    bool, _option(_METHODS, "Measure the loops of transformers, too.", "--peers/--no-peers")
]

RunFolder = Annotated[
    Path | None,
    _option(_RUN, "Folder for the rows. Default: bench-runs/NAME-SUITE.", "--output"),
]
Resume = Annotated[
    bool, _option(_RUN, "Go on in a folder that has rows: nothing is lost or repeated.", "--resume")
]
Name = Annotated[
    str | None, _option(_RUN, "What the model is called in the rows. Default: from its path.")
]
Repeats = Annotated[int, _option(_RUN, "Measure everything so many times.")]
Threads = Annotated[int | None, _option(_RUN, "Threads of torch. Default: its own choice.")]
RunSeed = Annotated[
    int,
    _option(_RUN, "Seed of the sampling and of streams; the same for every method.", "--seed"),
]
SpecBenchOut = Annotated[
    Path | None, _option(_RUN, "Write Spec-Bench's answer files into this folder, too.")
]

# draftless bench report
Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="Folders that `bench run` has written.")
]
ReportFolder = Annotated[Path, typer.Option("--output", help="Folder for the report.")]

Categories = Annotated[
    list[str] | None,
    typer.Option(help="These categories only, with commas between them. Default: all."),
]

AnchorMap = Annotated[
    Path | None, typer.Option(help="Draw this map.json of `draftless calibrate anchors`, too.")
]

# draftless bench quality
Before = Annotated[str | None, typer.Option(help="Compare with this model: a folder or a hub id.")]
QualityData = Annotated[
    Path, typer.Option("--data", help="A folder with DOMAIN/test.jsonl.gz, or a JSONL file.")
]
QualityFile = Annotated[Path, typer.Option("--output", help="FILE.json; FILE.md stands beside it.")]
QualityLimit = Annotated[int | None, typer.Option("--limit", help="First N records of a domain.")]
BatchSize = Annotated[int, typer.Option(help="Prompts per batch.")]
RunCode = Annotated[
    bool,
    typer.Option("--run-code", help="Run the programs that the model writes, in a sandbox."),
]
