"""Options of `draftless generate` and `draftless chat`, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from draftless.cli.encodings import unicode_text


def _option(panel: str, help_text: str, *names: str, **more: Any) -> Any:
    more.setdefault("show_default", False)
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **more)


_PROMPT = "Prompt (one source; without one, standard input)"
_FORMAT = "Prompt format"
_SAMPLING = "Sampling"
_DRAFTING = "Drafting"
_OUTPUT = "Output"
_MACHINE = "Machine"

Prompt = Annotated[
    str | None, _option(_PROMPT, "The prompt.", "--prompt", "-p", callback=unicode_text)
]
PromptFile = Annotated[
    Path | None, _option(_PROMPT, "Read the prompt from a file (UTF-8); - is standard input.")
]
Chat = Annotated[
    Path | None,
    _option(_PROMPT, 'Read chat messages from a JSON file: [{"role": "user", "content": "..."}].'),
]
Prompts = Annotated[
    Path | None,
    _option(
        _PROMPT,
        'Read several prompts from JSON lines, one after another: {"prompt": "..."} or {"messages": [...]}.',
    ),
]

Raw = Annotated[
    bool,
    _option(_FORMAT, "Text as it is: no chat template, no trained prompt format.", "--raw"),
]
System = Annotated[
    str | None, _option(_FORMAT, "A system message for the chat template.", callback=unicode_text)
]

MaxNewTokens = Annotated[int | None, _option(_SAMPLING, "Most tokens to generate. Default: 128.")]
MaxAnswerTokens = Annotated[
    int | None, _option(_SAMPLING, "Most tokens of an answer. Default: 1024.", "--max-new-tokens")
]
MinNewTokens = Annotated[
    int | None,
    _option(_SAMPLING, "No end before so many tokens.", "--min-new-tokens", "--min-tokens"),
]
IgnoreEos = Annotated[bool | None, _option(_SAMPLING, "Go on after an EOS token.", "--ignore-eos")]
Temperature = Annotated[float | None, _option(_SAMPLING, "0 is greedy. Default: 0.")]
TopK = Annotated[int | None, _option(_SAMPLING, "Keep the k most likely tokens; 0 keeps all.")]
TopP = Annotated[
    float | None, _option(_SAMPLING, "Keep the smallest set of tokens with this mass.")
]
MinP = Annotated[
    float | None, _option(_SAMPLING, "Drop tokens below this share of the most likely one.")
]
RepetitionPenalty = Annotated[
    float | None, _option(_SAMPLING, "Above 1: tokens that occurred become less likely.")
]
Seed = Annotated[
    int | None,
    _option(_SAMPLING, "Same seed, same text, with any drafter. Default: a new one, reported."),
]
Stop = Annotated[
    list[str] | None,
    _option(_SAMPLING, "End before this text; may be given several times.", callback=unicode_text),
]
ModelDefaults = Annotated[
    bool,
    _option(
        _SAMPLING,
        "What is not given is what the checkpoint's generation_config.json says.",
        "--model-defaults",
    ),
]

DrafterOption = Annotated[
    list[str] | None,
    _option(
        _DRAFTING,
        "NAME=VALUE, an option of the drafter, such as top_k=4; may be given several times.",
    ),
]

ShowDrafts = Annotated[bool, _option(_OUTPUT, "Colour accepted draft tokens.", "--show-drafts")]
AsJson = Annotated[
    bool, _option(_OUTPUT, "Print one JSON object for each prompt and nothing else.", "--json")
]

Threads = Annotated[
    int | None,
    _option(_MACHINE, "Threads of the CPU. Default: the fastest, by measurement.", min=1),
]
