"""The results of recipes/gpu.sh as few small files: python recipes/gpu_collect.py WORK OUT."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path
from typing import Any

from draftless.jsonl import write_json
from draftless.provenance import collect_provenance
from draftless.training.trainer import LOG_NAME

MODELS = ("base", "control", "msn", "adaptive")


def training(work: Path) -> dict[str, Any]:
    """Plan, manifest and log of every model that is done."""
    found: dict[str, Any] = {}
    for name in MODELS:
        files = {
            "plan": work / f"plan-{name}.json",
            "manifest": work / name / "draftless.json",
            "log": work / name / LOG_NAME,
        }
        there = {
            kind: json.loads(file.read_text(encoding="utf-8"))
            for kind, file in files.items()
            if file.exists()
        }
        if there:
            found[name] = there
    return found


def main() -> None:
    work, output = Path(sys.argv[1]), Path(sys.argv[2])
    write_json(output / "training.json", {"provenance": collect_provenance(), **training(work)})
    for folder in work.glob("bench-*"):
        shutil.copytree(folder, output / folder.name, dirs_exist_ok=True)
    for file in work.glob("replay-*.json"):
        shutil.copy(file, output / file.name)


if __name__ == "__main__":
    main()
