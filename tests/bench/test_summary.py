"""What a number in a table means."""

from __future__ import annotations

from dataclasses import replace

import pytest

from draftless.bench.averages import SPEC_BENCH, of_categories
from draftless.bench.rows import Case, Margin, Row
from draftless.bench.summary import CaseSummary, summarise
from draftless.errors import ConfigError
from support.synthetic_run import make_case, make_row

PLAIN, STOCK, DRAFTED = (make_case(name) for name in ("none", "transformers", "tr-jacobi"))


def sample_rows() -> list[Row]:
    """Two categories of unequal size; the stock loop is the faster plain one."""
    rows = []
    for category, speeds in (("sql", [4.0, 2.0]), ("math", [2.0])):
        for number, speed in enumerate(speeds):
            rows += [
                make_row(PLAIN, category, number, seconds=2.0),
                make_row(STOCK, category, number, seconds=1.0),
                make_row(DRAFTED, category, number, steps=40, seconds=1.0 / speed),
            ]
    return rows


def by_method(rows: list[Row]) -> dict[str, CaseSummary]:
    return {case.case.method: case for case in summarise(rows).cases}


def value(case: CaseSummary) -> float:
    assert case.speed_up is not None
    return case.speed_up.value


def test_speed_up_is_a_mean_over_categories_of_token_weighted_values() -> None:
    cases = by_method(sample_rows())
    drafted = cases["tr-jacobi"]
    assert drafted.plain == "transformers"
    sql = (200 / 0.75) / (200 / 2.0)  # not the mean of 4 and 2
    assert value(drafted) == pytest.approx((sql + 2.0) / 2)
    assert drafted.tokens_per_second == pytest.approx((200 / 0.75 + 200) / 2)
    assert drafted.acceptance_length == pytest.approx(2.5)
    assert value(cases["transformers"]) == pytest.approx(1.0)
    assert value(cases["none"]) == pytest.approx(0.5)
    own = drafted.by_category["sql"]
    assert (own.num_questions, own.acceptance_length) == (2, pytest.approx(2.5))
    assert own.speed_up is not None
    assert own.speed_up.value == pytest.approx(sql)


def test_question_means_are_spec_benchs() -> None:
    """Tokens/s 400, 200, 200 over 100: a mean over questions, whatever their category."""
    assert by_method(sample_rows())["tr-jacobi"].question_mean_speed_up == pytest.approx(8 / 3)


def test_decoding_alone_leaves_the_prefill_out() -> None:
    drafted = by_method(sample_rows())["tr-jacobi"]
    sql = (200 / (0.75 - 0.2)) / (200 / (4.0 - 0.2))
    math = (100 / 0.4) / (100 / 1.9)
    assert drafted.decode_speed_up is not None
    assert drafted.decode_speed_up.value == pytest.approx((sql + math) / 2)
    assert drafted.prefill_s == pytest.approx(0.1)


def test_no_decode_speed_without_known_prefill() -> None:
    rows = sample_rows()
    for row in rows:
        if row.case == DRAFTED:
            row.turns[0].prefill_s = None
    drafted = by_method(rows)["tr-jacobi"]
    assert (drafted.decode_speed_up, drafted.prefill_s) == (None, None)
    assert drafted.first_token_s is not None


def test_repetitions_are_one_question() -> None:
    """Ten repetitions of one question are no ten questions: still no interval."""
    rows = [
        make_row(case, "sql", 0, seconds=seconds + repeat, repeat=repeat)
        for repeat in range(10)
        for case, seconds in ((PLAIN, 2.0), (DRAFTED, 1.0))
    ]
    speed_up = by_method(rows)["tr-jacobi"].speed_up
    assert speed_up is not None
    assert speed_up.value == pytest.approx(65 / 55)
    assert not speed_up.is_known


def test_pairing_is_by_question() -> None:
    """Every question is exactly twice as fast: no spread, whatever order the rows have."""
    times = [0.5, 1.0, 4.0, 9.0]
    plain = [make_row(PLAIN, "sql", i, seconds=2 * t) for i, t in enumerate(times)]
    drafted = [make_row(DRAFTED, "sql", i, seconds=t) for i, t in enumerate(times)]
    speed_up = by_method([*plain, *reversed(drafted)])["tr-jacobi"].speed_up
    assert speed_up is not None
    assert [speed_up.value, speed_up.low, speed_up.high] == pytest.approx([2.0] * 3)


