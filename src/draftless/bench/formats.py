"""Rows in the formats of others: Spec-Bench's answer files, vLLM's metrics per request.

Everything here is a pure function of rows, so that an old run folder can be written out at any time.
"""

from __future__ import annotations

import hashlib
import json
import re
import uuid
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any

from draftless.bench.rows import Case, Row, Turn
from draftless.jsonl import write_lines

_ID_SPACE = uuid.UUID("6f2ad9c1-5a5e-4c6e-9f0b-d9f3f0a4c7b1")  # arbitrary, ours
_MAX_STEM = 150  # file systems allow 255 bytes; the rest is for the hash and for other people


def write_spec_bench(
    rows: Sequence[Row], folder: Path, sessions: Sequence[Mapping[str, Any]] = ()
) -> list[Path]:
    """One answer file per case, as Spec-Bench's `speed.py` and `equal.py` read them.

    A line is a question; its repeats are its `choices` (those scripts read the first one). A
    question that failed has no line: an empty answer would be divided by zero seconds. Lines are
    sorted by question in every file, because `equal.py` compares line by line.

    Args:
        rows: of one run.
        folder: made if it does not exist; files of the same name are replaced.
        sessions: of the run (`rows.read_sessions`), for the time stamps; without them they are 0.

    Returns:
        The files, sorted by case.
    """
    folder.mkdir(parents=True, exist_ok=True)
    by_case: dict[Case, list[Row]] = {}
    for row in rows:
        by_case.setdefault(row.case, []).append(row)
    names = file_stems(by_case)
    files = []
    for case in sorted(by_case):
        file = folder / f"{names[case]}.jsonl"
        write_lines(file, spec_bench_answers(by_case[case], sessions))
        files.append(file)
    return files


def spec_bench_answers(
    rows: Iterable[Row], sessions: Sequence[Mapping[str, Any]] = ()
) -> list[dict[str, Any]]:
    """The answers of one case, sorted by question.

    `new_tokens` counts ids, EOS included; `wall_time` is the whole call, prefill included;
    `accept_lengths` are committed tokens per step, the target's own token included.
    """
    by_question: dict[tuple[Any, ...], list[Row]] = {}
    for row in rows:
        if row.error is None:
            by_question.setdefault(_question_order(row.question_id), []).append(row)
    answers = []
    for key in sorted(by_question):
        repeats = sorted(by_question[key], key=lambda row: row.repeat)
        first = repeats[0]
        answers.append(
            {
                "question_id": _question_id(first.question_id),
                "category": first.category,
                "answer_id": _answer_id(first),
                "model_id": _model_id(first.case),
                "choices": [_choice(index, row) for index, row in enumerate(repeats)],
                "tstamp": _time_stamp(first, sessions),
            }
        )
    return answers


def file_stems(cases: Iterable[Case]) -> dict[Case, str]:
    """A file name without its ending for every case: readable, safe on every system, unique."""
    stems = {case: _safe_name(_model_id(case)) for case in cases}
    taken = Counter(stem.lower() for stem in stems.values())  # some systems ignore case
    for case, stem in stems.items():
        if taken[stem.lower()] > 1 or len(stem) > _MAX_STEM:
            digest = hashlib.sha256(repr(case).encode()).hexdigest()[:8]
            stems[case] = f"{stem[:_MAX_STEM]}-{digest}"
    return stems


def _model_id(case: Case) -> str:
    return f"{case.model} {case.method} {case.sampling} {case.dtype}"


def _safe_name(text: str) -> str:
    """Letters, digits and `._=-`; it begins with a letter or a digit."""
    return re.sub(r"[^A-Za-z0-9._=]+", "-", text).strip("-._=") or "case"


def _question_order(question_id: str) -> tuple[Any, ...]:
    """Numbers by size, before names."""
    number = _question_id(question_id)
    return (0, number, "") if isinstance(number, int) else (1, 0, number)


def _question_id(question_id: str) -> int | str:
    """The number that Spec-Bench's own questions have, where the id is just that."""
    is_number = re.fullmatch(r"0|[1-9][0-9]*", question_id)
    return int(question_id) if is_number else question_id


def _answer_id(row: Row) -> str:
    name = json.dumps([row.case.model, row.case.method, row.case.sampling, row.case.dtype])
    return uuid.uuid5(_ID_SPACE, f"{name} {row.question_id}").hex


def _choice(index: int, row: Row) -> dict[str, Any]:
    return {
        "index": index,
        "turns": [turn.text for turn in row.turns],
        "decoding_steps": [turn.num_steps for turn in row.turns],
        "new_tokens": [turn.num_tokens for turn in row.turns],
        "wall_time": [turn.seconds for turn in row.turns],
        "accept_lengths": [count for turn in row.turns for count in turn.step_tokens],
    }


def _time_stamp(row: Row, sessions: Sequence[Mapping[str, Any]]) -> float:
    """When the row's session began, in seconds since 1970."""
    if row.session >= len(sessions):
        return 0.0
    return datetime.fromisoformat(str(sessions[row.session]["date"])).timestamp()


def vllm_metrics(turn: Turn) -> dict[str, Any] | None:
    """The turn as vLLM's `metrics.speculative_decoding` with per-step detail.

    As there, a step without drafts is no speculative step. The last token of every step counts as
    the target's own, also where a stop cut the step short, so accepted tokens never exceed drafts.
    `num_spec_tokens` is the largest draft of the turn: trees have no fixed length.

    Returns:
        The object, or None where nothing was drafted or the method does not tell.
    """
    drafted = [count for count in turn.step_drafted if count]
    if not drafted:
        return None
    steps = zip(turn.step_tokens, turn.step_drafted, strict=True)
    accepted = [tokens - 1 for tokens, count in steps if count]
    most = max(drafted)
    counts = Counter(accepted)
    return {
        "mean_acceptance_length": 1 + sum(accepted) / len(accepted),
        "draft_acceptance_rate": sum(accepted) / sum(drafted),
        "acceptance_histogram": [counts[j] for j in range(most + 1)],
        "num_spec_steps": len(accepted),
        "num_accepted_draft_tokens": sum(accepted),
        "num_draft_tokens": sum(drafted),
        "num_spec_tokens": most,
        "per_step_accepted": accepted,
        "per_step_drafted": drafted,
    }


def write_vllm_metrics(rows: Iterable[Row], file: Path) -> Path:
    """One JSON object per request (a turn) that did not fail.

    Args:
        rows: of one run.
        file: JSONL, replaced if it exists; its folder is made.
    """
    file.parent.mkdir(parents=True, exist_ok=True)
    write_lines(file, (_request(row, number) for row in rows for number in range(len(row.turns))))
    return file


def _request(row: Row, number: int) -> dict[str, Any]:
    turn = row.turns[number]
    return {
        "id": f"{_answer_id(row)}-{row.repeat}-{number}",
        "model": _model_id(row.case),
        "question_id": _question_id(row.question_id),
        "usage": {"prompt_tokens": turn.prompt_len, "completion_tokens": turn.num_tokens},
        "metrics": {"speculative_decoding": vllm_metrics(turn)},
    }
