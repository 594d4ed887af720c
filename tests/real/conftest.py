"""The pretrained models that `make real-models` made, and prompts for them.

`DRAFTLESS_REAL_MODELS` names another folder than `models/`.
"""

from __future__ import annotations

import gzip
import json
import os
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoTokenizer

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "src" / "draftless" / "assets" / "samples"
MODELS = Path(os.environ.get("DRAFTLESS_REAL_MODELS", ROOT / "models"))
NAMES = ("smollm2-135m", "gemma3-270m", "qwen2.5-coder-0.5b", "qwen2.5-coder-1.5b")
PROMPTS_PER_DOMAIN = 5
MAX_CHARS = 600


@pytest.fixture(scope="module", params=NAMES)
def folder(request: pytest.FixtureRequest) -> Path:
    """Folder of one model; the test is skipped where there is none."""
    folder = MODELS / request.param
    if not folder.is_dir():
        pytest.skip(f"there is no {folder}; make real-models")
    return folder


def sample_texts() -> list[str]:
    """40 prompts, the first of every domain first."""
    domains = []
    for file in sorted(SAMPLES.glob("*.jsonl.gz")):
        with gzip.open(file, "rt", encoding="utf-8") as lines:
            texts = [json.loads(line)["prompt"] for line in lines]
        domains.append([text for text in texts if 0 < len(text) <= MAX_CHARS][:PROMPTS_PER_DOMAIN])
    return [text for of_rank in zip(*domains, strict=True) for text in of_rank]


@pytest.fixture(scope="module")
def prompts(folder: Path) -> list[Any]:
    """40 prompts as the model is meant to get them: as chat messages if it has a template."""
    is_chat = AutoTokenizer.from_pretrained(folder).chat_template is not None
    texts = sample_texts()
    return [[{"role": "user", "content": text}] for text in texts] if is_chat else texts