def test_looping_answers_are_left_out_and_counted() -> None:
    rows = sample_rows()
    rows[2].turns[0].num_looping = 51  # the drafted run of the first SQL question
    cases = by_method(rows)
    assert cases["tr-jacobi"].num_left_out == 1
    assert value(cases["tr-jacobi"]) == pytest.approx(2.0)
    assert cases["tr-jacobi"].loop_share == pytest.approx(51 / 300)
    assert cases["tr-jacobi"].num_answers == 3
    assert cases["none"].num_left_out == 0
    rows[2].turns[0].num_looping = 50  # half is not more than half
    assert by_method(rows)["tr-jacobi"].num_left_out == 0


def test_a_looping_plain_answer_leaves_the_question_out() -> None:
    rows = sample_rows()
    rows[1].turns[0].num_looping = 51
    assert by_method(rows)["tr-jacobi"].num_left_out == 1


def test_failures_are_counted_and_bring_no_numbers() -> None:
    rows = [*sample_rows(), Row(DRAFTED, "sql", "sql-9", error="ValueError: no")]
    drafted = by_method(rows)["tr-jacobi"]
    assert (drafted.num_failed, drafted.num_answers) == (1, 3)
    assert [row.question_id for row in summarise(rows).failed] == ["sql-9"]


def test_a_case_that_always_fails_is_still_a_case() -> None:
    crashed = Row(make_case("knn-ssd"), "sql", "sql-0", error="RuntimeError: x")
    case = by_method([*sample_rows(), crashed])["knn-ssd"]
    assert (case.num_failed, case.num_answers, case.speed_up) == (1, 0, None)


def test_questions_that_the_plain_loop_missed_are_counted() -> None:
    rows = [row for row in sample_rows() if row.case != STOCK]
    rows[0] = replace(rows[0], turns=[], error="planted")
    drafted = by_method(rows)["tr-jacobi"]
    assert (drafted.num_unpaired, drafted.num_answers) == (1, 3)


def test_a_plain_loop_that_mostly_fails_sets_no_bar() -> None:
    rows = sample_rows()
    kept = [r for r in rows if r.case != STOCK or r.question_id == "math-0"]
    assert by_method(kept)["tr-jacobi"].plain == "none"


def test_without_a_plain_loop_there_is_no_speed_up() -> None:
    drafted = by_method([r for r in sample_rows() if r.case == DRAFTED])["tr-jacobi"]
    assert (drafted.plain, drafted.speed_up, drafted.question_mean_speed_up) == (None, None, None)
    assert drafted.acceptance_length == pytest.approx(2.5)
    assert drafted.trust.num_compared == 0


def test_other_samplings_and_dtypes_set_no_bar() -> None:
    fast = Case("msn", "transformers", "T=1", "bfloat16")
    rows = [*sample_rows(), make_row(fast, "sql", 0, seconds=0.11)]
    assert value(by_method(rows)["tr-jacobi"]) == pytest.approx((200 / 0.75 / 100 + 2) / 2)
    groups = summarise(rows).groups()
    assert [(g.sampling, len(cases)) for g, cases in groups.items()] == [("greedy", 3), ("T=1", 1)]


def test_overhead_is_all_but_the_forward() -> None:
    cases = by_method(sample_rows())
    stages = cases["none"].stages
    assert stages is not None
    assert stages.overhead_share == pytest.approx(0.1)
    assert stages.efficiency == pytest.approx(1.0)
    assert stages.nodes_per_step == 1
    assert cases["transformers"].stages is None
    drafted = cases["tr-jacobi"].stages
    assert drafted is not None
    assert drafted.nodes_per_step == 8
    # Three questions of 40 steps: 0.9 of 0.15 s, 0.4 s and 0.4 s.
    assert drafted.forward_ms == pytest.approx(1000 * 0.9 * (0.15 + 0.4 + 0.4) / 120)
    assert drafted.plain_forward_ms == pytest.approx(1000 * 0.9 * 1.9 / 100)
    # One share of overhead for all: the speed-up is exactly what the forward passes promise
    # (per category; over both categories the promise is a product of means).
    assert drafted.efficiency == pytest.approx(1.0, abs=0.1)


def test_probes_are_fed_but_are_no_drafts() -> None:
    """Two-step SDSAT: a pass with 5 probes, then a verification of 4 drafts."""
    rows = sample_rows()
    for row in (row for row in rows if row.case == DRAFTED):
        (turn,) = row.turns
        turn.step_drafted = [0, 4] * 20
        turn.step_tokens = [1, 4] * 20
        turn.step_nodes = [6, 5] * 20
        turn.num_forward_passes = 41
    drafted, plain = by_method(rows)["tr-jacobi"], by_method(rows)["none"]
    assert drafted.accepted_per_cycle == pytest.approx(3.0)
    assert drafted.by_category["sql"].accepted_per_cycle == pytest.approx(3.0)
    assert drafted.acceptance_length == pytest.approx(2.5)
    assert drafted.acceptance_rate == pytest.approx(0.75)
    assert (drafted.num_draft_tokens, drafted.num_forward_passes) == (3 * 80, 3 * 41)
    assert drafted.stages is not None and drafted.stages.nodes_per_step == 5.5
    assert plain.accepted_per_cycle is None


