"""Arguments and options of the commands, each written once; names and help come from here."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _option(panel: str, help_text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **more)


_SAMPLING = "Sampling"
_DRAFTING = "Drafting"
_OUTPUT = "Output"
_MACHINE = "Machine"
_RUN = "Run"
_NOISE = "Noise"
_ADAPTIVE = "Adaptive tokens"

Model = Annotated[
    str | None,
    typer.Argument(
        metavar="MODEL",
        show_default=False,
        help="Folder of a checkpoint, GGUF file, or a name on the Hugging Face Hub. Default: the model that ships with Draftless.",
    ),
]

MaxNewTokens = Annotated[int, _option(_SAMPLING, "Most tokens to generate.")]
Temperature = Annotated[float, _option(_SAMPLING, "0 is greedy.")]
TopK = Annotated[int, _option(_SAMPLING, "Keep the k most likely tokens; 0 keeps all.")]
TopP = Annotated[float, _option(_SAMPLING, "Keep the smallest set of tokens with this mass.")]
MinP = Annotated[float, _option(_SAMPLING, "Drop tokens below this share of the most likely one.")]
Seed = Annotated[
    int | None,
    _option(_SAMPLING, "Same seed, same text, with any drafter. Default: a new one, reported."),
]

Drafter = Annotated[
    str | None,
    _option(
        _DRAFTING,
        "none, prompt-lookup, recycling, tr-jacobi, sdsat, layer-skip, knn-ssd or auto. Default: auto, "
        "or what the checkpoint names.",
    ),
]
Budget = Annotated[
    int | None,
    _option(_DRAFTING, "Most nodes of a draft tree. Default: what pays on this machine."),
]

AsJson = Annotated[bool, _option(_OUTPUT, "Print one JSON object and nothing else.", "--json")]

Dtype = Annotated[
    str | None,
    _option(_MACHINE, "bfloat16, float16, float32 or float64. Default: as the weights were saved."),
]
Device = Annotated[str | None, _option(_MACHINE, "cpu, cuda, cuda:1 ... Default: cpu.")]
Compile = Annotated[
    bool,
    _option(
        _MACHINE,
        "Compile the forward pass: a minute the first time, seconds later; faster steps.",
        "--compile/--no-compile",
    ),
]
CompileHere = Annotated[
    bool | None,
    _option(
        _MACHINE,
        "Compile the forward pass: a minute the first time, seconds later; faster steps. Default: on a CPU.",
        "--compile/--no-compile",
        show_default=False,
    ),
]
Strict = Annotated[
    bool,
    _option(
        _MACHINE,
        "The same ids for every drafter in half precision, too; needs --compile, costs time.",
        "--strict",
    ),
]
Int8 = Annotated[
    bool,
    _option(_MACHINE, "Round the weights to what int8 holds; half the memory, compiled.", "--int8"),
]
Repeats = Annotated[
    int | None,
    _option(
        _MACHINE,
        "Timed runs of each; the median counts. Default: up to 3 in half a minute.",
        min=1,
        show_default=False,
    ),
]
DemoThreads = Annotated[
    int | None,
    _option(
        _MACHINE,
        "Threads of the CPU. Default: the fastest, by measurement.",
        "--threads",
        min=1,
        show_default=False,
    ),
]

# draftless train
StartModel = Annotated[str | None, _option(_RUN, "Folder or hub id to start from.")]
Data = Annotated[
    str | None,
    _option(_RUN, "JSONL (prompt/response or messages), a folder of such, or a dataset's name."),
]
OutputFolder = Annotated[str | None, _option(_RUN, "Folder for the trained model.", "--output")]
ConfigFile = Annotated[
    Path | None, _option(_RUN, "YAML file with any option of the run; flags win.", "--config")
]
Preset = Annotated[
    str | None, _option(_RUN, "tiny-sample: from nothing to a checkpoint in two minutes.")
]
Epochs = Annotated[float | None, _option(_RUN, "Passes over the data.")]
MaxSteps = Annotated[int | None, _option(_RUN, "Stop after so many steps.")]
BatchSize = Annotated[int | None, _option(_RUN, "Rows per step and process.")]
LearningRate = Annotated[float | None, _option(_RUN, "Peak learning rate.", "--lr")]
MaxLength = Annotated[int | None, _option(_RUN, "Longest document, in tokens.")]
TrainDtype = Annotated[
    str | None, _option(_RUN, "bfloat16, or float32 to repeat bit for bit.", "--dtype")
]
TrainSeed = Annotated[int | None, _option(_RUN, "Seed of everything random.", "--seed")]
Lora = Annotated[
    bool | None, _option(_RUN, "Train low-rank adapters, merged at the end.", "--lora")
]
Resume = Annotated[bool, _option(_RUN, "Go on from the newest complete checkpoint.", "--resume")]
SaveEvery = Annotated[
    int | None, _option(_RUN, "Steps between checkpoints. Default: one every ten minutes.")
]
TrainFormat = Annotated[
    str | None,
    _option(
        _RUN,
        "plain, chat, or auto: as the checkpoint was trained, else the chat template where there is one.",
        "--format",
    ),
]
NoiseMode = Annotated[
    str | None,
    _option(
        _NOISE, "branch: noise beside the clean text; inline: noise in it (the paper).", "--mode"
    ),
]
NoiseLength = Annotated[int | None, _option(_NOISE, "Noise tokens in a run.")]
NoiseSource = Annotated[
    str | None, _option(_NOISE, "prefix or vocabulary: where noise is drawn from.")
]
BlockTargets = Annotated[
    str | None,
    _option(
        _NOISE,
        "labels (the papers), or model: what it says itself on clean input.",
    ),
]
LayerDropout = Annotated[
    float | None,
    _option(
        _RUN,
        "Rate at which steps leave the last layer's sub-layers out, growing with depth: teaches to "
        "draft by skipping layers (LayerSkip).",
        "--layer-dropout",
    ),
]
CleanShare = Annotated[
    float | None, _option(_NOISE, "Share of documents without noise; 1 is plain SFT.")
]
WithNoise = Annotated[
    bool | None,
    _option(_NOISE, "Teach denoising (MSN), too: one checkpoint for both drafters.", "--noise"),
]
BlockLength = Annotated[int | None, _option(_ADAPTIVE, "Adaptive tokens in a block.")]
AdaptiveSpacing = Annotated[int | None, _option(_ADAPTIVE, "One block for so many tokens.")]
AdaptiveIds = Annotated[
    str | None,
    _option(_ADAPTIVE, "Ids that the tokenizer does not use, as 7,8. Default: new ones are added."),
]
Distinct = Annotated[
    bool | None,
    _option(_ADAPTIVE, "One adaptive id for each slot, not one that all share.", "--distinct"),
]
AdaptiveWeight = Annotated[
    float | None, _option(_ADAPTIVE, "Weight of an adaptive target; a clean one has 1.")
]
AdaptiveFirst = Annotated[
    float | None,
    _option(_ADAPTIVE, "Share of the steps, at the beginning, in which blocks alone count."),
]
Frozen = Annotated[
    bool | None,
    _option(
        _ADAPTIVE,
        "Train the new embedding rows alone; the model's own output stays what it is.",
        "--frozen",
    ),
]
KLWeight = Annotated[
    float | None,
    _option(_ADAPTIVE, "Weight of the divergence from the original model.", "--kl-weight"),
]
TrainAttention = Annotated[str | None, _option(_RUN, "sdpa or eager.", "--attention")]
Preview = Annotated[
    int, _option(_NOISE, "Show so many noised samples and stop.", show_default=False, min=0)
]
