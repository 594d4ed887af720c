"""Make the sample records that ship with the package: the first permitted ones of every domain.

python recipes/sample_data.py DATA src/draftless/assets/samples
"""

from __future__ import annotations

import gzip
import json
import sys
from pathlib import Path

from tiny_data import DOMAINS, read_domain

NUM_RECORDS = 300
MAX_CHARS = 1200  # a record longer than this takes the place of several


def main() -> None:
    data, output = Path(sys.argv[1]), Path(sys.argv[2])
    output.mkdir(parents=True, exist_ok=True)
    for domain in DOMAINS:
        short = (
            record
            for record in read_domain(data, domain, "train")
            if len(record["prompt"]) + len(record["response"]) <= MAX_CHARS
        )
        records = [record for _, record in zip(range(NUM_RECORDS), short, strict=False)]
        lines = "".join(json.dumps(record, ensure_ascii=False) + "\n" for record in records)
        # No time and no name in the header: the same records give the same bytes.
        (output / f"{domain}.jsonl.gz").write_bytes(gzip.compress(lines.encode(), mtime=0))
        print(domain, len(records), sorted({record["source"] for record in records}))


if __name__ == "__main__":
    main()
