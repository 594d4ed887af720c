"""Options of `draftless calibrate anchors` that `skip` does not have, each written once."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer


def _option(panel: str, help_text: str, *names: str, **more: Any) -> Any:
    return typer.Option(*names, help=help_text, rich_help_panel=panel, **more)


_ANCHORS = "Anchors"
_SEARCH = "Search"

Output = Annotated[
    Path, _option("Data", "Folder for the store, and for what has been tried on the way.")
]
Unseen = Annotated[
    list[str] | None,
    _option(
        "Data",
        "A domain that stays out of the store, to see where it goes; may be given several times.",
    ),
]
Samples = Annotated[
    int,
    _option(_ANCHORS, "Most prompts of a domain; a quarter as many more are held out.", min=1),
]
PerDomain = Annotated[
    int, _option(_ANCHORS, "Anchors of a domain, one per cluster.", "--anchors-per-domain", min=1)
]
Kind = Annotated[
    str,
    _option(
        _ANCHORS,
        "samples: the prompts nearest to the centroids (the paper); centroids: these (its code).",
        "--anchors",
    ),
]
Clusters = Annotated[
    str | None,
    _option(
        _ANCHORS,
        "auto, or a number: find so many domains, whatever the data says. Default: the data's.",
    ),
]
Keep = Annotated[
    float,
    _option(_ANCHORS, "Share of held-out prompts that are near enough to be given a domain."),
]
Settings = Annotated[
    Path | None,
    _option(
        _SEARCH,
        "Folder with DOMAIN/skip.json (and general/skip.json); what is there is not searched.",
    ),
]
