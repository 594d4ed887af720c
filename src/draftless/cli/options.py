"""Arguments and options of all commands, each written once; `TopK[int]` is an option of that type.

The flags of `draftless train` are written in `training.config`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, TypeVar

import typer

from draftless.cli.encodings import unicode_text

T = TypeVar("T")


def option(panel: str | None, help_text: str, *names: str, **more: Any) -> Any:
    """An option of a panel of the help page; its name comes from the parameter if none is given."""
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **more)


_ANCHORS = "Anchors"
_DATA = "Data"
_DRAFTING = "Drafting"
_FORMAT = "Prompt format"
_MACHINE = "Machine"
_OUTPUT = "Output"
_PROMPT = "Prompt (one source; without one, standard input)"
_RUN = "Run"
_SAMPLING = "Sampling"
_SEARCH = "Search"

# Shared by several commands

_MODEL = "Folder, GGUF file or name on the Hugging Face Hub. Default: the model that ships with Draftless."

Model = Annotated[str | None, typer.Argument(metavar="MODEL", show_default=False, help=_MODEL)]
ModelOption = Annotated[str | None, option(_DATA, _MODEL)]
Split = Annotated[str, option(_DATA, "Split of a dataset, or name of the files in a folder.")]
Limit = Annotated[
    int | None,
    option(_DATA, "Maximum number of records; in bench quality per domain. Default: all.", min=1),
]
Raw = Annotated[
    bool,
    option(_FORMAT, "Use the text as is: no chat template, no trained prompt format.", "--raw"),
]

MaxNewTokens = Annotated[T, option(_SAMPLING, "Maximum number of tokens to generate.")]
Temperature = Annotated[T, option(_SAMPLING, "Sampling temperature; 0 is greedy decoding.")]
TopK = Annotated[T, option(_SAMPLING, "Sample from the k most likely tokens only; 0 is off.")]
TopP = Annotated[
    T, option(_SAMPLING, "Sample from the smallest set of tokens with this probability; 1 is off.")
]
MinP = Annotated[
    T, option(_SAMPLING, "Minimum probability, relative to the most likely token; 0 is off.")
]
Seed = Annotated[T, option(_SAMPLING, "Random seed.")]
Temperatures = Annotated[
    list[str] | None,
    option(_SAMPLING, "Comma-separated temperatures. Default: 0."),
]

Drafter = Annotated[
    T,
    option(
        _DRAFTING,
        "none, prompt-lookup, recycling, tr-jacobi, sdsat, layer-skip, knn-ssd or auto; changes the "
        "speed, not the text. generate and chat use the checkpoint's, else auto, by default.",
    ),
]
Drafters = Annotated[
    list[str] | None,
    option(_DRAFTING, "Comma-separated drafters. Default: all that the model can use."),
]

Resume = Annotated[bool, option(_RUN, "Resume an interrupted run.", "--resume")]
Repeats = Annotated[T, option(_RUN, "Number of repetitions.", min=1)]
BatchSize = Annotated[int, option(_RUN, "Number of prompts in a batch.")]
AsJson = Annotated[bool, option(_OUTPUT, "Print JSON, one object per prompt.", "--json")]

Threads = Annotated[
    int | None, option(_MACHINE, "Number of CPU threads. Default: the fastest, by measurement.")
]
Dtype = Annotated[
    str | None,
    option(_MACHINE, "bfloat16, float16, float32 or float64. Default: that of the checkpoint."),
]
Device = Annotated[str | None, option(_MACHINE, "cpu, cuda, cuda:1 ... Default: cpu.")]
Compile = Annotated[
    T,
    option(
        _MACHINE,
        "Compile the forward pass: faster steps, a slower start. Default: on for a CPU; off in "
        "calibrate tree.",
        "--compile/--no-compile",
        show_default=False,
    ),
]
Strict = Annotated[
    bool,
    option(
        _MACHINE,
        "Same output for every drafter in half precision, too; slower, needs --compile.",
        "--strict",
    ),
]
Int8 = Annotated[
    bool, option(_MACHINE, "Quantize the weights to int8: half the memory; compiled.", "--int8")
]

# draftless generate and chat

Prompt = Annotated[
    str | None, option(_PROMPT, "The prompt.", "--prompt", "-p", callback=unicode_text)
]
PromptFile = Annotated[
    Path | None, option(_PROMPT, "Read the prompt from a file (UTF-8); - is standard input.")
]
Chat = Annotated[
    Path | None,
    option(_PROMPT, 'Read chat messages from a JSON file: [{"role": "user", "content": "..."}].'),
]
Prompts = Annotated[
    Path | None,
    option(
        _PROMPT,
        'Read prompts from a JSONL file: {"prompt": "..."} or {"messages": [...]} per line.',
    ),
]
System = Annotated[
    str | None, option(_FORMAT, "System message for the chat template.", callback=unicode_text)
]
MinNewTokens = Annotated[
    int | None,
    option(_SAMPLING, "Minimum number of tokens to generate.", "--min-new-tokens", "--min-tokens"),
]
IgnoreEos = Annotated[
    bool | None, option(_SAMPLING, "Continue after an EOS token.", "--ignore-eos")
]
RepetitionPenalty = Annotated[
    float | None, option(_SAMPLING, "Penalty for tokens that occurred before; 1 is off.")
]
Stop = Annotated[
    list[str] | None,
    option(_SAMPLING, "Stop before this text; may be repeated.", callback=unicode_text),
]
ModelDefaults = Annotated[
    bool,
    option(
        _SAMPLING,
        "Take options that are not given from the checkpoint's generation_config.json. Without it: "
        "greedy, at most 128 tokens (chat: 1024), a new seed.",
        "--model-defaults",
    ),
]
Budget = Annotated[
    int | None,
    option(_DRAFTING, "Maximum number of nodes in a draft tree. Default: the fastest here."),
]
DrafterOption = Annotated[
    list[str] | None,
    option(_DRAFTING, "NAME=VALUE: an option of the drafter, such as top_k=4; may be repeated."),
]
ShowDrafts = Annotated[bool, option(_OUTPUT, "Colour accepted draft tokens.", "--show-drafts")]

# draftless train

ConfigFile = Annotated[
    Path | None, option(_RUN, "YAML file with options of the run; flags override it.", "--config")
]
Preset = Annotated[
    str | None, option(_RUN, "tiny-sample: train a small model from scratch in two minutes.")
]
Preview = Annotated[
    int, option(_RUN, "Show this many training samples and exit.", show_default=False, min=0)
]

# draftless data

PromptData = Annotated[
    str,
    option(
        _DATA,
        "JSONL file with prompt or messages (responses are ignored), folder of such files, or name "
        "of a dataset.",
    ),
]
ResponseFile = Annotated[
    Path, option(_DATA, "Output file, FILE.jsonl; FILE.provenance.json is written beside it.")
]
PromptFormat = Annotated[
    str,
    option(
        _FORMAT,
        "plain: the text as is; chat: the chat template; auto: the trained format, else chat if "
        "there is a template.",
        "--format",
    ),
]
DropLoops = Annotated[
    bool,
    option(
        _DATA, "Leave out responses that mostly repeat themselves.", "--drop-loops/--keep-loops"
    ),
]

# draftless calibrate

Texts = Annotated[
    str,
    option(
        _DATA,
        "Folder with DOMAIN/{train,valid,test}.jsonl, JSONL file with prompt or messages (and "
        "domain), or name of a dataset.",
    ),
]
OutputFolder = Annotated[Path, option(_DATA, "Output folder, also for what --resume needs.")]
Domains = Annotated[
    list[str] | None,
    option(_DATA, "Use this domain only; may be repeated. Default: all."),
]
TextLimit = Annotated[
    int, option(_DATA, "Maximum number of texts per domain; half are held out.", min=2)
]
TextTokens = Annotated[int, option(_DATA, "Number of tokens to generate per text.", min=4)]
Trials = Annotated[int, option(_SEARCH, "Maximum number of trials, in all sessions.", min=1)]
Minutes = Annotated[float | None, option(_SEARCH, "Maximum number of minutes, in all sessions.")]
Objective = Annotated[
    str, option(_SEARCH, "rounds: simulated drafting; measured: timed generation (the paper).")
]
Depth = Annotated[int, option(_SEARCH, "Maximum draft length.", min=1)]
ProtectEnds = Annotated[
    bool,
    option(
        _SEARCH, "Never skip in the first and the last layer.", "--protect-ends/--no-protect-ends"
    ),
]
NumRandom = Annotated[
    int, option(_SEARCH, "Number of random sets of equal size to compare with.", "--random", min=1)
]
Install = Annotated[
    bool, option(_RUN, "Write the result into the model's draftless.json, too.", "--install")
]

# draftless calibrate anchors

Unseen = Annotated[
    list[str] | None,
    option(_DATA, "Leave this domain out of the store, as a test of the routing; may be repeated."),
]
Samples = Annotated[
    int,
    option(_ANCHORS, "Maximum number of prompts per domain; a quarter more are held out.", min=1),
]
PerDomain = Annotated[
    int, option(_ANCHORS, "Number of anchors per domain.", "--anchors-per-domain", min=1)
]
Kind = Annotated[
    str,
    option(
        _ANCHORS,
        "samples: the prompts nearest to the centroids (the paper); centroids: the centroids (its "
        "code).",
        "--anchors",
    ),
]
Clusters = Annotated[
    str | None,
    option(
        _ANCHORS, "Number of domains to find by clustering, or auto. Default: the data's domains."
    ),
]
Keep = Annotated[
    float, option(_ANCHORS, "Share of held-out prompts that must be near enough to a domain.")
]
Settings = Annotated[
    Path | None,
    option(
        _SEARCH, "Folder with DOMAIN/skip.json (and general/skip.json) to use without a search."
    ),
]

# draftless calibrate latency and tree

PriceFile = Annotated[Path | None, option(_OUTPUT, "Write the price list to this file, too.")]
Force = Annotated[bool, option(_RUN, "Measure again even if there is a list.", "--force")]
Prices = Annotated[
    Path | None,
    option(_SEARCH, "Price list of `calibrate latency --output`. Default: that of this machine."),
]

# draftless bench

_QUESTIONS = "Questions"
_METHODS = "Methods"

Suite = Annotated[
    str,
    option(
        _QUESTIONS,
        "tiny, random (random tokens), spec-bench, code (HumanEval and MBPP), a JSONL file, or a "
        "folder with DOMAIN/test.jsonl.gz.",
    ),
]
SuiteData = Annotated[
    Path | None,
    option(_QUESTIONS, "Folder of spec-bench or code, or spec-bench's question.jsonl."),
]
Categories = Annotated[
    list[str] | None, option(_QUESTIONS, "Comma-separated categories. Default: all.")
]
Mixes = Annotated[
    list[str] | None,
    option(
        _QUESTIONS,
        "Comma-separated probabilities of a change of category after a request; each gives a stream "
        "of the same questions in another order.",
    ),
]
MethodOption = Annotated[
    list[str] | None,
    option(_METHODS, "NAME.KEY=VALUE: measure this drafter with these options, too."),
]
Sweep = Annotated[
    list[str] | None,
    option(
        _METHODS,
        "NAME.KEY=VALUES, such as sdsat.k=1..13 or layer-skip.skip_set=a.json,b.json: measure the "
        "drafter with each value.",
    ),
]
Peers = Annotated[
    bool, option(_METHODS, "Measure the loops of transformers, too.", "--peers/--no-peers")
]
RunFolder = Annotated[Path | None, option(_RUN, "Output folder. Default: bench-runs/NAME-SUITE.")]
Name = Annotated[
    str | None, option(_RUN, "Name of the model in the results. Default: from its path.")
]
SpecBenchOut = Annotated[
    Path | None, option(_RUN, "Write Spec-Bench's answer files to this folder, too.")
]
Runs = Annotated[
    list[Path], typer.Argument(metavar="RUN...", help="Output folders of `bench run`.")
]
ReportFolder = Annotated[Path, option(_OUTPUT, "Output folder.")]
AnchorMap = Annotated[
    Path | None, option(_OUTPUT, "Draw this map.json of `draftless calibrate anchors`, too.")
]
Before = Annotated[str | None, option(_DATA, "Model to compare with.")]
QualityData = Annotated[Path, option(_DATA, "Folder with DOMAIN/test.jsonl.gz, or JSONL file.")]
QualityFile = Annotated[
    Path, option(_OUTPUT, "Output file, FILE.json; FILE.md is written beside it.")
]
RunCode = Annotated[
    bool, option(_RUN, "Run the programs that the model writes, in a sandbox.", "--run-code")
]
