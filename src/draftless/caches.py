"""Where Draftless keeps what it measured and compiled for this machine."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

CACHE_VARIABLE = "DRAFTLESS_CACHE"


def cache_folder() -> Path:
    """`$DRAFTLESS_CACHE`, else `draftless` in the user's cache folder. Need not exist yet."""
    given = os.environ.get(CACHE_VARIABLE)
    if given:
        return Path(given)
    users = os.environ.get("XDG_CACHE_HOME")
    try:
        return (Path(users) if users else Path.home() / ".cache") / "draftless"
    except RuntimeError:  # a container's bare user id has no home
        return Path(tempfile.gettempdir()) / "draftless"
