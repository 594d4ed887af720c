"""Files for others: Spec-Bench's scripts, rewritten here from their description, accept ours."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftless.bench.formats import (
    file_stems,
    spec_bench_answers,
    vllm_metrics,
    write_spec_bench,
    write_vllm_metrics,
)
from draftless.bench.rows import Case, Row, Turn
from draftless.bench.summary import summarise

PLAIN = Case("m", "none", "greedy", "float32")
DRAFTED = Case("m", "tr-jacobi (budget=8)", "T=1 top-p=0.9", "float32")


def turn(text: str, steps: list[int], seconds: float, drafted: list[int] | None = None) -> Turn:
    ids = list(range(sum(steps)))
    return Turn(5, ids, text, "stop", seconds, step_tokens=steps, step_drafted=drafted or [])


def row(case: Case, question: str, *turns: Turn, category: str = "qa", **more: Any) -> Row:
    return Row(case, category, question, turns=list(turns), **more)


# Spec-Bench's two scripts, from the description in our research notes.


def their_speed(file: Path, base: Path, tokenizer: Any) -> tuple[float, float, float, list[int]]:
    """Mean over questions of tokens by seconds; the baseline's text is tokenised again."""
    lengths: list[int] = []
    speeds, base_speeds = [], []
    for answer in read(file):
        choice = answer["choices"][0]
        lengths += choice["accept_lengths"]
        speeds.append(sum(choice["new_tokens"]) / sum(choice["wall_time"]))
    for answer in read(base):
        choice = answer["choices"][0]
        tokens = sum(len(tokenizer(text).input_ids) - 1 for text in choice["turns"])
        base_speeds.append(tokens / sum(choice["wall_time"]))
    mean, base_mean = sum(speeds) / len(speeds), sum(base_speeds) / len(base_speeds)
    return mean, base_mean, mean / base_mean, lengths


def their_equal(file: Path, other: Path) -> bool:
    """Texts of the first choice, line by line, as far as both files go."""
    texts = [[str(a["choices"][0]["turns"]) for a in read(one)] for one in (file, other)]
    return all(a == b for a, b in zip(*texts, strict=False))


class Words:
    """A tokenizer that puts a BOS before the words, as Vicuna's does."""

    def __call__(self, text: str) -> Any:
        return type("Encoding", (), {"input_ids": [0, *text.split()]})


def read(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text(encoding="utf-8").splitlines()]


def two_cases() -> list[Row]:
    """Two questions, one of two turns; text of the plain loop has one word per token."""
    return [
        row(DRAFTED, "82", turn("a b c d", [3, 1], 0.5)),
        row(PLAIN, "82", turn("a b c d", [1] * 4, 1.0)),
        row(PLAIN, "9", turn("e f", [1, 1], 0.5), turn("g", [1], 0.25)),
        row(DRAFTED, "9", turn("e f", [2], 0.25), turn("g", [1], 0.25)),
    ]


def test_a_line_has_the_fields_of_spec_bench(tmp_path: Path) -> None:
    files = write_spec_bench(two_cases(), tmp_path / "new" / "folder")
    assert [file.name for file in files] == [
        "m-none-greedy-float32.jsonl",
        "m-tr-jacobi-budget=8-T=1-top-p=0.9-float32.jsonl",
    ]
    first, second = read(files[1])
    assert (first["question_id"], second["question_id"]) == (9, 82), "ints, sorted as numbers"
    assert set(first) == {
        "question_id", "category", "answer_id", "model_id", "choices", "tstamp",
    }  # fmt: skip
    assert first["choices"] == [
        {
            "index": 0,
            "turns": ["e f", "g"],
            "decoding_steps": [1, 1],
            "new_tokens": [2, 1],
            "wall_time": [0.25, 0.25],
            "accept_lengths": [2, 1],
        }
    ]


def test_their_speed_accepts_our_files_and_gives_our_numbers(tmp_path: Path) -> None:
    rows = two_cases()
    base, file = write_spec_bench(rows, tmp_path)
    speed, base_speed, speed_up, lengths = their_speed(file, base, Words())
    per_question = {
        case: [r.num_tokens / r.seconds for r in rows if r.case == case]
        for case in (PLAIN, DRAFTED)
    }
    means = {case: sum(v) / len(v) for case, v in per_question.items()}
    assert speed == pytest.approx(means[DRAFTED]) == pytest.approx((8 + 6) / 2)
    assert base_speed == pytest.approx(means[PLAIN]), "one word per token: counted the same way"
    assert speed_up == pytest.approx(means[DRAFTED] / means[PLAIN])
    assert sorted(lengths) == [1, 1, 2, 3]


