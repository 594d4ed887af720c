"""`draftless.json` of the models that the recipes train.

python recipes/tiny_manifest.py --model FOLDER --recipe recipes/deep.sh    (of a base)
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from draftless.manifest import Manifest, write_manifest
from draftless.prompts import PromptFormat
from draftless.provenance import collect_provenance

BLOCK_LENGTH = 5


def write_tiny_manifest(
    folder: Path,
    mode: str,
    adaptive_ids: tuple[int, ...] = (),
    recipe: str = "recipes/tiny.sh",
) -> None:
    """Say what a model of this training mode can draft with.

    Args:
        folder: with `save_pretrained`'s files.
        mode: of `tiny_sft.py`; a base is `plain`.
        adaptive_ids: of mode `joint`.
        recipe: that trained it.
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
    provenance = {"recipe": recipe, **collect_provenance()}
    default = list(methods)[-1] if methods else "prompt-lookup"
    write_manifest(folder, Manifest(methods, default, PromptFormat(), provenance))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--recipe", required=True)
    args = parser.parse_args()
    write_tiny_manifest(args.model, "plain", recipe=args.recipe)


if __name__ == "__main__":
    main()
