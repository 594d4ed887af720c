"""The run: order, seeds, conversations, resuming, and what goes wrong on the way."""

from __future__ import annotations

import errno
import json
import time
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from draftless.bench import rows as files
from draftless.bench import runner
from draftless.bench.methods import PEER_LOOKUP, TRANSFORMERS, Sampling
from draftless.bench.questions import Question
from draftless.bench.rows import Case, Margin, Row, last_prices, read_rows, read_sessions
from draftless.bench.runner import Run, seed_of
from draftless.bench.summary import summarise
from draftless.bench.trust import Divergence
from draftless.drafters.jacobi import TRJacobiDrafter
from draftless.drafters.ngram import PromptLookupDrafter
from draftless.engine.latency import prices_of
from draftless.errors import ArtifactError, ConfigError, InputError
from support.bench import (
    QUESTIONS,
    bench_model,
    carry_out,
    fresh_model,
    keys,
    plant_wrong_token,
    small_plan,
    watched,
    wide_model,
    with_methods,
)

METHODS = bench_model().drafters

# --- order, seeds, cases -----------------------------------------------------------------------


def defects(rows: Sequence[Row]) -> list[Row]:
    """Outputs of ours that are not plain decoding's and no near-ties."""
    return [one.row for one in summarise(rows).divergences if one.is_defect]


def test_all_cases_of_a_question_come_before_the_next_in_an_order_that_rotates(
    tmp_path: Path,
) -> None:
    questions = [Question(name, name, (f"text {name}",)) for name in "abcd"]
    plan, calls = watched(small_plan(questions=questions))
    names = [case.method for case in plan.methods]
    assert names == list(METHODS)
    carry_out(plan, tmp_path)
    warm_up, measured = calls[: len(names)], calls[len(names) :]
    first = tuple(bench_model().encode("text a"))
    assert [(name, ids) for name, ids, _ in warm_up] == [(name, first) for name in names]
    groups = [measured[i : i + len(names)] for i in range(0, len(measured), len(names))]
    assert len(groups) == 4
    for index, (group, question) in enumerate(zip(groups, questions, strict=True)):
        shift = index % len(names)
        assert [name for name, _, _ in group] == names[shift:] + names[:shift]
        assert {ids for _, ids, _ in group} == {tuple(bench_model().encode(question.turns[0]))}


def test_seeds_are_equal_across_cases_and_differ_elsewhere(tmp_path: Path) -> None:
    plan, calls = watched(small_plan(repeats=2, samplings=(Sampling(), Sampling(1.0)), seed=4))
    rows = carry_out(plan, tmp_path)
    seeds: dict[Any, set[int]] = {}
    for row in rows:
        seeds.setdefault(row.question, set()).add(row.seed)
    assert {len(own) for own in seeds.values()} == {1}
    assert len(set.union(*seeds.values())) == len(seeds) == 6
    assert {seed for _, _, seed in calls} == set.union(*seeds.values())  # and they are used
    assert seed_of(4, "a", 0) in seeds["a", 0, None]
    assert seed_of(5, "a", 0) != seed_of(4, "a", 0)


def test_questions_that_do_not_fit_are_left_out_and_named(tmp_path: Path) -> None:
    long = Question("long", "cats", ("the cat sat " * 200,))
    two = Question("two", "cats", ("the cat sat " * 30, "the cat sat " * 30))
    plan = small_plan(questions=[long, two, *QUESTIONS], max_new_tokens=200)
    assert bench_model().target.max_positions == 512
    turn_len = len(bench_model().encode(two.turns[0]))
    assert 112 < 2 * turn_len < 312  # too long only because every turn has an answer
    assert sorted(plan.too_long) == ["long", "two"]
    carry_out(watched(plan)[0], tmp_path)
    assert read_sessions(tmp_path)[0]["too_long"] == list(plan.too_long)
    with pytest.raises(InputError, match="max-new-tokens"):
        small_plan(questions=[long])


def test_a_limit_counts_questions_that_fit() -> None:
    long = Question("long", "cats", ("the cat sat " * 200,))
    plan = small_plan(questions=[long, *QUESTIONS], limit=2)
    assert [question.question_id for question in plan.questions] == ["b", "a"]


def test_a_session_tells_what_was_measured(tmp_path: Path) -> None:
    carry_out(watched(small_plan(limit=1))[0], tmp_path)
    (session,) = read_sessions(tmp_path)
    assert session["model"]["num_parameters"] == sum(
        p.numel() for p in bench_model().target.model.parameters()
    )
    assert session["model"]["dtype"] == "float32"
    assert session["options"]["drafters"] == list(METHODS)
    assert {"commit", "torch", "num_threads", "load", "suite_digest"} <= set(session)


