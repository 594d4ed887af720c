"""Streams of requests: their order, the rows of a run, and what cannot be mixed."""

from __future__ import annotations

from collections import Counter
from itertools import pairwise
from pathlib import Path

import pytest

from draftless.bench.plan import Plan
from draftless.bench.questions import Question
from draftless.bench.rows import Row, read_rows, read_sessions
from draftless.bench.runner import Run
from draftless.bench.streams import make_streams
from draftless.errors import ConfigError
from support.bench import carry_out, small_plan, watched

DOMAINS = ("code", "math", "sql", "prose")


def questions_of(sizes: dict[str, int]) -> list[Question]:
    return [
        Question(f"{name}-{i}", name, (f"{name} {i}",))
        for name in sizes
        for i in range(sizes[name])
    ]


EVEN = questions_of(dict.fromkeys(DOMAINS, 30))


def share_of_switches(stream: list[Question]) -> float:
    switches = [a.category != b.category for a, b in pairwise(stream)]
    return sum(switches) / len(switches)


def test_a_ratio_is_the_chance_of_another_domain() -> None:
    for seed in range(5):
        assert share_of_switches(make_streams(EVEN, [0.0], seed)) == 3 / 119
        assert share_of_switches(make_streams(EVEN, [1.0], seed)) == 1.0
    shares = [share_of_switches(make_streams(EVEN, [0.5], seed)) for seed in range(20)]
    assert sum(shares) / 20 == pytest.approx(0.5, abs=0.05)
    uneven = questions_of({"code": 10, "math": 4, "sql": 5})
    assert share_of_switches(make_streams(uneven, [1.0], 0)) == 1.0


def test_every_stream_asks_the_same_and_keeps_the_order_of_a_domain() -> None:
    mixes = (0.0, 0.3, 1.0)
    whole = make_streams(EVEN, mixes, 7)
    streams = [[one for one in whole if one.mix == mix] for mix in mixes]
    assert [one for stream in streams for one in stream] == whole
    for stream in streams:
        assert [one.position for one in stream] == list(range(len(EVEN)))
        for domain in DOMAINS:
            own = [one.question_id for one in stream if one.category == domain]
            assert own == [f"{domain}-{i}" for i in range(30)]


def test_a_seed_gives_one_stream() -> None:
    assert make_streams(EVEN, [0.5], 1) == make_streams(EVEN, [0.5], 1)
    assert make_streams(EVEN, [0.5], 1) != make_streams(EVEN, [0.5], 2)
    assert make_streams(EVEN, [0.0, 0.5], 1)[120:] == make_streams(EVEN, [0.5], 1)
    assert make_streams(EVEN[:1], [0.5], 1)[0].question_id == "code-0"


SMALL = questions_of({"code": 3, "math": 3})
MIXES = (0.0, 1.0)


def test_a_run_keeps_the_order_of_each_stream(tmp_path: Path) -> None:
    plan, calls = watched(small_plan(questions=SMALL, mixes=MIXES, drafters=("none",)))
    rows = carry_out(plan, tmp_path)
    expected = make_streams(SMALL, MIXES, 0)
    assert [(row.mix, row.position, row.question_id) for row in rows] == [
        (one.mix, one.position, one.question_id) for one in expected
    ]
    assert [row.category for row in rows[:6]] in (
        3 * ["code"] + 3 * ["math"],
        3 * ["math"] + 3 * ["code"],
    )
    assert len(calls) == 1 + 12
    assert read_rows(tmp_path) == rows
    seeds: dict[str, set[int]] = {}
    for row in rows:
        seeds.setdefault(row.question_id, set()).add(row.seed)
    assert {len(own) for own in seeds.values()} == {1}  # only the order differs
    assert read_sessions(tmp_path)[0]["options"]["mixes"] == [0.0, 1.0]
    assert read_sessions(tmp_path)[0]["num_questions"] == 12


def test_a_limit_takes_from_the_domains_in_turn_before_the_stream_is_made() -> None:
    plan = small_plan(questions=SMALL, mixes=MIXES, limit=4)
    counts = Counter((one.mix, one.category) for one in plan.questions)
    assert set(counts.values()) == {2}
    assert len(plan.questions) == 8


def test_a_stream_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    def plan() -> Plan:
        return watched(small_plan(questions=SMALL, mixes=MIXES, drafters=("prompt-lookup",)))[0]

    run = Run(plan(), tmp_path).rows()
    for _ in range(8):
        next(run)
    run.close()
    before = read_rows(tmp_path)
    resumed = Run(plan(), tmp_path, is_resumed=True)
    assert len(resumed.pending) == 4
    new = [row for rows in resumed.rows() for row in rows]
    assert {row.mix for row in new} == {1.0}
    assert len({row.key for row in [*before, *new]}) == 2 * 12 == len(before) + len(new)


def test_rows_of_other_streams_are_not_mixed(tmp_path: Path) -> None:
    carry_out(watched(small_plan(questions=SMALL, mixes=MIXES))[0], tmp_path)
    for options, name in (
        ({"mixes": (0.0, 0.5)}, "mixes"),
        ({"mixes": ()}, "mixes"),
        ({"mixes": MIXES, "seed": 1}, "seed"),
        ({"mixes": MIXES, "limit": 4}, "limit"),
    ):
        plan = small_plan(questions=SMALL, **options)  # type: ignore[arg-type]
        with pytest.raises(ConfigError, match=f"measured with {name}="):
            Run(plan, tmp_path, is_resumed=True)
    Run(small_plan(questions=SMALL, mixes=MIXES, repeats=2), tmp_path, is_resumed=True)


@pytest.mark.parametrize("mix", [-0.1, 1.5, float("nan")])
def test_what_is_no_ratio_is_refused(mix: float) -> None:
    with pytest.raises(ConfigError, match=f"mix={mix} is not between 0"):
        small_plan(mixes=(0.5, mix))


def test_rows_from_before_there_were_streams_are_read(tmp_path: Path) -> None:
    rows = carry_out(watched(small_plan())[0], tmp_path)
    file = tmp_path / "rows.jsonl"
    text = file.read_text()
    for part in (', "mix": null', ', "position": null', ', "num_draft_passes": 0'):
        assert part in text
        text = text.replace(part, "")
    file.write_text(text)
    read: list[Row] = read_rows(tmp_path)
    assert read == rows
    session = tmp_path / "sessions.jsonl"
    session.write_text(session.read_text().replace(', "mixes": []', ""))
    Run(small_plan(), tmp_path, is_resumed=True)
