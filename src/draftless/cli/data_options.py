"""Options of `draftless data`, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _option(panel: str, help_text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **more)


_DATA = "Data"
_RUN = "Run"

Model = Annotated[
    str | None,
    _option(_DATA, "Folder or hub id of who writes. Default: the model that ships with Draftless."),
]
Prompts = Annotated[
    str,
    _option(
        _DATA,
        "JSONL (prompt, or messages; responses in it are not read), a folder of such, or a dataset's name.",
    ),
]
Output = Annotated[Path, _option(_DATA, "FILE.jsonl; FILE.provenance.json stands beside it.")]
Split = Annotated[str, _option(_DATA, "Part of a folder or dataset.")]
Limit = Annotated[int | None, _option(_DATA, "The first so many records.", min=1)]
PromptFormat = Annotated[
    str,
    _option(
        _DATA,
        "plain: the text itself; chat: the chat template; auto: as the checkpoint was trained, else chat "
        "where there is a template.",
        "--format",
    ),
]
DropLoops = Annotated[
    bool,
    _option(
        _DATA,
        "Leave out responses that mostly repeat themselves.",
        "--drop-loops/--keep-loops",
    ),
]

Seed = Annotated[
    int, _option("Sampling", "Mixed with each prompt: the order of the records does not matter.")
]
BatchSize = Annotated[int, _option(_RUN, "Records that are generated together.")]
Drafter = Annotated[
    str,
    _option(_RUN, "A drafter changes the time, not the text; none is often fastest in a batch."),
]
Resume = Annotated[
    bool, _option(_RUN, "Go on with a file: nothing is lost or repeated.", "--resume")
]
Threads = Annotated[int | None, _option(_RUN, "Threads of torch. Default: its own choice.")]
