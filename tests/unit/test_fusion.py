"""Fusing sources: agreement adds up, what was always wrong is unlearned, and the text is followed."""

from __future__ import annotations

import math

import pytest

from draftless.drafters import fusion
from draftless.drafters.fusion import (
    AFTER_TOKEN,
    NONE,
    NUM_CELLS,
    PROBED,
    Found,
    Fusion,
    denoised_cells,
    probed_cells,
    retrieved_cell,
)
from draftless.drafters.priors import COUPLED_WEIGHTS, GREEDY_WEIGHTS
from draftless.drafters.probe_worth import ProbeWorth

LONG = retrieved_cell(order=6, place=0, kind=0)
SHORT = retrieved_cell(order=1, place=0, kind=1)
SURE = AFTER_TOKEN + 16  # the best successor, with nearly all of the share


def chance(model: Fusion, found: Found, token_id: int) -> float:
    return {one: value for value, one in model.chances(found, NONE + 1)}.get(token_id, 0.0)


def test_every_cell_has_a_weight() -> None:
    assert len(GREEDY_WEIGHTS) == len(COUPLED_WEIGHTS) == NUM_CELLS


def test_cells_of_sources_do_not_overlap() -> None:
    retrieved = {
        retrieved_cell(order, place, kind)
        for order in range(1, fusion.MAX_ORDER + 1)
        for place in range(2)
        for kind in range(4)
    }
    denoised = {denoised_cells(depth) + cell for depth in range(1, 9) for cell in range(18)}
    probed = {probed_cells(slot) + cell for slot in range(1, 9) for cell in range(18)}
    recycled = set(range(AFTER_TOKEN, AFTER_TOKEN + 36))
    parts = [set(range(NONE, NONE + 12)), retrieved, recycled, denoised, probed]
    assert sorted(cell for part in parts for cell in part) == list(range(NUM_CELLS))


@pytest.mark.parametrize("is_sampled", [False, True])
def test_agreement_is_worth_more_than_either(is_sampled: bool) -> None:
    model = Fusion(COUPLED_WEIGHTS if is_sampled else GREEDY_WEIGHTS)
    both = chance(model, [(7, LONG), (7, SURE)], 7)
    assert both > chance(model, [(7, LONG)], 7)
    assert both > chance(model, [(7, SURE)], 7)


def test_candidates_compete_and_leave_room_for_none_of_them() -> None:
    model = Fusion(GREEDY_WEIGHTS)
    ranked = model.chances([(7, LONG), (8, SURE), (9, SHORT), (8, SHORT)], NONE + 4)
    assert ranked == sorted(ranked, reverse=True)
    assert {token_id for _, token_id in ranked} == {7, 8, 9}
    assert 0.5 < sum(value for value, _ in ranked) < 1.0
    assert chance(model, [(7, LONG)], 7) > chance(model, [(7, LONG), (8, SURE)], 7)


def test_learning_is_the_gradient_of_the_log_loss() -> None:
    """Against differences of the loss, one weight at a time; cells of both candidates and of none."""
    found = [(7, LONG), (8, SURE), (8, SHORT)]

    def loss(changed: int, by: float) -> float:
        model = Fusion(GREEDY_WEIGHTS)
        model.weights[changed] += by
        return -math.log(chance(model, found, 8))

    model = Fusion(GREEDY_WEIGHTS)
    before = list(model.weights)
    model.learn(found, NONE + 1, 8)
    for cell in (LONG, SURE, SHORT, NONE + 1):
        slope = (loss(cell, 1e-5) - loss(cell, -1e-5)) / 2e-5
        moved = model.weights[cell] - before[cell]
        assert moved == pytest.approx(-fusion.RATE * slope, rel=1e-3), cell
    assert sum(a != b for a, b in zip(before, model.weights, strict=True)) == 4


def test_a_source_that_is_always_wrong_is_unlearned() -> None:
    """As on a model that was never trained for adaptive tokens: its shares look as sure as ever."""
    model = Fusion(GREEDY_WEIGHTS)
    cell = probed_cells(1) + 16
    assert chance(model, [(7, cell)], 7) > 0.3
    for step in range(120):
        model.learn([(7, cell), (8, SURE)], NONE + 1, 8 if step % 2 else 3)
    assert chance(model, [(7, cell)], 7) < 0.15
    assert chance(model, [(8, SURE)], 8) > 0.3, "the other one was right half of the time"


def test_a_text_that_changes_is_followed() -> None:
    model = Fusion(GREEDY_WEIGHTS)
    for _ in range(120):
        model.learn([(7, SHORT)], NONE + 1, 3)
    low = chance(model, [(7, SHORT)], 7)
    for _ in range(120):
        model.learn([(7, SHORT)], NONE + 1, 7)
    assert low < 0.1 < 0.7 < chance(model, [(7, SHORT)], 7)


# --- what a probe is worth ---------------------------------------------------------------------


def test_a_probe_is_worth_what_it_added() -> None:
    """A probe that names what nothing else does gains worth; one that nobody needed loses it."""
    model, needed, idle = Fusion(GREEDY_WEIGHTS), ProbeWorth(), ProbeWorth()
    probed = (7, probed_cells(1) + 16)
    alone, beside = ([probed], NONE + 6), ([probed, (7, LONG), (7, SURE)], NONE + 10)
    for _ in range(50):
        needed.learn(model, [alone], [7], slots=[1])
        idle.learn(model, [beside], [7], slots=[1])
    assert needed.of_slots[0] > ProbeWorth().of_slots[0] > 2 * idle.of_slots[0]


def test_a_slot_that_the_walk_never_reaches_is_worth_nothing_and_is_tried_again() -> None:
    model, worth = Fusion(GREEDY_WEIGHTS), ProbeWorth()
    first = list(worth.of_slots)
    for _ in range(120):
        worth.learn(model, [([(7, probed_cells(1) + 16)], NONE + 6)], [3], slots=[1, 2])
    assert worth.of_slots[1] < 0.1 * first[1]
    assert worth.of_slots[2] == first[2]
    for _ in range(200):
        worth.learn(model, [([], NONE)], [3], slots=[])
    assert worth.of_slots == pytest.approx(first, rel=0.1)


def test_a_guess_of_another_source_gives_a_probe_no_credit() -> None:
    """The cells of denoised guesses lie below those of probes."""
    model = Fusion(GREEDY_WEIGHTS)
    found = [(7, denoised_cells(1) + 16)]
    cells = range(PROBED, NUM_CELLS)
    assert model.chance(found, NONE + 6, 7) == model.chance(found, NONE + 6, 7, without=cells)
