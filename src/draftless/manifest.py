"""`draftless.json`: what a checkpoint folder was trained for, beside `save_pretrained`'s files."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from draftless.errors import ArtifactError
from draftless.jsonl import write_json
from draftless.prompts import PromptFormat

MANIFEST_NAME = "draftless.json"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Manifest:
    """Contents of `draftless.json`.

    Attributes:
        methods: supported drafters and the parameters they were trained with, such as
            `{"tr-jacobi": {"noise_length": 5, "noise_source": "prefix"}}`.
        default_drafter: the drafter that `draftless generate FOLDER` uses.
        prompt_format: how prompts were joined in training, or None (the tokenizer decides).
        provenance: command, commit, versions, data.
    """

    methods: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    default_drafter: str | None = None
    prompt_format: PromptFormat | None = None
    provenance: Mapping[str, Any] = field(default_factory=dict)


def write_manifest(folder: str | Path, manifest: Manifest) -> None:
    """Write `draftless.json` in one piece: a reader sees the old file or the new one."""
    prompt_format = manifest.prompt_format
    data = {
        "format_version": FORMAT_VERSION,
        "methods": {name: dict(parameters) for name, parameters in manifest.methods.items()},
        "default_drafter": manifest.default_drafter,
        "prompt_format": prompt_format.to_dict() if prompt_format else None,
        "provenance": dict(manifest.provenance),
    }
    write_json(Path(folder) / MANIFEST_NAME, data)


def read_manifest(folder: str | Path) -> Manifest | None:
    """Read `draftless.json`, or None where the folder has none.

    Raises:
        ArtifactError: the file is broken, has unknown keys or a newer format.
    """
    path = Path(folder) / MANIFEST_NAME
    if not path.exists():
        return None
    try:
        data = json.loads(path.read_text(encoding="utf-8-sig"))
        version = data.pop("format_version")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{path} is not a valid manifest: {error!r}") from error
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{path} has format version {version}, this Draftless reads {FORMAT_VERSION}; "
            "update Draftless or train the checkpoint again"
        )
    unknown = set(data) - set(Manifest.__dataclass_fields__)
    if unknown:
        raise ArtifactError(f"{path} has unknown keys {sorted(unknown)}")
    if data.get("prompt_format") is not None:
        data["prompt_format"] = PromptFormat.from_dict(data["prompt_format"])
    return Manifest(**data)
