"""The corpus of the embedded model: domains, records, tokenized documents and their order."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from transformers import AutoTokenizer

from draftless.jsonl import read_lines
from draftless.prompts import IGNORED_LABEL, PromptFormat

DOMAINS = ("math", "sql", "translation", "code", "summarization", "story", "instruct", "prose")
# Output of OpenAI models under unclear terms; TinyStories is the one exception we accept.
EXCLUDED_SOURCES = "gpteacher-"
# Share of every domain: open text needs more than what follows a template.
WEIGHTS = {
    "math": 1.1,
    "sql": 0.7,
    "translation": 1.0,
    "code": 0.7,
    "summarization": 1.1,
    "story": 1.0,
    "instruct": 1.2,
    "prose": 1.2,
}

Document = tuple[list[int], list[int]]  # ids and labels


def read_domain(data: Path, domain: str, split: str) -> Iterator[dict[str, Any]]:
    """Records of one domain and split, without the excluded sources."""
    for line in read_lines(data / domain / f"{split}.jsonl.gz"):
        if not line.value["source"].startswith(EXCLUDED_SOURCES):
            yield line.value


def read_documents(
    data: Path, split: str, tokenizer_path: Path, cache: Path
) -> dict[str, list[Document]]:
    """Documents of every domain with labels on the responses, cached on disk."""
    file = cache / f"documents-{split}.npz"
    if not file.exists():
        tokenizer, prompt_format = AutoTokenizer.from_pretrained(tokenizer_path), PromptFormat()
        arrays = {}
        for domain in DOMAINS:
            encoded = [
                prompt_format.encode_example(tokenizer, record)
                for record in read_domain(data, domain, split)
            ]
            arrays[domain] = np.concatenate([ids for ids, _ in encoded]).astype(np.uint16)
            arrays[f"{domain}_len"] = np.array([len(ids) for ids, _ in encoded])
            arrays[f"{domain}_prompt"] = np.array(
                [labels.count(IGNORED_LABEL) for _, labels in encoded]
            )
        temporary = file.with_suffix(f".{os.getpid()}.npz")
        np.savez(temporary, **arrays)
        temporary.replace(file)
    loaded = np.load(file)
    documents: dict[str, list[Document]] = {}
    for domain in DOMAINS:
        split_ids = np.split(loaded[domain], np.cumsum(loaded[f"{domain}_len"])[:-1])
        documents[domain] = [
            (ids.tolist(), [IGNORED_LABEL] * int(start) + ids.tolist()[int(start) :])
            for ids, start in zip(split_ids, loaded[f"{domain}_prompt"], strict=True)
        ]
    return documents


def document_stream(
    documents: dict[str, list[Document]],
    seed: int,
    prompt_weight: float,
    weights: Mapping[str, float] = WEIGHTS,
) -> Iterator[tuple[Document, int]]:
    """Endless documents and their epoch, the domains kept to their share of tokens.

    Args:
        documents: of every domain; shuffled anew in every epoch of the domain.
        seed: of the order.
        prompt_weight: how much of a token a prompt token counts in its domain's share.
        weights: share of every domain.
    """
    generator = np.random.default_rng(seed)
    queues: dict[str, list[int]] = {domain: [] for domain in documents}
    epochs = dict.fromkeys(documents, -1)
    emitted = dict.fromkeys(documents, 0.0)
    while True:
        domain = min(emitted, key=lambda name: emitted[name])
        if not queues[domain]:
            queues[domain] = list(generator.permutation(len(documents[domain])))
            epochs[domain] += 1
        ids, labels = documents[domain][queues[domain].pop()]
        num_targets = sum(label != IGNORED_LABEL for label in labels)
        weight = num_targets + prompt_weight * (len(ids) - num_targets)
        emitted[domain] += weight / weights[domain]
        yield (ids, labels), epochs[domain]
