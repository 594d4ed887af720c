"""Put the trained models where they belong: one into the package, the base beside the recipes."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from draftless.manifest import Manifest, write_manifest
from draftless.prompts import PromptFormat
from draftless.provenance import collect_provenance

ROOT = Path(__file__).parents[1]
PACKAGE_MODEL = ROOT / "src/draftless/assets/tiny"
BASE = ROOT / "recipes/weights"
RESULTS = ROOT / "benchmarks/results"


def table(reports: dict[str, dict[str, Any]]) -> str:
    """Clean loss per domain of all models, then denoising accuracy per depth."""
    names = list(reports)
    domains = list(next(iter(reports.values()))["valid"])
    lines = [f"| domain | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for domain in domains:
        cells = [f"{reports[name]['valid'][domain]['clean_loss']:.3f}" for name in names]
        lines.append(f"| {domain} | {' | '.join(cells)} |")
    lines += ["", f"| noise token | {' | '.join(names)} |", "|---" * (len(names) + 1) + "|"]
    for depth in range(1, 6):
        key = f"denoising_accuracy_{depth}"
        cells = [f"{reports[name]['valid']['mean'][key]:.3f}" for name in names]
        lines.append(f"| {depth} | {' | '.join(cells)} |")
    return "\n".join(lines)


def last_row(log: Path) -> dict[str, Any]:
    rows = [json.loads(line) for line in log.read_text(encoding="utf-8").splitlines()]
    return next(row for row in reversed(rows) if "step" in row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    reports = {
        name: json.loads((args.work / f"{name}.json").read_text(encoding="utf-8"))
        for name in ("base", "control", "msn", "embedded")
    }
    provenance = {"recipe": "recipes/tiny.sh", **collect_provenance()}
    noise = {
        "mode": "branch",
        "noise_length": 5,
        "noise_source": "prefix",
        "noise_targets": "model",
    }
    methods = {"tr-jacobi": noise}
    manifest = Manifest(methods, "tr-jacobi", PromptFormat(), provenance)
    for name in ("msn", "embedded"):
        write_manifest(args.work / name / "model", manifest)
    write_manifest(
        args.work / "control/model", Manifest({}, "prompt-lookup", PromptFormat(), provenance)
    )
    write_manifest(
        args.work / "base/model", Manifest({}, "prompt-lookup", PromptFormat(), provenance)
    )
    shutil.copytree(args.work / "embedded/model", PACKAGE_MODEL, dirs_exist_ok=True)
    shutil.copytree(args.work / "base/model", BASE, dirs_exist_ok=True)

    card = (Path(__file__).parent / "model_card.md").read_text(encoding="utf-8")
    steps = {name: last_row(args.work / name / "log.jsonl") for name in ("msn", "control")}
    filled = card.format(
        table=table(reports),
        commit=provenance["commit"],
        date=provenance["date"],
        num_steps=steps["msn"]["step"] + 1,
        num_tokens=f"{steps['msn']['tokens']:,}",
    )
    (PACKAGE_MODEL / "MODEL_CARD.md").write_text(filled, encoding="utf-8")
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {"provenance": provenance, "last_step": steps, "models": reports}
    (RESULTS / "tiny-training.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
