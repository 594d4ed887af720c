"""Put the trained models where they belong: one into the package, the base beside the recipes."""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

from tiny_manifest import BLOCK_LENGTH, write_tiny_manifest

from draftless.jsonl import read_lines
from draftless.provenance import collect_provenance

ROOT = Path(__file__).parents[1]
PACKAGE_MODEL = ROOT / "src/draftless/assets/tiny"
BASE = ROOT / "recipes/weights"
RESULTS = ROOT / "benchmarks/results"


MODELS = ("base", "control", "msn", "control-2", "joint", "embedded")


def table(reports: dict[str, dict[str, Any]]) -> str:
    """Clean loss per domain of all models, then accuracy of noise and adaptive tokens per depth."""
    domains = list(next(iter(reports.values()))["valid"])
    head = [f"| {' | '.join(reports)} |", "|---" * (len(reports) + 1) + "|"]
    lines = [f"| domain {head[0]}", head[1]]
    for domain in domains:
        cells = [f"{report['valid'][domain]['clean_loss']:.3f}" for report in reports.values()]
        lines.append(f"| {domain} | {' | '.join(cells)} |")
    for title, kind in (("noise token", "denoising"), ("adaptive token", "adaptive")):
        lines += ["", f"| {title} {head[0]}", head[1]]
        for depth in range(1, BLOCK_LENGTH + 1):
            means = [report["valid"]["mean"] for report in reports.values()]
            values = [mean.get(f"{kind}_accuracy_{depth}") for mean in means]
            cells = ["" if value is None else f"{value:.3f}" for value in values]
            lines.append(f"| {depth} | {' | '.join(cells)} |")
    return "\n".join(lines)


def last_row(log: Path) -> dict[str, Any]:
    rows = [line.value for line in read_lines(log)]
    return next(row for row in reversed(rows) if "step" in row)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--work", type=Path, required=True)
    args = parser.parse_args()
    reports = {
        name: json.loads((args.work / f"{name}.json").read_text(encoding="utf-8"))
        for name in MODELS
    }
    provenance = {"recipe": "recipes/tiny.sh", **collect_provenance()}
    write_tiny_manifest(args.work / "base/model", "plain")
    shutil.copytree(args.work / "embedded/model", PACKAGE_MODEL, dirs_exist_ok=True)
    shutil.copytree(args.work / "base/model", BASE, dirs_exist_ok=True)

    card = (Path(__file__).parent / "model_card.md").read_text(encoding="utf-8")
    steps = {name: last_row(args.work / name / "log.jsonl") for name in MODELS[1:-1]}
    filled = card.format(
        table=table(reports),
        commit=provenance["commit"],
        date=provenance["date"],
        num_msn_steps=steps["msn"]["step"] + 1,
        num_msn_tokens=f"{steps['msn']['tokens']:,}",
        num_joint_steps=steps["joint"]["step"] + 1,
        num_joint_tokens=f"{steps['joint']['tokens']:,}",
    )
    (PACKAGE_MODEL / "MODEL_CARD.md").write_text(filled, encoding="utf-8")
    RESULTS.mkdir(parents=True, exist_ok=True)
    result = {"provenance": provenance, "last_step": steps, "models": reports}
    (RESULTS / "tiny-training.json").write_text(json.dumps(result, indent=1) + "\n")


if __name__ == "__main__":
    main()
