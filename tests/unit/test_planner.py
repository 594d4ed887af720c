"""Which width pays, and whether drafting pays at all."""

from __future__ import annotations

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from draftless.drafters.pace import LONGEST_MATCH, Pace, trust_after
from draftless.drafters.planner import (
    OWN_NODE_S,
    OWN_S,
    Planner,
    StepPrices,
    best_width,
)
from draftless.prices import PriceList

MS = 1e-3
STAIRS = [10 * MS] * 4 + [14 * MS] * 4 + [30 * MS] * 8  # 4 places are free, 4 cheap, 8 dear


def test_a_free_place_is_taken_and_a_dear_one_is_not() -> None:
    """At 100 tokens a second a step of the second stair costs 0.4 tokens more, of the third 1.6."""
    gains = [1.0] + [0.15] * 15
    assert best_width([gains], STAIRS, rate=100.0) == 8
    assert best_width([gains], STAIRS, rate=400.0) == 4, "time is worth four times as much"
    assert best_width([[1.0] + [0.3] * 15], STAIRS, rate=100.0) == 16


def test_the_rows_of_a_batch_share_the_width() -> None:
    """0.04 a place does not pay for two rows; beside a row that gains 0.3 it does."""
    poor, rich = [1.0] + [0.04] * 7, [1.0] + [0.3] * 7
    assert best_width([poor, poor], STAIRS, rate=100.0) == 4
    assert best_width([poor, rich], STAIRS, rate=100.0) == 8
    assert best_width([[1.0], rich], STAIRS, rate=100.0) == 8, "the first row is padded"


@given(
    st.lists(st.lists(st.floats(0, 1), min_size=1, max_size=9), min_size=1, max_size=4),
    st.lists(st.floats(0.001, 0.1), min_size=9, max_size=9),
    st.floats(1.0, 1000.0),
)
def test_no_width_is_better(gains: list[list[float]], costs: list[float], rate: float) -> None:
    seconds = np.cumsum(costs).tolist()
    values = [
        sum(sum(row[:width]) for row in gains) - rate * seconds[width - 1]
        for width in range(1, max(map(len, gains)) + 1)
    ]
    chosen = best_width(gains, seconds, rate)
    assert values[chosen - 1] == pytest.approx(max(values))


def test_prices_of_a_step_count_what_drafting_itself_costs() -> None:
    prices = StepPrices.of(np.array([2.0, 3.0, 3.0, 9.0]) * MS, num_rows=2)
    assert prices.plain_s == 2.0 * MS
    own = [2 * (OWN_S + OWN_NODE_S * width) for width in (1, 2, 3, 4)]
    expected = np.array([2.0, 3.0, 3.0, 9.0]) * MS + own
    assert prices.seconds == pytest.approx(expected.tolist())
    node_s = 2 * OWN_NODE_S
    assert prices.slopes == pytest.approx([0.5 * MS + node_s, node_s, 6 * MS + node_s, math.inf])


def test_prices_follow_length_and_rows() -> None:
    points = {(1, 0, 1): 1 * MS, (9, 0, 1): 2 * MS, (1, 1024, 1): 3 * MS, (9, 1024, 1): 4 * MS}
    points |= {(width, length, 4): 3 * seconds for (width, length, _), seconds in points.items()}
    planner = Planner(PriceList.from_points(points), max_width=9)
    assert planner.prices(1, 1).plain_s < planner.prices(1000, 1).plain_s
    assert planner.prices(1000, 4).plain_s == pytest.approx(9 * MS)
    assert planner.prices(900, 1) is planner.prices(1000, 1), "few lengths are told apart"


# --- off and on --------------------------------------------------------------------------------


def hopeless(pace: Pace, num_steps: int, cost: float = 1.3) -> list[bool]:
    """Whether each step drafted, where a step that drafts costs `cost` plain ones for one token."""
    drafted = []
    for _ in range(num_steps):
        drafted.append(not pace.is_asleep)
        if pace.is_asleep:
            pace.sleep(match_len=0)
        else:
            pace.count(1, cost * MS, 1.0 * MS)
    return drafted


@pytest.mark.parametrize(("trust", "most"), [(0.0, 4.0), (0.5, 6.0), (1.0, 9.0)])
def test_a_hopeless_text_puts_drafting_to_sleep(trust: float, most: float) -> None:
    """Some plain steps are lost at the start, and then less for each longer and longer nap."""
    drafted = hopeless(Pace(trust), 300)
    lost = 0.3 * sum(drafted)
    assert drafted[0] and not drafted[-1]
    assert lost < most, "of 300 steps"
    naps = "".join("x" if one else "." for one in drafted).split("x")
    lengths = [len(nap) for nap in naps if nap]
    assert lengths[:4] == [8, 16, 32, 64]
    assert max(lengths) == 64, "it is tried again for ever"


def test_trust_follows_what_requests_saved() -> None:
    trust = 0.5
    for _ in range(6):
        trust = trust_after(trust, -0.5)
    assert trust < 0.01
    for _ in range(3):
        trust = trust_after(trust, 4.0)
    assert trust > 0.8


