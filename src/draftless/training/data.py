"""Training records: JSONL files (plain or gzip), folders of them, or Hugging Face data sets."""

from __future__ import annotations

import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from draftless.chat_examples import check_template_fields
from draftless.errors import InputError
from draftless.jsonl import Line, read_lines
from draftless.noise import hash_ids
from draftless.prompts import IGNORED_LABEL, PromptFormat, Record, check_messages

_SUFFIXES = (".jsonl", ".jsonl.gz")

Check = Callable[[Record, str], None]
"""Raises `InputError` for a record that cannot be used; the text says where it stands."""


def check_example(record: Record, place: str) -> None:
    """A record to train on: `prompt` and `response`, or chat `messages`.

    Raises:
        InputError: it has neither, or fields that would change the prompt and cannot be used.
    """
    check_template_fields(record, place)
    if "messages" in record:
        check_messages(record["messages"], f"{place}: 'messages'")
    elif not (isinstance(record.get("prompt"), str) and isinstance(record.get("response"), str)):
        raise InputError(
            f"{place}: a record needs the strings 'prompt' and 'response', or a list 'messages'; "
            f"this one has {sorted(map(str, record))}"
        )


def read_records(
    source: str | Path, split: str = "train", check: Check = check_example
) -> list[Record]:
    """All records of a source, checked.

    Args:
        source: a JSONL file (may be gzip), a folder, or the name of a Hugging Face data set. Of a
            folder's JSONL files those count whose name begins with the split, all if none does;
            subfolders count too. A folder without JSONL files is left to `datasets`.
        split: part of the data.
        check: what every record must have.

    Raises:
        InputError: nothing to read, or a broken record (with file and line).
    """
    path = Path(source)
    if path.is_file():
        lines = list(read_lines(path))
    elif path.is_dir() and (files := split_files(path, split)):
        lines = [line for file in files for line in read_lines(file)]
    elif path.suffix in (".jsonl", ".json", ".gz"):
        raise InputError(f"{source} does not exist")
    else:
        lines = list(_read_hugging_face(str(source), split))
    if not lines:
        raise InputError(f"{source} has no records (split {split!r})")
    for line in lines:
        check(line.value, line.place)
    return [line.value for line in lines]


def encode_records(
    records: Iterable[Record],
    tokenizer: Any,
    prompt_format: PromptFormat,
    max_len: int,
    left_out: Counter[str] | None = None,
) -> list[dict[str, list[int]]]:
    """Documents of `input_ids` and `labels`.

    A record that cannot be taught is left out: the format or the template refuses it, or no response
    is within reach.

    Args:
        records: from `read_records`.
        tokenizer: of `transformers`.
        prompt_format: how prompt and response are joined.
        max_len: longer documents are cut at their end.
        left_out: counts what is left out, by reason; None warns instead.

    Raises:
        InputError: no record can be taught.
    """
    documents = []
    reasons: Counter[str] = Counter()
    unreached = f"no response token within {max_len} tokens; raise --max-length"
    for record in records:
        try:
            ids, labels = prompt_format.encode_example(tokenizer, record)
        except InputError as error:
            reasons[str(error)] += 1
            continue
        ids, labels = ids[:max_len], labels[:max_len]
        if any(label != IGNORED_LABEL for label in labels[1:]):
            documents.append({"input_ids": ids, "labels": labels})
        else:
            reasons[unreached] += 1
    if not documents:
        raise InputError(f"no record can be taught: {describe_reasons(reasons)}")
    if left_out is not None:
        left_out.update(reasons)
    elif reasons:
        warnings.warn(f"records left out: {describe_reasons(reasons)}", stacklevel=2)
    return documents


def describe_reasons(reasons: Counter[str], most: int = 3) -> str:
    """Numbers of records and why they are left out; the `most` frequent reasons."""
    told = [f"{count} ({reason})" for reason, count in reasons.most_common(most)]
    rest = sum(reasons.values()) - sum(count for _, count in reasons.most_common(most))
    return "; ".join([*told, *([f"{rest} for other reasons"] if rest else [])]) or "there is none"


def hold_back(
    documents: Sequence[dict[str, list[int]]], share: float, seed: int
) -> tuple[list[dict[str, list[int]]], list[dict[str, list[int]]]]:
    """Split documents for training and evaluation: the lowest hashes are held back, so stably.

    A share above 0 holds back at least one document.
    """
    hashes = [hash_ids(seed, ids=document["input_ids"]) for document in documents]
    count = math.ceil(share * len(documents))
    limit = sorted(hashes)[count - 1] if count else -1
    pairs = list(zip(documents, hashes, strict=True))
    return [d for d, h in pairs if h > limit], [d for d, h in pairs if h <= limit]


def split_files(folder: Path, split: str) -> list[Path]:
    """JSONL files in a folder and its subfolders whose name begins with the split, all if none does."""
    files = sorted(f for f in folder.rglob("*") if f.name.endswith(_SUFFIXES) and f.is_file())
    return [file for file in files if file.name.startswith(split)] or files


def _read_hugging_face(name: str, split: str) -> Iterator[Line]:
    try:
        import datasets
    except ImportError as error:
        raise InputError(
            f"{name} is no file or folder of JSONL; to read Hugging Face data sets: "
            "pip install 'draftless[train]'"
        ) from error
    try:
        dataset = (
            datasets.load_from_disk(name)
            if (Path(name) / "dataset_info.json").exists()
            or (Path(name) / "dataset_dict.json").exists()
            else datasets.load_dataset(name, split=split)
        )
    except Exception as error:  # the library raises anything, also on no network
        raise InputError(f"cannot load the data set {name!r}: {error}") from error
    if isinstance(dataset, datasets.DatasetDict):
        if split not in dataset:
            raise InputError(f"{name} has no split {split!r}; it has {sorted(dataset)}")
        dataset = dataset[split]
    for number, record in enumerate(dataset, start=1):
        yield Line(name, number, dict(record))
