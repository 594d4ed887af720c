"""Options of `draftless calibrate`, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _option(panel: str, help_text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **more)


_DATA = "Data"
_SEARCH = "Search"
_RUN = "Run"

Model = Annotated[
    str | None,
    _option(_DATA, "Folder or hub id. Default: the model that ships with Draftless."),
]
Data = Annotated[
    str,
    _option(
        _DATA,
        "DOMAIN/{train,valid,test}.jsonl, one JSONL file, or a dataset's name; records have a "
        "prompt (or messages), and may say their domain.",
    ),
]
Output = Annotated[Path, _option(_DATA, "Folder for what is found, and for what has been tried.")]
Domains = Annotated[
    list[str] | None,
    _option(_DATA, "Only this domain; may be given several times. Default: all.", "--domain"),
]
Split = Annotated[str, _option(_DATA, "Part of a folder or dataset.")]
Limit = Annotated[
    int,
    _option(_DATA, "Most texts of a domain; the model writes them, half are held out.", min=2),
]
TextTokens = Annotated[int, _option(_DATA, "Tokens that the model writes for a text.", min=4)]

Trials = Annotated[int, _option(_SEARCH, "Most sets to try, in all sessions together.", min=1)]
Minutes = Annotated[
    float | None, _option(_SEARCH, "Most minutes of all sessions; whichever ends first counts.")
]
Objective = Annotated[
    str,
    _option(_SEARCH, "rounds: simulated, without noise; measured: timed generation (the paper)."),
]
Depth = Annotated[int, _option(_SEARCH, "Longest draft that is considered.", min=1)]
ProtectEnds = Annotated[
    bool,
    _option(
        _SEARCH, "Never skip in the first and the last layer.", "--protect-ends/--no-protect-ends"
    ),
]
NumRandom = Annotated[
    int, _option(_SEARCH, "Random sets of equal size to compare with.", "--random", min=1)
]
Seed = Annotated[int, _option(_SEARCH, "Of texts, places, proposals and random sets.")]

Install = Annotated[
    bool, _option(_RUN, "Write it into the model's own draftless.json, too.", "--install")
]
Resume = Annotated[bool, _option(_RUN, "Go on: at most the running trial was lost.", "--resume")]
Threads = Annotated[int | None, _option(_RUN, "Threads of torch. Default: its own choice.")]
