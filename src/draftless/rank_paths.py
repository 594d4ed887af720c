"""A static tree: which ranks at which depths, as rank paths in the order in which a budget is spent.

`(0, 2)` is the third-best guess at depth 2 below the best one at depth 1. `draftless calibrate tree`
finds such templates; drafters fill them with what they guess.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from draftless.errors import ArtifactError, ConfigError

RankPath = tuple[int, ...]

TEMPLATE_FILE_VERSION = 1


def read_template(given: Any) -> tuple[RankPath, ...]:
    """A template from lists of ranks, as JSON has them, or from a file of `draftless calibrate tree`.

    Raises:
        ConfigError: it is no list of rank paths, a path is there twice, or one stands before the
            path that it continues.
        ArtifactError: the file is missing or is no such file.
    """
    if isinstance(given, str | Path):
        return _read_file(Path(given))
    is_list = isinstance(given, Sequence) and all(isinstance(path, Sequence) for path in given)
    if not is_list or not given:
        raise ConfigError(f"template {given!r} is no list of rank paths such as [[0], [0, 0], [1]]")
    paths: dict[RankPath, None] = {(): None}
    for ranks in given:
        path = tuple(ranks)
        if not path or not all(type(rank) is int and rank >= 0 for rank in path):
            raise ConfigError(f"rank path {list(path)} of a template is no list of ranks from 0")
        if path in paths or path[:-1] not in paths:
            raise ConfigError(
                f"rank path {list(path)} of a template is there twice, or stands before the path "
                "that it continues"
            )
        paths[path] = None
    return tuple(paths)[1:]


def _read_file(file: Path) -> tuple[RankPath, ...]:
    try:
        data = json.loads(file.read_text(encoding="utf-8-sig"))
        version, template = data["format_version"], data["template"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{file} is no file of draftless calibrate tree: {error!r}") from error
    if version != TEMPLATE_FILE_VERSION:
        raise ArtifactError(
            f"{file} has format version {version}, this Draftless reads {TEMPLATE_FILE_VERSION}; "
            "calibrate again: draftless calibrate tree"
        )
    try:
        return read_template(template)
    except ConfigError as error:
        raise ArtifactError(f"{file}: {error}") from error