# --- conversations -----------------------------------------------------------------------------


def test_a_session_keeps_what_passes_cost(tmp_path: Path) -> None:
    plan, _ = watched(small_plan())
    assert files.PRICES not in plan.facts()  # nothing is timed before the run is known to start
    carry_out(plan, tmp_path)
    prices = last_prices(read_sessions(tmp_path))
    assert prices == prices_of(plan.model.target)
    assert last_prices([{}]) is None
    with pytest.raises(ArtifactError, match="not a price list"):
        last_prices([{files.PRICES: {"format_version": 1}}])


def test_each_method_goes_on_with_its_own_answer(tmp_path: Path) -> None:
    two = Question("q", "talk", ("the dog", "and the log"))
    answers = {name: f"answer {name}" for name in METHODS}
    plan, calls = watched(small_plan(questions=[two]), answers)
    carry_out(plan, tmp_path)
    texts = {name: bench_model().tokenizer.decode(ids) for name, ids, _ in calls}  # last turns
    assert texts == {name: f"the dog\nanswer {name}\n\nand the log" for name in METHODS}


# --- resuming ----------------------------------------------------------------------------------


def test_a_run_that_was_killed_in_a_line_goes_on_without_loss_or_repetition(
    tmp_path: Path,
) -> None:
    plan, _ = watched(small_plan(repeats=2))
    run = Run(plan, tmp_path).rows()
    next(run), next(run)
    run.close()
    file = tmp_path / files.ROWS_FILE
    file.write_bytes(file.read_bytes()[:-25])  # killed while it wrote the last row
    kept = read_rows(tmp_path)
    assert len(kept) == 2 * len(METHODS) - 1

    plan, calls = watched(small_plan(repeats=2))
    resumed = Run(plan, tmp_path, is_resumed=True)
    assert len(resumed.pending) == 5
    new = [row for rows in resumed.rows() for row in rows]
    everything = [
        (case, (question.question_id, repeat, None))
        for case in plan.methods
        for question in plan.questions
        for repeat in (0, 1)
    ]
    assert keys(kept) + keys(new) == Counter(everything)  # each exactly once
    assert set(keys(read_rows(tmp_path))) == set(everything)
    assert {row.session for row in new} == {1}
    assert len(read_sessions(tmp_path)) == 2
    assert len(calls) == len(METHODS) + sum(len(plan.questions[0].turns) for _ in new) + sum(
        row.question_id == "b" for row in new
    )
    assert carry_out(plan, tmp_path, is_resumed=True) == []
    assert len(read_sessions(tmp_path)) == 2  # nothing was measured, nothing is noted


def test_a_resumed_question_is_compared_with_the_plain_run_of_before(tmp_path: Path) -> None:
    carry_out(small_plan(drafters=("none",)), tmp_path)
    plan = small_plan(drafters=("none", "tr-jacobi"))
    plain = next(case for case in plan.methods if case.method == "none")
    calls: list[Any] = []
    plan = with_methods(plan, {**plan.methods, plain: lambda *call: calls.append(call)})
    rows = carry_out(plan, tmp_path, is_resumed=True)
    assert calls == []
    assert all(row.turns[0].margin is None for row in rows)
    rows = read_rows(tmp_path)
    for row in rows:  # the plain ids of the first session differ from now on
        row.turns[0].token_ids[2] ^= 1
    other = tmp_path / "other"
    other.mkdir()
    (other / files.SESSIONS_FILE).write_bytes((tmp_path / files.SESSIONS_FILE).read_bytes())
    for row in rows:
        if row.case.method == "none":
            files.append_row(other, row)
    again = carry_out(plan, other, is_resumed=True)
    assert {row.turns[0].margin.index for row in again if row.turns[0].margin} == {2}


def test_options_that_change_the_meaning_of_rows_are_not_mixed(tmp_path: Path) -> None:
    carry_out(watched(small_plan(limit=1))[0], tmp_path)
    with pytest.raises(ConfigError, match="--resume"):
        Run(small_plan(limit=1), tmp_path)
    for options, name in [
        ({"max_new_tokens": 13}, "max_new_tokens=12, not 13"),
        ({"seed": 1}, "seed"),
        ({"is_raw": True}, "is_raw"),
        ({"name": "other"}, "name"),
        ({"questions": QUESTIONS[:2]}, "suite_digest"),
        ({"model": fresh_model().with_drafter("none"), "suite": "code"}, "suite"),
    ]:
        with pytest.raises(ConfigError, match=name):
            Run(small_plan(**options), tmp_path, is_resumed=True)
    more = small_plan(
        repeats=2, drafters=("tr-jacobi",), samplings=(Sampling(), Sampling(1.0)), limit=3
    )
    assert len(Run(more, tmp_path, is_resumed=True).pending) == 6


