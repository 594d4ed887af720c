"""The drafters of a run under their names: all that the checkpoint knows, and variants with options."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from draftless.bench.rows import method_name
from draftless.drafters.knn_router import KNNSSDDrafter
from draftless.drafters.registry import DRAFTERS
from draftless.errors import ConfigError
from draftless.model import Draftless

Variants = Sequence[tuple[str, Mapping[str, Any]]]


def drafted_models(
    plain: Draftless, drafters: Sequence[str], variants: Variants
) -> dict[str, Draftless]:
    """The model with each drafter, and with each variant, by the name of the method.

    Raises:
        ConfigError: an unknown drafter or option, one that the checkpoint was not trained for, or
            two variants of one name.
    """
    models = {name: plain.with_drafter(name) for name in drafters}
    for drafter, options in variants:
        name = method_name(drafter, options)
        if name in models:
            raise ConfigError(
                f"two methods would be called {name!r}, and their rows could not be told apart: "
                "give files and folders in options names of their own"
            )
        models[name] = plain.with_drafter(drafter, options)
    return models


def left_out(plain: Draftless) -> dict[str, str]:
    """Why a drafter of the registry cannot be used with this checkpoint, by name."""
    reasons = {}
    for name in DRAFTERS:
        if name not in plain.drafters:
            try:
                plain.with_drafter(name)
            except ConfigError as error:
                reasons[name] = str(error)
    return reasons


def store_labels(models: Mapping[str, Draftless]) -> dict[str, list[str]]:
    """The domains that each method with anchors can route to."""
    return {
        name: sorted(model.drafter.store.settings)
        for name, model in models.items()
        if isinstance(model.drafter, KNNSSDDrafter)
    }


def file_digests(variants: Variants) -> dict[str, str]:
    """A digest of what the files and folders in the options of each variant hold, by its name."""
    digests = {}
    for drafter, options in variants:
        values = [Path(value) for value in options.values() if isinstance(value, str)]
        files = [file for path in values for file in _files(path)]
        if files:
            data = b"".join(file.read_bytes() for file in files)
            digests[method_name(drafter, options)] = f"{zlib.crc32(data):08x}"
    return digests


def _files(path: Path) -> list[Path]:
    if path.is_dir():
        return sorted(file for file in path.iterdir() if file.is_file())
    return [path] if path.is_file() else []
