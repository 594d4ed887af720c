"""What quality is measured on: records with a prompt and a response, some of them with tests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import Any

from draftless.bench.questions import first_field, is_mbpp_test
from draftless.errors import InputError
from draftless.jsonl import read_lines

# Where HumanEval and MBPP lie in a data folder.
_CODE_FILES = {
    "humaneval": ("HumanEval.jsonl.gz", "eval/HumanEval.jsonl.gz"),
    "mbpp": ("mbpp_release_v1.jsonl", "eval/mbpp_release_v1.jsonl"),
}
_DOMAIN_FILES = ("test.jsonl.gz", "test.jsonl")


@dataclass(frozen=True, slots=True)
class QualityRecord:
    """One thing to do, and what came out when others did it.

    Attributes:
        record_id: unique among the records.
        domain: decides what is measured: `sql`, `translation`, `summarization` and `math` have
            metrics of their own, a record with a test has pass@1.
        prompt: what the model gets.
        response: what the data set answers.
        test, entry_point: for code: text that defines `check(candidate)`, and the function's name.
    """

    record_id: str
    domain: str
    prompt: str
    response: str
    test: str = ""
    entry_point: str = ""

    @property
    def digest(self) -> str:
        """Changes with every part of the record."""
        return hashlib.sha256(json.dumps(astuple(self)).encode()).hexdigest()[:16]


def read_quality_records(
    data: Path, *, with_code: bool = False, limit: int | None = None
) -> list[QualityRecord]:
    """Records of a JSONL file, or the test records of every domain in a folder.

    A line has `prompt` and `response` (also `domain` and `id`), `question` and `answer` (as
    GSM8K's own files), or `prompt`, `canonical_solution`, `test`, `entry_point` and `task_id` (as
    HumanEval's).

    Args:
        data: a file (`.jsonl`, `.jsonl.gz`), or a folder with `DOMAIN/test.jsonl.gz`.
        with_code: of a folder, HumanEval and MBPP's test tasks too.
        limit: the first so many of every domain.

    Raises:
        InputError: nothing to read, a broken line, or an id that occurs twice.
    """
    if data.is_file():
        records = list(_read(data, None))
    else:
        files = _files(data, with_code=with_code)
        records = [record for domain, file in files for record in _read(file, domain)]
    if not records:
        raise InputError(f"{data} has no records; a folder needs DOMAIN/test.jsonl.gz")
    seen: set[str] = set()
    counts: dict[str, int] = {}
    chosen = []
    for record in records:
        if record.record_id in seen:
            raise InputError(f"{data} has two records with the id {record.record_id!r}")
        seen.add(record.record_id)
        counts[record.domain] = counts.get(record.domain, 0) + 1
        if limit is None or counts[record.domain] <= limit:
            chosen.append(record)
    return chosen


def _files(folder: Path, *, with_code: bool) -> list[tuple[str, Path]]:
    if not folder.is_dir():
        raise InputError(f"{folder} does not exist")
    found = []
    for domain in sorted(path for path in folder.iterdir() if path.is_dir()):
        own = [domain / name for name in _DOMAIN_FILES if (domain / name).is_file()]
        found += [(domain.name, file) for file in own[:1]]
    for name, places in _CODE_FILES.items() if with_code else ():
        own = [folder / place for place in places if (folder / place).is_file()]
        found += [(name, file) for file in own[:1]]
    return found


def _read(file: Path, domain: str | None) -> Iterator[QualityRecord]:
    name = file.name.removesuffix(".gz").removesuffix(".jsonl")
    for line in read_lines(file):
        record = line.value
        own = str(domain or record.get("domain") or _guessed_domain(record, name))
        one = _record(record, f"{name}-{line.number}", own, line.place)
        if own != "mbpp" or is_mbpp_test(one.record_id):
            yield one


def _guessed_domain(record: Mapping[str, Any], name: str) -> str:
    if "task_id" in record:
        return str(record["task_id"]).split("/")[0].lower()  # HumanEval/3, MBPP/12
    return "math" if "question" in record and "answer" in record else name


def _record(record: Mapping[str, Any], default_id: str, domain: str, place: str) -> QualityRecord:
    fields = {
        "prompt": first_field(record, "prompt", "question"),
        "response": first_field(record, "response", "answer", "canonical_solution"),
        "test": record.get("test", ""),
        "entry_point": record.get("entry_point", ""),
    }
    for field, value in fields.items():
        if not isinstance(value, str):
            raise InputError(f"{place} has no text {field!r}; it has {sorted(record)}")
    record_id = first_field(record, "id", "task_id", "question_id")
    return QualityRecord(str(record_id or default_id), domain, **fields)
