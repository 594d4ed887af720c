"""What streams add up to, where requests were routed, and what a draft pass costs."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from draftless.bench.curves import speed_up_over_requests
from draftless.bench.mixes import StreamSummary, mixes_of, stream_summaries
from draftless.bench.routing import known_labels, label_of, routings
from draftless.bench.rows import Row, Turn
from draftless.bench.statistics import Interval
from draftless.bench.stream_tables import routing_table, share, skip_table, stream_table
from draftless.bench.summary import CaseSummary, summarise
from draftless.bench.tables import stage_table
from support.synthetic_run import make_case, make_row

PLAIN, STOCK, KNN, FIXED = (
    make_case(name) for name in ("none", "transformers", "knn-ssd", "layer-skip [skip_set=mixed]")
)
SPEEDS = {(KNN, 0.0): 2.0, (KNN, 1.0): 1.9, (FIXED, 0.0): 1.5, (FIXED, 1.0): 1.2}


def stream_rows(load: float = 1.0) -> list[Row]:
    """Two domains of three requests; at ratio 1 everything takes `load` times as long."""
    rows = []
    for mix in (0.0, 1.0):
        for place in range(6):
            number, domain = divmod(place, 2) if mix else divmod(place, 3)[::-1]
            for case in (PLAIN, STOCK, KNN, FIXED):
                slow = {PLAIN: 1.0, STOCK: 1.1}.get(case) or 1.0 / SPEEDS[case, mix]
                seconds = slow * (1 + number) * (load if mix else 1.0)
                row = make_row(case, ("code", "sql")[domain], number, steps=50, seconds=seconds)
                row.mix, row.position = mix, place
                rows.append(row)
    return rows


def streams_of(rows: Sequence[Row]) -> dict[str, StreamSummary]:
    (cases,) = summarise(rows).groups().values()
    return {one.case.method: one for one in stream_summaries(rows, cases)}


def value(interval: Interval | None) -> float:
    assert interval is not None
    return interval.value


@pytest.mark.parametrize("load", [1.0, 3.0])
def test_speed_up_and_fall_by_mix_ratio_whatever_the_load(load: float) -> None:
    found = streams_of(stream_rows(load))
    assert list(found) == ["none", "transformers", KNN.method, FIXED.method]
    knn = found[KNN.method]
    assert {mix: value(own.speed_up) for mix, own in knn.by_mix.items()} == pytest.approx(
        {0.0: 2.0, 1.0: 1.9}
    )
    assert knn.by_mix[1.0].tokens_per_second == pytest.approx(1.9 * 100 / 2 / load)
    assert value(knn.fall) == pytest.approx(0.05)
    assert value(found[FIXED.method].fall) == pytest.approx(0.2)
    assert found["none"].fall is None
    assert value(found["transformers"].fall) == pytest.approx(0.0)


def test_a_fall_is_paired_by_question() -> None:
    """The requests differ much in speed-up, but each one falls by a tenth: no spread."""
    rows = stream_rows()
    for row in rows:
        if row.case == KNN:
            row.turns[0].seconds *= (1, 3, 0.5)[int(row.question_id[-1])]
            row.turns[0].seconds *= 1.9 / 2 / 0.9 if row.mix else 1.0
    fall = streams_of(rows)[KNN.method].fall
    assert fall is not None
    assert [fall.value, fall.low, fall.high] == pytest.approx([0.1] * 3)


def test_only_questions_that_count_in_both_streams_make_a_fall() -> None:
    rows = stream_rows()
    for row in rows:
        if row.case == KNN and row.mix == 1.0 and row.category == "sql":
            row.turns[0].seconds *= 2
            row.turns[0].num_looping = 60
    knn = streams_of(rows)[KNN.method]
    assert value(knn.fall) == pytest.approx(0.05)
    assert len(knn.by_mix[1.0].pairs) == 3


def test_all_streams_share_one_plain_loop() -> None:
    """The stock loop is faster at ratio 1, ours over the whole run."""
    rows = stream_rows()
    for row in rows:
        if row.case == STOCK and row.mix == 1.0:
            row.turns[0].seconds *= 0.95 / 1.1
    knn = streams_of(rows)[KNN.method]
    assert value(knn.by_mix[1.0].speed_up) == pytest.approx(1.9)


def test_a_question_in_two_streams_is_one_draw() -> None:
    """One question per domain asked at two ratios is no spread within a domain."""
    rows = [row for row in stream_rows() if row.question_id in ("code-0", "sql-0")]
    rows = [row for row in rows if row.category == "sql"]
    (case,) = [one for one in summarise(rows).cases if one.case == KNN]
    assert case.speed_up is not None
    assert not case.speed_up.is_known
    assert case.by_category["sql"].num_questions == 1


def test_a_suite_is_no_stream() -> None:
    rows = stream_rows()
    for row in rows:
        row.mix = None
    assert mixes_of(rows) == []
    assert streams_of(rows) == {}


def test_the_stream_table() -> None:
    (cases,) = summarise(stream_rows()).groups().values()
    table = stream_table(stream_summaries(stream_rows(), cases))
    assert table.headings[1:] == (
        "mix 0: tokens/s", "mix 0: speed-up [95 %]",
        "mix 1: tokens/s", "mix 1: speed-up [95 %]",
        "fall from mix 0 to 1 [95 %]",
    )  # fmt: skip
    assert table.lines[2] == (
        "knn-ssd", "100.0", "2.00x [2.00, 2.00]", "95.0", "1.90x [1.90, 1.90]", "5.0% [5.0, 5.0]"
    )  # fmt: skip
    assert table.lines[0][-1] == "-"
    one = [row for row in stream_rows() if row.mix == 0.0]
    assert len(stream_table(stream_summaries(one, cases)).headings) == 3
    assert share(Interval(-0.012)) == "-1.2% [interval unknown]"


# --- the curve over a stream ---------------------------------------------------------------------


def test_a_running_speed_up_is_of_ten_requests_summed() -> None:
    pairs = []
    for place in range(30):
        own = make_row(KNN, "sql", place, seconds=1.0 if place < 15 else 4.0)
        own.position = place
        pairs.append((own, make_row(PLAIN, "sql", place, seconds=2.0)))
    curve = speed_up_over_requests(pairs, 30)
    assert [x for x, _ in curve] == [5.5 + i for i in range(21)]
    assert curve[0][1] == pytest.approx(2.0)
    assert curve[10][1] == pytest.approx(20 / (5 * 1.0 + 5 * 4.0))
    assert curve[20][1] == pytest.approx(0.5)
    assert (
        len(speed_up_over_requests(pairs[:15], 30)) == 15
    )  # windows without an answer are left out
    assert [x for x, _ in speed_up_over_requests(pairs[:6], 6)] == [1.5, 2.5, 3.5, 4.5, 5.5]


# --- routing -------------------------------------------------------------------------------------


def routed(domain: str, number: int, *sources: str) -> Row:
    row = make_row(KNN, domain, number)
    row.turns[0].sources = list(sources)
    return row


def test_a_route_is_the_first_accepted_draft_of_a_request() -> None:
    def route(*sources: str) -> str | None:
        return label_of(Turn(1, [], sources=list(sources)))

    assert route("", "skip math", "skip sql") == "math"
    assert route("recycled", "skip two words") == "two words"
    assert route("", "skip", "") is None  # of layer-skip, which does not route
    assert route() is None


def test_routing_is_counted_by_domain_and_unknown_ones_apart() -> None:
    rows = [
        routed("code", 0, "", "skip code"),
        routed("code", 1, "skip sql"),
        routed("code", 2, "", ""),
        routed("sql", 0, "skip general"),
        routed("prose", 0, "skip general"),
        routed("prose", 1, "skip code"),
        make_row(FIXED, "code", 0),
    ]
    (one,) = routings(rows, {"knn-ssd": ["code", "sql", "math"]})
    assert one.right(["code"]) == (1, 2)
    assert one.right(["code", "sql"]) == (1, 3)
    assert one.right(["prose"]) == (1, 2)
    table = routing_table([one])
    assert table.headings[2:] == ("domain", "code", "math", "sql", "general", "unknown", "right")
    assert [line[2:] for line in table.lines] == [
        ("code", "1", "0", "1", "0", "1", "1 of 2 (50.0%)"),
        ("prose", "1", "0", "0", "1", "0", "1 of 2 (50.0%)"),
        ("sql", "0", "0", "0", "1", "0", "0 of 1 (0.0%)"),
        ("all with a label", "", "", "", "", "", "1 of 3 (33.3%)"),
        ("all without one", "", "", "", "", "", "1 of 2 (50.0%)"),
    ]


def test_a_label_that_was_never_chosen_is_known_from_the_session() -> None:
    rows = [routed("sql", 0, "skip general"), routed("code", 0, "skip code")]
    (guessed,) = routings(rows, {})
    assert guessed.labels == ("code",)
    labels = known_labels([{}, {"labels": {"knn-ssd": ["code", "sql"]}}])
    (told,) = routings(rows, labels)
    assert (guessed.right(["sql"]), told.right(["sql"])) == ((1, 1), (0, 1))
    assert routings([make_row(KNN, "sql", 0)], {}) == []
    assert routing_table(routings([make_row(KNN, "sql", 0)], labels)).lines[0][-2:] == ("1", "-")


# --- what a draft pass costs ---------------------------------------------------------------------


def drafted(rows: Sequence[Row], passes: int, draft_s: float) -> CaseSummary:
    for row in rows:
        if row.case == KNN:
            row.turns[0].num_draft_passes = passes
            row.turns[0].time_s["draft"] = draft_s
    return next(case for case in summarise(rows).cases if case.case == KNN)


def test_f_is_a_draft_pass_over_a_forward_pass() -> None:
    """50 steps with 0.36 s of forward passes, 200 draft passes with 0.216 s."""
    rows = [make_row(PLAIN, "sql", 0), make_row(KNN, "sql", 0, steps=50, seconds=0.5)]
    case = drafted(rows, 200, 0.216)
    assert case.stages is not None
    assert case.stages.draft_cost_share == pytest.approx((0.216 / 200) / (0.36 / 50))
    assert case.stages.draft_passes_per_step == pytest.approx(4.0)
    assert case.stages.overhead_share == pytest.approx(0.04 / 0.616)
    assert case.drafts_per_step == pytest.approx(7.0)
    plain_ms, pass_ms = 1000 * 0.81 / 100, 1000 * (0.36 + 0.216) / 50
    assert case.stages.efficiency == pytest.approx((0.9 / 0.4) / (2.0 * plain_ms / pass_ms))
    line = skip_table([case]).lines[0]
    assert line[:6] == ("knn-ssd", "2.00", "14.3%", "7.00", "4.00", "0.150")


def test_the_stage_table_shows_draft_passes_where_there_are_any() -> None:
    rows = [make_row(PLAIN, "sql", 0), make_row(KNN, "sql", 0, steps=50, seconds=0.5)]
    assert "draft" not in stage_table(summarise(rows).cases).headings
    drafted(rows, 200, 0.2)
    table = stage_table(summarise(rows).cases)
    assert table.headings[1:4] == ("propose", "draft", "forward")
    assert [line[2] for line in table.lines] == ["0.0%", "33.3%"]


def test_without_draft_passes_there_is_no_f() -> None:
    rows = [make_row(PLAIN, "sql", 0), make_row(KNN, "sql", 0, steps=50, seconds=0.5)]
    for case in summarise(rows).cases:
        assert case.stages is not None
        assert case.stages.draft_cost_share is None
        assert skip_table([case]).lines[0][4:6] == ("-", "-")