def test_what_never_drafted_says_nothing() -> None:
    assert trust_after(0.3, Pace().saved) == 0.3


def test_what_was_saved_is_counted() -> None:
    pace = Pace()
    pace.count(3, 1.5 * MS, 1.0 * MS)
    pace.count(1, 1.25 * MS, 1.0 * MS)
    assert pace.saved == pytest.approx(1.25)


def test_what_pays_stays_awake_and_survives_a_bad_stretch() -> None:
    pace = Pace()
    for _ in range(20):
        pace.count(3, 1.3 * MS, 1.0 * MS)
    assert all(hopeless(pace, 8)), "the purse holds three plain steps"
    assert not all(hopeless(pace, 8))


def test_a_long_match_wakes() -> None:
    pace = Pace()
    hopeless(pace, 7)
    assert pace.is_asleep
    pace.sleep(match_len=4)
    assert not pace.is_asleep


def test_success_makes_naps_short_again() -> None:
    pace = Pace()
    hopeless(pace, 100)
    while pace.is_asleep:
        pace.sleep(match_len=0)
    for _ in range(5):
        pace.count(4, 1.2 * MS, 1.0 * MS)
    drafted = hopeless(pace, 30)
    assert drafted[drafted.index(False) :].index(True) == 8


def test_the_rate_follows_the_text_and_is_never_below_plain_decoding() -> None:
    pace = Pace()
    for _ in range(60):
        pace.count(4, 2.0 * MS, 1.0 * MS)
    assert pace.rate(1.0 * MS) == pytest.approx(2000, rel=0.1)
    for _ in range(60):
        pace.count(1, 2.0 * MS, 1.0 * MS)
    assert pace.rate(1.0 * MS) == 1000


def test_after_a_false_alarm_a_match_must_be_longer() -> None:
    pace = Pace()
    hopeless(pace, 7)
    for match_len in (4, 5, 6, 6):
        if match_len < LONGEST_MATCH:
            pace.sleep(match_len - 1)
            assert pace.is_asleep
        pace.sleep(match_len)
        assert not pace.is_asleep, "the longest match always wakes"
        hopeless(pace, 4)
        assert pace.is_asleep
    for _ in range(70):
        pace.sleep(0)
    pace.count(6, 1.0 * MS, 1.0 * MS)
    hopeless(pace, 12)
    pace.sleep(4)
    assert not pace.is_asleep, "what pays makes alarms credible again"


def test_a_step_may_cost_little_more_than_the_purse_holds() -> None:
    pace = Pace()
    first = pace.most_s(1.0 * MS)
    assert first > 2.0 * MS, "at the start there is something to try"
    hopeless(pace, 7)
    while pace.is_asleep:
        pace.sleep(match_len=0)
    assert 1.0 * MS < pace.most_s(1.0 * MS) < first


def test_naps_of_a_row_that_is_alone_again_look_for_matches() -> None:
    pace = Pace()
    assert pace.lie_down(least=9.0) and not pace.looks, "in a batch no match is worth it"
    while pace.is_asleep:
        pace.sleep(match_len=0)
    hopeless(pace, 2)
    assert pace.is_asleep
    looked = [pace.looks or pace.sleep(match_len=0) for _ in range(4)]
    assert any(looked)


def test_where_drafting_hardly_ever_brings_enough_it_sleeps_before_it_costs_anything() -> None:
    """In a batch all rows pay for a place, and for the drafting of each."""
    pace = Pace(trust=1.0)
    assert not pace.lie_down(least=0.3), "half a token more a step is what drafting usually brings"
    assert not pace.is_asleep
    assert pace.lie_down(least=0.7)
    assert pace.is_asleep and pace.saved == 0.0
    naps = []
    for _ in range(4):
        steps = 0
        while pace.is_asleep:
            pace.sleep(match_len=0)
            steps += 1
        naps.append(steps)
        assert pace.lie_down(least=0.7)
    assert naps == [8, 16, 32, 64]


def test_what_drafting_brought_here_counts_more_than_what_it_usually_brings() -> None:
    rich, poor = Pace(), Pace()
    for _ in range(30):
        rich.count(3, 1.2, plain_s=1.0)
        poor.count(1, 1.0, plain_s=1.0)
    assert not rich.lie_down(least=1.2)
    assert poor.lie_down(least=0.2)


def test_a_nap_looks_for_matches_now_and_then_and_at_its_end() -> None:
    pace = Pace()
    while not pace.is_asleep:
        pace.count(1, 1.3, plain_s=1.0)
    looked = []
    while pace.is_asleep:
        looked.append(pace.looks)
        pace.sleep(match_len=0)
    assert looked == [False, False, False, True] * 2


def test_where_no_match_can_pay_nobody_looks() -> None:
    pace = Pace()
    pace.lie_down(least=5.0)
    while pace.is_asleep:
        assert not pace.looks
        pace.sleep(match_len=0)
    assert not pace.lie_down(least=0.1), "the batch has become smaller"
    assert not pace.is_asleep
