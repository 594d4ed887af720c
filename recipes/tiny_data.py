"""The corpus of the embedded model: domains, records and a tokenizer trained on them."""

from __future__ import annotations

import gzip
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

DOMAINS = ("math", "sql", "translation", "code", "summarization", "story", "instruct", "prose")
# Output of OpenAI models under unclear terms; TinyStories is the one exception we accept.
EXCLUDED_SOURCES = "gpteacher-"


def read_domain(data: Path, domain: str, split: str) -> Iterator[dict[str, Any]]:
    """Records of one domain and split, without the excluded sources."""
    with gzip.open(data / domain / f"{split}.jsonl.gz", "rt", encoding="utf-8") as lines:
        for line in lines:
            record = json.loads(line)
            if not record["source"].startswith(EXCLUDED_SOURCES):
                yield record
