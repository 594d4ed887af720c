"""Make the `tiny` suite of the benchmark: the first permitted test records of every domain.

python recipes/bench_questions.py DATA src/draftless/assets/bench/tiny.jsonl
"""

from __future__ import annotations

import json
import sys
from itertools import islice
from pathlib import Path

from tiny_data import DOMAINS, read_domain

NUM_QUESTIONS = 12
MAX_CHARS = 1500
NOT_SHIPPED = "qmsum"  # transcripts: far longer than the other records


def main() -> None:
    data, output = Path(sys.argv[1]), Path(sys.argv[2])
    lines = []
    for domain in (*DOMAINS, "dialogue"):  # the embedded model never saw a dialogue in training
        short = (
            record
            for record in read_domain(data, domain, "test")
            if len(record["prompt"]) <= MAX_CHARS and record["source"] != NOT_SHIPPED
        )
        for record in islice(short, NUM_QUESTIONS):
            question = {
                "question_id": record["id"],
                "category": domain,
                "turns": [record["prompt"]],
                "reference": record["response"],
            }
            lines.append(json.dumps(question, ensure_ascii=False) + "\n")
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text("".join(lines), encoding="utf-8")
    print(len(lines), "questions,", output.stat().st_size, "bytes")


if __name__ == "__main__":
    main()