def test_rows_of_other_weights_or_passes_are_not_mixed(tmp_path: Path) -> None:
    carry_out(watched(small_plan(limit=1))[0], tmp_path)
    other = fresh_model(wide_model(seed=1))
    with pytest.raises(ConfigError, match="fingerprint="):
        Run(small_plan(other), tmp_path, is_resumed=True)
    file = tmp_path / files.SESSIONS_FILE
    (session,) = read_sessions(tmp_path)
    for name in ("fingerprint", "is_strict"):
        del session["model"][name]  # a run from before they were noted
    file.write_text(json.dumps(session) + "\n")
    assert Run(small_plan(), tmp_path, is_resumed=True).pending
    del session["model"]["is_compiled"]  # from before models were compiled
    file.write_text(json.dumps(session) + "\n")
    with pytest.raises(ConfigError, match="is_compiled=False, not True"):
        Run(small_plan(), tmp_path, is_resumed=True)


def test_a_row_with_an_error_is_tried_again(tmp_path: Path) -> None:
    plan, _ = watched(small_plan(limit=1))
    broken = dict(plan.methods)
    case = next(case for case in broken if case.method == "tr-jacobi")
    broken[case] = lambda *_: 1 / 0
    carry_out(with_methods(plan, broken), tmp_path)
    assert [row.error for row in read_rows(tmp_path) if row.case == case] == [
        "ZeroDivisionError: division by zero"
    ]
    again = carry_out(plan, tmp_path, is_resumed=True)
    assert [row.case for row in again] == [case]
    assert [row.error for row in read_rows(tmp_path)] == [None] * len(METHODS)


# --- what goes wrong ---------------------------------------------------------------------------


def test_honest_drafters_are_identical_and_margins_are_empty(tmp_path: Path) -> None:
    plan = small_plan(samplings=(Sampling(), Sampling(1.0)), has_peers=True)
    rows = carry_out(plan, tmp_path)
    assert all(row.error is None for row in rows)
    assert all(turn.margin is None for row in rows for turn in row.turns)
    assert not defects(rows)
    sampled = {row.case.method: row.turns[0] for row in rows if row.case.sampling == "T=1"}
    # Peers draw otherwise; that is no divergence.
    assert sampled[TRANSFORMERS].token_ids != sampled["none"].token_ids


