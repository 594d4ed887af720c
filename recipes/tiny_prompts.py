"""Prompts of every domain, for the model to answer itself (`draftless data regenerate`)."""

from __future__ import annotations

import argparse
import json
import random
from pathlib import Path

from tiny_data import DOMAINS, read_domain

MAX_CHARS = 2500  # about 700 tokens


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--records", type=int, default=768, help="per domain")
    args = parser.parse_args()
    args.output.parent.mkdir(parents=True, exist_ok=True)
    with args.output.open("w", encoding="utf-8") as lines:
        for domain in DOMAINS:
            records = [
                record
                for record in read_domain(args.data, domain, "train")
                if len(record["prompt"]) <= MAX_CHARS
            ]
            random.Random(7).shuffle(records)
            for record in records[: args.records]:
                chosen = {key: record[key] for key in ("prompt", "response", "source")}
                chosen["domain"] = domain
                lines.write(json.dumps(chosen) + "\n")


if __name__ == "__main__":
    main()
