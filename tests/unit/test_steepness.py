"""The slope of the prices is learnt from steps, whatever the list says and however fast the machine is."""

from __future__ import annotations

import random

import pytest

from draftless.drafters.planner import OWN_OVER_PROPOSE, Planner, own_s
from draftless.drafters.steepness import Steepness
from draftless.prices import PriceList

LIST = PriceList.from_points({(1, 0, 1): 0.010, (16, 0, 1): 0.012, (32, 0, 1): 0.015})


def after(steepness: Steepness, true_slope: float, speed: float, steps: int = 200) -> float:
    draw = random.Random(0)
    for _ in range(steps):
        price = LIST.forward_s(draw.choice((1, 4, 9, 16, 25, 32)))
        seconds = speed * (0.010 + true_slope * (price - 0.010)) * draw.uniform(0.9, 1.1)
        steepness.learn(0.010, price, seconds)
    return steepness.value


@pytest.mark.parametrize("speed", [0.3, 1.0, 4.0])
@pytest.mark.parametrize("true_slope", [0.5, 1.0, 3.0])
def test_the_slope_is_found_at_any_speed(true_slope: float, speed: float) -> None:
    assert after(Steepness(), true_slope, speed) == pytest.approx(true_slope, rel=0.3)


def test_steps_of_one_width_say_nothing_about_the_slope() -> None:
    steepness = Steepness()
    for _ in range(300):
        steepness.learn(0.010, LIST.forward_s(16), 0.05)
    assert steepness.value == pytest.approx(1.0, abs=0.25)


def test_a_pause_is_no_price() -> None:
    steepness = Steepness()
    before = after(steepness, 1.0, 1.0)
    for _ in range(3):
        steepness.learn(0.010, 0.010, 0.010)
        steepness.learn(0.010, LIST.forward_s(32), 10.0)
    assert steepness.value < 1.5 * before


def test_the_planner_learns_once_from_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[float] = []
    monkeypatch.setattr(Steepness, "learn", lambda *given: seen.append(given[-1]))
    planner = Planner(LIST, 32)
    for step in range(24):
        planner.learn(100, 1, 1, forward_s=float(step), propose_s=0.001, is_sampled=False)
    assert seen == list(range(24))


def test_the_planner_reckons_with_it() -> None:
    planner = Planner(LIST, 32)
    listed = planner.prices(100, 1)
    draw = random.Random(0)
    for _ in range(200):
        width = draw.choice((1, 8, 16, 32))
        seconds = 0.010 + 3.0 * (LIST.forward_s(width) - 0.010)
        own = own_s(width, 1) / 1.8
        planner.learn(100, 1, width, forward_s=seconds, propose_s=own, is_sampled=False)
    learnt = planner.prices(100, 1)
    assert learnt.plain_s == listed.plain_s
    surplus = [prices.seconds[31] - prices.seconds[0] for prices in (listed, learnt)]
    assert surplus[1] > 1.7 * surplus[0]
    assert planner.prices(100, 4).seconds[31] < 4 * learnt.seconds[31], (
        "other batches have their own"
    )


def test_what_drafting_itself_takes_is_learnt_too() -> None:
    """Four times the guess, on a machine that is half as fast as when the list was measured."""
    planner = Planner(LIST, 32)
    listed = planner.prices(100, 8)
    for _ in range(200):
        propose_s = 2.0 * 4.0 * own_s(16, 8) / OWN_OVER_PROPOSE
        forward_s = 2.0 * LIST.forward_s(16, 100, 8)
        planner.learn(100, 8, 16, forward_s=forward_s, propose_s=propose_s, is_sampled=False)
    learnt = planner.prices(100, 8)
    more = learnt.seconds[15] - listed.seconds[15]
    assert more == pytest.approx(3.0 * own_s(16, 8), rel=0.3)
    assert planner.prices(100, 1).seconds == Planner(LIST, 32).prices(100, 1).seconds