def test_a_planted_wrong_token_is_a_defect(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plant_wrong_token(monkeypatch)
    plan = small_plan(questions=QUESTIONS[1:2], drafters=("tr-jacobi",))
    rows = carry_out(plan, tmp_path)
    by_method = {row.case.method: row for row in rows}
    wrong = by_method["tr-jacobi"]
    margins = [turn.margin for turn in wrong.turns]
    plain_ids = by_method["none"].turns[0].token_ids
    assert margins[0] == Margin(0, (plain_ids[0] + 1) % 300, plain_ids[0], None, False)
    assert margins[1:] == [None]  # another conversation: nothing to compare with
    assert defects(read_rows(tmp_path)) == [wrong]


def test_a_difference_of_a_peer_is_told_and_is_no_defect_of_ours() -> None:
    margin = Margin(3, 1, 2)
    peer, ours = (Row(Case("m", name, "greedy", "f"), "c", "q") for name in (PEER_LOOKUP, "sdsat"))
    assert not Divergence(peer, 0, margin).is_defect
    assert Divergence(ours, 0, margin).is_defect
    assert Divergence(ours, 0, None).is_defect  # nobody has judged it
    margin.is_near_tie = True
    assert not Divergence(ours, 0, margin).is_defect


def test_a_planted_slow_drafter_is_slow_in_the_rows(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """On a clock that moves only when it is read, and by a second when the slow one proposes."""
    now = [0.0]

    def clock() -> float:
        now[0] += 1e-6
        return now[0]

    propose = TRJacobiDrafter.propose

    def slow(self: TRJacobiDrafter, *args: Any) -> Any:
        now[0] += 1.0
        return propose(self, *args)

    monkeypatch.setattr(time, "perf_counter", clock)
    monkeypatch.setattr(TRJacobiDrafter, "propose", slow)
    rows = carry_out(small_plan(questions=QUESTIONS[:1], has_peers=True), tmp_path)
    turns = {row.case.method: row.turns[0] for row in rows}
    jacobi = turns.pop("tr-jacobi")
    assert jacobi.time_s["propose"] == pytest.approx(jacobi.num_steps, abs=0.01)
    assert jacobi.seconds == pytest.approx(jacobi.num_steps, abs=0.01)
    assert jacobi.first_token_s == pytest.approx(1.0, abs=0.01)
    assert jacobi.step_s == pytest.approx([*range(1, jacobi.num_steps + 1)], abs=0.01)
    assert all(turn.seconds < 0.01 for turn in turns.values())


def test_a_planted_crash_is_a_row_and_the_run_goes_on(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    propose = PromptLookupDrafter.propose

    def crash(self: PromptLookupDrafter, rows: Any, passes: Any) -> Any:
        if "log" in bench_model().tokenizer.decode(rows[0].token_ids[: rows[0].prompt_len]):
            raise RuntimeError("planted")  # in the second turn of question b
        return propose(self, rows, passes)

    monkeypatch.setattr(PromptLookupDrafter, "propose", crash)
    rows = carry_out(small_plan(), tmp_path)
    assert len(rows) == 3 * len(METHODS)
    failed = [row for row in rows if row.error]
    assert [(row.case.method, row.question_id) for row in failed] == [("prompt-lookup", "b")]
    assert failed[0].error == "RuntimeError: planted"
    assert failed[0].turns == []
    assert read_rows(tmp_path) == rows


def test_without_plain_decoding_nothing_is_called_a_defect(tmp_path: Path) -> None:
    plan = small_plan(limit=1)
    plain = next(case for case in plan.methods if case.method == "none")
    rows = carry_out(with_methods(plan, {**plan.methods, plain: lambda *_: 1 / 0}), tmp_path)
    assert not defects(rows)
    assert sum(row.error is not None for row in rows) == 1


def test_an_answer_is_compared_when_plain_decoding_comes_late(tmp_path: Path) -> None:
    """It failed in the first session; what was not comparable then is compared in the second."""
    plan = small_plan(questions=QUESTIONS[1:2], drafters=("tr-jacobi",))
    plain, ours = plan.methods
    carry_out(with_methods(plan, {**plan.methods, plain: lambda *_: 1 / 0}), tmp_path)
    (kept,) = [row for row in read_rows(tmp_path) if row.error is None]
    kept.turns[1].token_ids[3] ^= 1
    files.append_row(tmp_path, kept)
    carry_out(plan, tmp_path, is_resumed=True)
    found = {row.case: row for row in read_rows(tmp_path)}
    assert found[plain].error is None
    margins = [turn.margin and turn.margin.index for turn in found[ours].turns]
    assert margins == [None, 3]
    assert defects(list(found.values())) == [found[ours]]


def test_a_prompt_that_cannot_be_made_is_a_row_with_its_error(tmp_path: Path) -> None:
    model = fresh_model()
    refuse = "{% if 'bad' in messages[0].content %}{{ 1 / 0 }}{% endif %}"
    model.tokenizer.chat_template = refuse + "{{ messages[0].content }}"
    questions = [Question("bad", "c", ("a bad one",)), Question("good", "c", ("a good one",))]
    rows = carry_out(small_plan(model, questions, drafters=("none",)), tmp_path)
    assert [(row.question_id, row.error) for row in rows] == [
        ("bad", "InputError: the chat template refuses these messages: division by zero"),
        ("good", None),
    ]


@pytest.mark.parametrize("number", [0, 5])
def test_a_full_disk_is_told_and_the_rows_stay_whole(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    """The disk is full after `number` lines, in the middle of the next one."""
    append, left = runner.append_lines, [number]

    def full(file: Path, value: Any) -> None:
        if not left[0]:
            with file.open("ab") as lines:
                lines.write(b'{"case": {"mod')
            raise OSError(errno.ENOSPC, "No space left on device")
        left[0] -= 1
        append(file, value)

    plan, _ = watched(small_plan())
    name = files.ROWS_FILE if number else files.SESSIONS_FILE
    with monkeypatch.context() as patch:
        patch.setattr(runner, "append_lines", full)
        with pytest.raises(ArtifactError, match=rf"{name}: No space left.*make room.*--resume"):
            carry_out(plan, tmp_path)
    kept = read_rows(tmp_path)
    assert len(kept) == max(0, number - 1)
    new = carry_out(plan, tmp_path, is_resumed=True)
    assert keys(kept) + keys(new) == keys(read_rows(tmp_path))
    assert len(read_rows(tmp_path)) == 3 * len(METHODS)
