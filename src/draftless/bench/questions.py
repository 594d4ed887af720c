"""Questions and the suites they come in: shipped, of others, or your own JSONL."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from draftless.errors import InputError
from draftless.jsonl import Line, parse_lines, read_lines

if TYPE_CHECKING:
    from draftless.model import Draftless

TINY = "tiny"
SPEC_BENCH = "spec-bench"
CODE = "code"
RANDOM = "random"
SUITES = (TINY, SPEC_BENCH, CODE, RANDOM)

_NUM_RANDOM = 32
_RANDOM_TOKENS = 64

# MBPP's own test split; its other tasks are prompts and training data.
MBPP_TEST_TASKS = range(11, 511)

# Where the files of a suite may lie under `--data`: our data bundle, or a checkout of the project.
_SPEC_BENCH_FILES = (
    "spec_bench_question.jsonl",
    "eval/spec_bench_question.jsonl",
    "question.jsonl",
    "spec_bench/question.jsonl",
    "data/spec_bench/question.jsonl",
)
_HUMAN_EVAL_FILES = tuple(
    f"{folder}HumanEval.jsonl{end}" for folder in ("", "eval/", "data/") for end in ("", ".gz")
)
_MBPP_FILES = tuple(f"{folder}mbpp_release_v1.jsonl" for folder in ("", "eval/", "data/mbxp/"))
_TEST_FILES = ("test.jsonl.gz", "test.jsonl")


@dataclass(frozen=True, slots=True)
class Question:
    """One item of a suite.

    Attributes:
        question_id: unique in its suite.
        category: what it belongs to in tables (Spec-Bench's thirteen stay thirteen here).
        turns: what the user says, in order; the answers come from the method under test.
        reference: an answer to compare with, if the suite has one.
        mix, position: in a stream of requests (`streams.make_streams`), its mix ratio and the place
            in it from 0; None in a suite.
    """

    question_id: str
    category: str
    turns: tuple[str, ...]
    reference: str | None = None
    mix: float | None = None
    position: int | None = None


def load_suite(suite: str, data: Path | None = None) -> list[Question]:
    """All questions of a suite but `random`, which needs a tokenizer: `random_questions`.

    Args:
        suite: a name of `SUITES`, a JSONL file (also `.gz`), or a folder with `DOMAIN/test.jsonl`
            (also `.gz`).
        data: where `spec-bench` and `code` lie: a folder, or `spec-bench`'s file itself.

    Raises:
        InputError: the suite is unknown, a file is missing, or a line is not a question.
    """
    if suite == TINY:
        source = files("draftless") / "assets" / "bench" / "tiny.jsonl"
        lines = source.read_text(encoding="utf-8").splitlines()
        questions = list(_questions(parse_lines(lines, str(source)), TINY))
    elif suite == SPEC_BENCH:
        is_file = data is not None and data.is_file()
        file = data if is_file and data else _find(suite, data, _SPEC_BENCH_FILES)
        questions = read_questions(file)
    elif suite == CODE:
        questions = read_questions(_find(suite, data, _HUMAN_EVAL_FILES), category="humaneval")
        mbpp = read_questions(_find(suite, data, _MBPP_FILES), category="mbpp")
        questions += [question for question in mbpp if is_mbpp_test(question.question_id)]
    elif Path(suite).is_dir():
        questions = _read_domains(Path(suite))
    elif Path(suite).is_file():
        questions = read_questions(Path(suite))
    else:
        raise InputError(
            f"suite {suite!r} is neither a file, nor a folder, nor one of {', '.join(SUITES)}"
        )
    _check_ids(questions, suite)
    return questions


def random_questions(model: Draftless, seed: int) -> list[Question]:
    """Prompts that nobody can guess: the text of random tokens, the same for a seed.

    Raises:
        InputError: the model has no tokenizer.
    """
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise InputError(f"the suite {RANDOM!r} needs a model with a tokenizer")
    generator = np.random.default_rng(seed)
    special = set(tokenizer.all_special_ids)
    ids = np.array([i for i in range(tokenizer.vocab_size) if i not in special])
    drawn = generator.choice(ids, (_NUM_RANDOM, _RANDOM_TOKENS)).tolist()
    return [
        Question(f"{RANDOM}-{number}", RANDOM, (tokenizer.decode(own),))
        for number, own in enumerate(drawn)
    ]


def read_questions(file: Path, *, category: str | None = None) -> list[Question]:
    """Questions of one JSONL file.

    A line needs `turns` (a list of strings), `prompt` or `question` (a string), or `messages`
    (chat messages; those of the user become the turns). Optional: `question_id`, `id` or `task_id`;
    `category` or `domain`; `reference`, `response`, `answer` or `canonical_solution`.

    Args:
        file: JSONL, also gzipped (`.gz`).
        category: of all questions; None takes the lines' own, else the file's name.

    Raises:
        InputError: it cannot be read, or a line is not a question; file, line and the missing part
            are named.
    """
    name = file.name.removesuffix(".gz").removesuffix(".jsonl")
    return list(_questions(read_lines(file), name, category))


def balanced(questions: Sequence[Question], limit: int | None = None) -> list[Question]:
    """The questions, one of every category in turn, so that a cut run is balanced; `limit` cuts."""
    queues: dict[str, list[Question]] = {}
    for question in questions:
        queues.setdefault(question.category, []).append(question)
    longest = max(map(len, queues.values()), default=0)
    turn = [queue[i] for i in range(longest) for queue in queues.values() if i < len(queue)]
    return turn[:limit]


def _questions(lines: Iterable[Line], name: str, category: str | None = None) -> Iterator[Question]:
    """Questions of lines; those without id or category are called after `name`."""
    for line in lines:
        record = line.value
        own = first_field(record, "category", "domain")
        question_id = first_field(record, "question_id", "id", "task_id")
        yield Question(
            question_id=str(question_id or f"{name}-{line.number}"),
            category=category or str(own or name),
            turns=_turns(record, line.place),
            reference=_reference(record),
        )


def _turns(record: Mapping[str, Any], place: str) -> tuple[str, ...]:
    if "messages" in record:
        turns = _user_turns(record["messages"], place)
    elif "turns" in record:
        turns = record["turns"]
    else:
        turns = [first_field(record, "prompt", "question")]
        if turns == [None]:
            raise InputError(
                f"{place} has no 'turns', 'prompt', 'question' or 'messages'; "
                f"it has {', '.join(sorted(record)) or 'nothing'}"
            )
    if (
        not isinstance(turns, list)
        or not turns
        or not all(isinstance(turn, str) and turn for turn in turns)
    ):
        raise InputError(f"{place}: every turn must be a text that is not empty")
    return tuple(turns)


def _user_turns(messages: Any, place: str) -> list[Any]:
    if not isinstance(messages, list) or not all(isinstance(one, Mapping) for one in messages):
        raise InputError(f"{place}: 'messages' must be a list of objects")
    if any(message.get("role") not in ("user", "assistant") for message in messages):
        raise InputError(
            f"{place}: only messages of 'user' and 'assistant' are understood; "
            "put the text of a system message into the first turn"
        )
    return [message.get("content") for message in messages if message["role"] == "user"]


def _reference(record: Mapping[str, Any]) -> str | None:
    value = first_field(record, "reference", "response", "answer", "canonical_solution")
    if isinstance(value, list):  # Spec-Bench: one per turn
        value = value[0] if value else None
    return value if isinstance(value, str) else None


def first_field(record: Mapping[str, Any], *names: str) -> Any:
    """The first of these fields that is there and not None."""
    return next((record[name] for name in names if record.get(name) is not None), None)


def _find(suite: str, data: Path | None, names: Sequence[str]) -> Path:
    """The first of these files that exists under `data`."""
    if data is None:
        raise InputError(
            f"the suite {suite!r} is not shipped; say where it lies: --data FOLDER with {names[0]}"
        )
    for name in names:
        if (data / name).is_file():
            return data / name
    raise InputError(f"{data} has no file for the suite {suite!r}; looked for {', '.join(names)}")


def _read_domains(folder: Path) -> list[Question]:
    """Test records of every domain of a data bundle."""
    found = [
        file
        for domain in sorted(path for path in folder.iterdir() if path.is_dir())
        for file in [domain / name for name in _TEST_FILES if (domain / name).is_file()][:1]
    ]
    if not found:
        raise InputError(
            f"{folder} has no DOMAIN/test.jsonl.gz; give a data bundle or a JSONL file"
        )
    return [one for file in found for one in read_questions(file, category=file.parent.name)]


def is_mbpp_test(task_id: str) -> bool:
    """Whether a task such as `MBPP/12` belongs to MBPP's own test split."""
    number = task_id.rpartition("/")[2]
    return number.isdigit() and int(number) in MBPP_TEST_TASKS


def _check_ids(questions: Sequence[Question], suite: str) -> None:
    if not questions:
        raise InputError(f"the suite {suite!r} has no questions")
    seen: set[str] = set()
    for question in questions:
        if question.question_id in seen:
            raise InputError(
                f"the suite {suite!r} has two questions with the id {question.question_id!r}; "
                "rows could not be told apart"
            )
        seen.add(question.question_id)