def test_the_summary_agrees_with_their_speed_up_where_tokens_are_counted_alike(
    tmp_path: Path,
) -> None:
    """`question_mean_speed_up` is their method on our counts: one id per word, no EOS."""
    plain = Case("m", "none", "greedy", "float32")
    drafted = Case("m", "prompt-lookup", "greedy", "float32")
    texts = ["a b c d e f", "g h i", "k l m n o p q r"]
    rows = []
    for number, text in enumerate(texts):
        size = len(text.split())
        rows.append(row(plain, str(number), turn(text, [1] * size, 0.3 * size + 0.1 * number)))
        steps = [2] * (size // 2) + [1] * (size % 2)
        rows.append(row(drafted, str(number), turn(text, steps, 0.2 * size)))
    base, file = write_spec_bench(rows, tmp_path)
    *_, speed_up, lengths = their_speed(file, base, Words())
    (ours,) = [case for case in summarise(rows).cases if case.case == drafted]
    assert ours.question_mean_speed_up == pytest.approx(speed_up)
    assert ours.acceptance_length == pytest.approx(sum(lengths) / len(lengths))


def test_their_baseline_differs_from_ours_where_the_eos_counts(tmp_path: Path) -> None:
    """They tokenise the text again, so the EOS that we counted is lost: the known asymmetry."""
    rows = [
        row(PLAIN, "1", turn("a b c", [1] * 4, 1.0)),
        row(DRAFTED, "1", turn("a b c", [4], 1.0)),
    ]
    base, file = write_spec_bench(rows, tmp_path)
    speed, base_speed, _, _ = their_speed(file, base, Words())
    assert (speed, base_speed) == (4.0, 3.0)


def test_their_equal_sees_a_different_text(tmp_path: Path) -> None:
    rows = two_cases()
    base, file = write_spec_bench(rows, tmp_path / "a")
    assert their_equal(file, base)
    rows[0].turns[0].text = "a b x d"
    base, file = write_spec_bench(rows, tmp_path / "b")
    assert not their_equal(file, base)


def test_a_failed_question_has_no_line_and_is_not_taken_for_equal(tmp_path: Path) -> None:
    rows = two_cases()
    rows[3].turns, rows[3].error = [], "out of memory"
    base, file = write_spec_bench(rows, tmp_path)
    assert [a["question_id"] for a in read(file)] == [82]
    assert not their_equal(file, base)


def test_repeats_are_choices_in_order() -> None:
    rows = [row(PLAIN, "1", turn(text, [1], 1.0), repeat=n) for n, text in ((1, "b"), (0, "a"))]
    (answer,) = spec_bench_answers(rows)
    assert [(c["index"], c["turns"]) for c in answer["choices"]] == [(0, ["a"]), (1, ["b"])]


def test_answer_ids_are_the_same_each_time_and_differ_by_question_and_case() -> None:
    ids = [a["answer_id"] for rows in _by_case(two_cases()) for a in spec_bench_answers(rows)]
    again = [a["answer_id"] for rows in _by_case(two_cases()) for a in spec_bench_answers(rows)]
    assert ids == again
    assert len(set(ids)) == 4


def _by_case(rows: list[Row]) -> list[list[Row]]:
    return [[r for r in rows if r.case == case] for case in (PLAIN, DRAFTED)]


@pytest.mark.parametrize(
    ("question", "written"), [("7", 7), ("07", "07"), ("٣", "٣"), ("sql-1", "sql-1"), ("-1", "-1")]
)
def test_only_plain_numbers_become_ints(question: str, written: int | str) -> None:
    (answer,) = spec_bench_answers([row(PLAIN, question, turn("a", [1], 1.0))])
    assert answer["question_id"] == written


def test_time_stamps_come_from_the_sessions() -> None:
    rows = [row(PLAIN, "1", turn("a", [1], 1.0), session=1)]
    dates = [{"date": "2026-01-01T00:00:00+00:00"}, {"date": "1970-01-01T00:01:00+00:00"}]
    assert spec_bench_answers(rows, dates)[0]["tstamp"] == 60.0
    assert spec_bench_answers(rows)[0]["tstamp"] == 0.0


def test_file_names_are_safe_and_never_shared() -> None:
    cases = [
        Case("m", "a b", "greedy", "f"),
        Case("m", "a/b", "greedy", "f"),
        Case("M", "a-b", "greedy", "f"),
        Case("cAse", "x", "greedy", "f"),
        Case("Case", "x", "greedy", "f"),
        Case("../../etc", "x", "greedy", "f"),
        Case("äö", "x" * 400, "greedy", "f"),
        Case("äö", "x" * 401, "greedy", "f"),
    ]
    stems = file_stems(cases)
    assert len({stem.lower() for stem in stems.values()}) == len(cases)
    for stem in stems.values():
        assert re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9._=-]*", stem)
        assert len(stem) < 200
    assert stems == file_stems(reversed(cases)), "a name does not depend on the order"