def test_chosen_categories_alone() -> None:
    rows = sample_rows()
    drafted = by_method(of_categories(rows, ["sql"]))["tr-jacobi"]
    assert list(drafted.by_category) == ["sql"]
    assert value(drafted) == pytest.approx((200 / 0.75) / (200 / 2.0))
    with pytest.raises(ConfigError, match="nothing of code; the categories are math, sql"):
        of_categories(rows, ["sql", "code"])


def test_per_position_acceptance_sums_to_the_acceptance_length() -> None:
    rows = sample_rows()
    drafted = by_method(rows)["tr-jacobi"]
    # 40 steps for 100 tokens: 39 of 2 and a last one of 22.
    assert drafted.acceptance_histogram[:3] == (0, 117, 0)
    assert drafted.acceptance_histogram[21] == 3
    assert drafted.per_position_acceptance[:2] == pytest.approx((1.0, 1 / 40))
    assert 1 + sum(drafted.per_position_acceptance) == pytest.approx(drafted.acceptance_length)
    assert drafted.num_draft_tokens == 7 * 120
    assert drafted.acceptance_rate == pytest.approx(60 / 280)
    assert by_method(rows)["none"].acceptance_rate is None


def test_identical_near_ties_and_defects_are_counted_apart() -> None:
    rows = sample_rows()
    for row, margin in zip(
        [row for row in rows if row.case == DRAFTED],
        (Margin(3, 1, 2, 1.0, is_near_tie=True), Margin(4, 1, 2, 99.0), None),
        strict=True,
    ):
        row.turns[0].margin = margin
    summary = summarise(rows)
    trust = by_method(rows)["tr-jacobi"].trust
    counts = (trust.num_identical, trust.num_near_ties, trust.num_defects, trust.num_compared)
    assert counts == (1, 1, 1, 3)
    assert [one.is_near_tie for one in summary.divergences] == [True, False]
    assert by_method(rows)["none"].trust.num_compared == 0
    assert by_method(rows)["transformers"].trust.num_identical == 3


def test_a_difference_that_nobody_judged_is_a_defect() -> None:
    rows = sample_rows()
    rows[2].turns[0].token_ids[7] += 1
    assert by_method(rows)["tr-jacobi"].trust.num_defects == 1
    rows[2].turns[0].margin = Margin(7, 8, 7, 0.5, is_near_tie=True)
    assert by_method(rows)["tr-jacobi"].trust.num_near_ties == 1


def test_turns_behind_a_near_tie_answer_another_conversation() -> None:
    rows = sample_rows()
    for row in rows[:3]:
        row.turns.append(replace(row.turns[0], token_ids=list(row.turns[0].token_ids)))
    rows[2].turns[0].margin = Margin(7, 8, 7, 0.5, is_near_tie=True)
    rows[2].turns[1].token_ids[0] += 1
    assert by_method(rows)["tr-jacobi"].trust.num_near_ties == 1
    rows[2].turns.pop()  # a turn that is missing is a difference
    rows[2].turns[0].margin = None
    assert by_method(rows)["tr-jacobi"].trust.num_defects == 1


def test_sampled_peers_have_draws_of_their_own() -> None:
    rows = [
        make_row(make_case(method, sampling="T=1"), "sql", i)
        for i in range(2)
        for method in ("none", "transformers", "transformers prompt-lookup", "recycling")
    ]
    compared = {name: case.trust.num_compared for name, case in by_method(rows).items()}
    assert compared == {
        "none": 0, "transformers": 0, "transformers prompt-lookup": 0, "recycling": 2,
    }  # fmt: skip


def test_mt_bench_is_one_category_of_spec_bench() -> None:
    rows = [make_row(PLAIN, category, 0) for category in sorted(SPEC_BENCH)]
    assert summarise(rows).categories == (
        "math_reasoning", "mt_bench", "qa", "rag", "summarization", "translation",
    )  # fmt: skip
    assert by_method(rows)["none"].by_category["mt_bench"].num_questions == 8
    assert len(summarise(rows[1:]).categories) == 12


def test_the_order_of_cases_is_that_of_the_run_plain_loops_first() -> None:
    rows = [make_row(make_case(m), "sql", 0) for m in ("b", "none", "a", "transformers")]
    names = [case.case.method for case in summarise(rows).cases]
    assert names == ["none", "transformers", "b", "a"]
