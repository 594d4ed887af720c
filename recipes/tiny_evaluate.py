"""Clean loss and accuracy of noise and adaptive tokens on the validation documents of every domain."""

from __future__ import annotations

import argparse
import json
from pathlib import Path

import torch
from tiny_data import read_documents
from transformers import AutoModelForCausalLM, AutoTokenizer

from draftless.manifest import read_manifest
from draftless.provenance import collect_provenance
from draftless.training.adaptive import AdaptiveSettings
from draftless.training.draft_collator import DraftCollator
from draftless.training.evaluate import evaluate_model
from draftless.training.noise_runs import NoiseSettings

MAX_LEN = 1400
BATCH = 4


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--cache", type=Path, required=True)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--documents", type=int, default=60, help="per domain")
    args = parser.parse_args()

    torch.set_num_threads(1)
    tokenizer = AutoTokenizer.from_pretrained(args.model)
    model = AutoModelForCausalLM.from_pretrained(args.model, dtype=torch.bfloat16)
    manifest = read_manifest(args.model)
    method = manifest.methods.get("sdsat", {}) if manifest else {}
    adaptive_ids = tuple(method.get("adaptive_ids", ()))
    collator = DraftCollator.from_tokenizer(
        tokenizer,
        NoiseSettings(mode="branch"),
        adaptive=AdaptiveSettings(adaptive_ids) if adaptive_ids else None,
    )
    collator.adds_places = True
    results = {}
    for domain, documents in read_documents(args.data, "valid", args.model, args.cache).items():
        features = [
            {"input_ids": ids, "labels": labels}
            for ids, labels in sorted(documents[: args.documents], key=lambda pair: len(pair[0]))
            if len(ids) <= MAX_LEN
        ]
        batches = (collator(features[i : i + BATCH]) for i in range(0, len(features), BATCH))
        results[domain] = evaluate_model(model, batches, adaptive_ids)
    names = next(iter(results.values()))
    results["mean"] = {
        name: sum(row.get(name, 0.0) for row in results.values()) / len(results) for name in names
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    report = {"provenance": collect_provenance(), "documents": args.documents, "valid": results}
    args.output.write_text(json.dumps(report, indent=1) + "\n", encoding="utf-8")
    print(json.dumps(results["mean"]))


if __name__ == "__main__":
    main()
