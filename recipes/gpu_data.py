"""Two files for recipes/gpu.sh: whole texts for the base, prompts and responses for the rest.

python recipes/gpu_data.py DATA OUTPUT [--limit N]
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterable, Mapping
from pathlib import Path

from tiny_data import EXCLUDED_SOURCES

from draftless.noise import hash_ids
from draftless.training.data import read_records


def write_records(path: Path, records: Iterable[Mapping[str, str]]) -> None:
    with gzip.open(path, "wt", encoding="utf-8", compresslevel=1) as lines:
        for record in records:
            lines.write(json.dumps(record, ensure_ascii=False) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("output", type=Path)
    parser.add_argument("--limit", type=int, help="most records, of all domains alike")
    args = parser.parse_args()
    records = [
        {"prompt": record["prompt"], "response": record["response"]}
        for record in read_records(args.data)
        if "prompt" in record and not record.get("source", "").startswith(EXCLUDED_SOURCES)
    ]
    # In an order of its own, so that the first ones are a sample of all files.
    order = sorted(range(len(records)), key=lambda number: hash_ids(0, number))
    records = [records[number] for number in order[: args.limit]]
    args.output.mkdir(parents=True, exist_ok=True)
    write_records(args.output / "sft.jsonl.gz", records)
    whole = ({"prompt": "", "response": f"{r['prompt']}\n{r['response']}"} for r in records)
    write_records(args.output / "base.jsonl.gz", whole)
    write_records(args.output / "probe.jsonl.gz", records[:400])
    print(f"{len(records)} records")


if __name__ == "__main__":
    main()