# vLLM's metrics per request


@st.composite
def turns(draw: st.DrawFn) -> Turn:
    """Turns as our engine leaves them: a step commits its accepted drafts and one token more."""
    drafted = draw(st.lists(st.integers(0, 24), max_size=20))
    accepted = [draw(st.integers(0, count)) for count in drafted]
    tokens = [count + 1 for count in accepted]
    if tokens:  # a stop inside the last block drops what came after it
        tokens[-1] = draw(st.integers(1, tokens[-1]))
    return turn("", tokens, 1.0, drafted)


@given(turns())
def test_metrics_keep_the_invariants_of_vllm(one: Turn) -> None:
    metrics = vllm_metrics(one)
    if not any(one.step_drafted):
        assert metrics is None
        return
    assert metrics is not None
    histogram, steps = metrics["acceptance_histogram"], metrics["num_spec_steps"]
    accepted, drafted = metrics["num_accepted_draft_tokens"], metrics["num_draft_tokens"]
    assert len(histogram) == metrics["num_spec_tokens"] + 1
    assert sum(histogram) == steps == len(metrics["per_step_accepted"])
    assert sum(j * count for j, count in enumerate(histogram)) == accepted
    assert sum(metrics["per_step_accepted"]) == accepted <= drafted
    assert sum(metrics["per_step_drafted"]) == drafted
    pairs = zip(metrics["per_step_accepted"], metrics["per_step_drafted"], strict=True)
    assert all(0 <= a <= d <= metrics["num_spec_tokens"] for a, d in pairs)
    assert metrics["mean_acceptance_length"] == pytest.approx(1 + accepted / steps)
    assert metrics["draft_acceptance_rate"] == pytest.approx(accepted / drafted)
    without = sum(1 for count in one.step_drafted if not count)
    assert accepted + steps + without == one.num_tokens, "every token is accounted for"


def test_metrics_by_hand() -> None:
    """Four steps: 2 of 3 accepted, nothing drafted, 0 of 1, and a stop after the first of 3."""
    metrics = vllm_metrics(turn("", [3, 1, 1, 2], 1.0, [3, 0, 1, 3]))
    assert metrics == {
        "mean_acceptance_length": 2.0,
        "draft_acceptance_rate": 3 / 7,
        "acceptance_histogram": [1, 1, 1, 0],
        "num_spec_steps": 3,
        "num_accepted_draft_tokens": 3,
        "num_draft_tokens": 7,
        "num_spec_tokens": 3,
        "per_step_accepted": [2, 0, 1],
        "per_step_drafted": [3, 1, 3],
    }


def test_one_object_per_turn_and_null_where_nothing_is_told(tmp_path: Path) -> None:
    rows = [
        row(DRAFTED, "1", turn("a", [2], 1.0, [3]), turn("b", [1, 1], 1.0, [1, 1])),
        row(PLAIN, "1", turn("a", [1, 1], 1.0)),
        row(PLAIN, "2", error="broken"),
    ]
    requests = read(write_vllm_metrics(rows, tmp_path / "deep" / "metrics.jsonl"))
    assert [r["usage"]["completion_tokens"] for r in requests] == [2, 2, 2]
    told = [r["metrics"]["speculative_decoding"] for r in requests]
    assert told[0]["num_accepted_draft_tokens"] == 1
    assert told[2] is None
    assert len({r["id"] for r in requests}) == 3
