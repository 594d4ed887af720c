"""Suites: what is read, what is refused, and in which order questions come."""

from __future__ import annotations

import gzip
import json
from collections import Counter
from importlib.resources import files
from pathlib import Path
from typing import Any

import pytest

from draftless import Draftless
from draftless.bench.questions import (
    Question,
    balanced,
    load_suite,
    random_questions,
    read_questions,
)
from draftless.errors import InputError
from support.bench import bench_model


def write(file: Path, *records: Any) -> Path:
    """Records as JSONL; a string is a line as it is."""
    file.parent.mkdir(parents=True, exist_ok=True)
    lines = [one if isinstance(one, str) else json.dumps(one) for one in records]
    data = ("\n".join(lines) + "\n").encode()
    file.write_bytes(gzip.compress(data) if file.suffix == ".gz" else data)
    return file


def test_the_shipped_suite_is_balanced_and_attributed() -> None:
    questions = load_suite("tiny")
    counts = Counter(question.category for question in questions)
    assert len(counts) == 9
    assert set(counts.values()) == {12}
    assert all(len(question.turns) == 1 and question.reference for question in questions)
    assert max(len(question.turns[0]) for question in questions) <= 1500
    folder = files("draftless") / "assets" / "bench"
    assert len((folder / "tiny.jsonl").read_bytes()) < 200_000
    sources = (folder / "SOURCES.md").read_text()
    assert all(f"| {category} |" in sources for category in counts)
    assert not [q.question_id for q in questions if "gpteacher" in q.question_id]


@pytest.mark.parametrize("place", ["spec_bench_question.jsonl", "data/spec_bench/question.jsonl"])
def test_spec_bench_keeps_its_categories_and_turns(tmp_path: Path, place: str) -> None:
    rows = [
        {"question_id": 81, "category": "writing", "turns": ["one", "two"]},
        {"question_id": 200, "category": "rag", "turns": ["ask"], "reference": ["this", "that"]},
    ]
    file = write(tmp_path / place, *rows)
    expected = [
        Question("81", "writing", ("one", "two")),
        Question("200", "rag", ("ask",), "this"),
    ]
    assert load_suite("spec-bench", tmp_path) == expected
    assert load_suite("spec-bench", file) == expected


def test_code_is_human_eval_and_the_test_tasks_of_mbpp(tmp_path: Path) -> None:
    task = {"task_id": "HumanEval/0", "prompt": "def f():\n", "canonical_solution": "    pass\n"}
    write(tmp_path / "eval" / "HumanEval.jsonl.gz", task)
    tasks = [{"task_id": f"MBPP/{n}", "prompt": "\n\ndef g():"} for n in (10, 11, 510, 511)]
    write(tmp_path / "eval" / "mbpp_release_v1.jsonl", *tasks)
    questions = load_suite("code", tmp_path)
    assert [q.question_id for q in questions] == ["HumanEval/0", "MBPP/11", "MBPP/510"]
    assert [q.category for q in questions] == ["humaneval", "mbpp", "mbpp"]
    assert questions[0].reference == "    pass\n"
    assert questions[1].turns == ("\n\ndef g():",)  # blank lines are part of the prompt


@pytest.mark.parametrize("name", ["mine.jsonl", "mine.jsonl.gz"])
def test_any_file_of_prompts_turns_or_messages(tmp_path: Path, name: str) -> None:
    messages = [
        {"role": "user", "content": "hi"},
        {"role": "assistant", "content": "not asked for"},
        {"role": "user", "content": "more"},
    ]
    file = write(
        tmp_path / name,
        {"prompt": "a", "response": "b", "id": "x", "domain": "sql"},
        "",
        {"turns": ["c", "d"]},
        {"messages": messages, "category": "chat"},
        {"question": "e", "answer": "f"},
    )
    assert load_suite(str(file)) == [
        Question("x", "sql", ("a",), "b"),
        Question("mine-3", "mine", ("c", "d")),
        Question("mine-4", "chat", ("hi", "more")),
        Question("mine-5", "mine", ("e",), "f"),
    ]


def test_a_folder_of_domains(tmp_path: Path) -> None:
    write(tmp_path / "sql" / "test.jsonl.gz", {"id": "s", "prompt": "p", "domain": "other"})
    write(tmp_path / "math" / "test.jsonl", {"id": "m", "prompt": "p"})
    (tmp_path / "licenses").mkdir()
    found = [(q.category, q.question_id) for q in load_suite(str(tmp_path))]
    assert found == [("math", "m"), ("sql", "s")]


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "not JSON"),
        ("[1]", "list"),
        ({"answer": "x"}, "it has answer"),
        ({"turns": []}, "not empty"),
        ({"turns": "text"}, "every turn"),
        ({"turns": ["a", 3]}, "every turn"),
        ({"prompt": ""}, "every turn"),
        ({"messages": "hi"}, "list of objects"),
        ({"messages": [{"role": "system", "content": "x"}]}, "system"),
        ({"messages": [{"role": "assistant", "content": "x"}]}, "every turn"),
    ],
)
def test_a_malformed_line_is_named(tmp_path: Path, line: Any, message: str) -> None:
    file = write(tmp_path / "q.jsonl", {"prompt": "good"}, line)
    with pytest.raises(InputError, match=rf"q\.jsonl, line 2.*{message}"):
        read_questions(file)


def test_what_is_not_there_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"medium.*spec-bench"):
        load_suite("medium")
    with pytest.raises(InputError, match="--data"):
        load_suite("code")
    with pytest.raises(InputError, match=r"HumanEval\.jsonl"):
        load_suite("code", tmp_path)
    with pytest.raises(InputError, match=r"test\.jsonl"):
        load_suite(str(tmp_path))
    cut = write(tmp_path / "cut.jsonl.gz", {"prompt": "x" * 1000})
    cut.write_bytes(cut.read_bytes()[:-10])
    with pytest.raises(InputError, match=r"cut\.jsonl"):
        load_suite(str(cut))
    with pytest.raises(InputError, match="no questions"):
        load_suite(str(write(tmp_path / "empty.jsonl")))


def test_two_questions_with_one_id_are_refused(tmp_path: Path) -> None:
    file = write(tmp_path / "q.jsonl", {"id": 1, "prompt": "a"}, {"id": "1", "prompt": "b"})
    with pytest.raises(InputError, match="'1'"):
        load_suite(str(file))


def test_categories_take_turns_and_a_cut_is_balanced() -> None:
    questions = [Question(name, name[0], ("p",)) for name in ("a1", "a2", "a3", "b1", "b2", "c1")]
    order = [question.question_id for question in balanced(questions)]
    assert order == ["a1", "b1", "c1", "a2", "b2", "a3"]
    assert [question.question_id for question in balanced(questions, 4)] == order[:4]


def test_random_text_follows_the_seed_and_nothing_else() -> None:
    model = bench_model()
    questions = random_questions(model, 3)
    assert questions == random_questions(model, 3) != random_questions(model, 4)
    texts = [text for question in questions for text in question.turns]
    assert len(set(texts)) == len(texts) == 32
    assert {question.category for question in questions} == {"random"}
    assert len({question.question_id for question in questions}) == 32
    tokenizer = model.tokenizer
    assert tokenizer is not None
    special = tokenizer.all_special_tokens
    assert special and not any(one in text for one in special for text in texts)
    ids = tokenizer(" ".join(texts)).input_ids
    assert len(set(ids)) > 100  # of 297: all over the vocabulary
    with pytest.raises(InputError, match="tokenizer"):
        random_questions(Draftless(model.target, None, model.drafter), 3)
