"""`draftless.json` of the models that the recipes train."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from draftless.manifest import Manifest, write_manifest
from draftless.prompts import PromptFormat
from draftless.provenance import collect_provenance

BLOCK_LENGTH = 5


def write_tiny_manifest(folder: Path, mode: str, adaptive_ids: tuple[int, ...] = ()) -> None:
    """Say what a model of this training mode can draft with.

    Args:
        folder: with `save_pretrained`'s files.
        mode: of `tiny_sft.py`; a base is `plain`.
        adaptive_ids: of mode `joint`.
    """
    methods: dict[str, dict[str, Any]] = {}
    if mode in ("branch", "inline", "joint"):
        methods["tr-jacobi"] = {
            "mode": "inline" if mode == "inline" else "branch",
            "noise_length": BLOCK_LENGTH,
            "noise_source": "prefix",
            "block_targets": "labels" if mode == "inline" else "model",
        }
    if mode == "joint":
        methods["sdsat"] = {
            "adaptive_ids": list(adaptive_ids),
            "block_length": BLOCK_LENGTH,
            "mode": "joint",
            "block_targets": "model",
        }
    provenance = {"recipe": "recipes/tiny.sh", **collect_provenance()}
    default = list(methods)[-1] if methods else "prompt-lookup"
    write_manifest(folder, Manifest(methods, default, PromptFormat(), provenance))
