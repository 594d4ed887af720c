"""What the sources of `auto` are made of: the trie of contexts, the best of a row, the tree."""

from __future__ import annotations

import math
import tracemalloc

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftless.drafters.best_first import FADE, FUSED, PROBE, BestFirst
from draftless.drafters.fusion import (
    AFTER_PAIR,
    AFTER_TOKEN,
    Found,
    Fusion,
    denoised_cells,
    probed_cells,
    retrieved_cell,
)
from draftless.drafters.near_top import shares_near_top
from draftless.drafters.priors import GREEDY_WEIGHTS
from draftless.drafters.sources import Sources
from draftless.drafters.successors import Said, Successors, said_at
from draftless.drafters.suffix_index import State, SuffixIndex
from draftless.engine.position_noise import PositionNoise
from draftless.noise import KeyedNoise
from draftless.types import DraftTree, Row, StepRecord, Verdict
from support.driving import make_row

TEXTS = st.lists(st.integers(0, 2), min_size=1, max_size=30)


def followers_of(text: list[int], context: list[int]) -> list[int]:
    """Tokens that followed a context in a text, each once, in the order of their last times."""
    size = len(context)
    ends = [i for i in range(size, len(text)) if text[i - size : i] == context]
    last = {text[end]: end for end in ends}
    return sorted(last, key=last.__getitem__)


# --- the trie ----------------------------------------------------------------------------------


@given(TEXTS, st.lists(st.integers(0, 2), max_size=4), st.integers(1, 30))
def test_contexts_know_their_followers(text: list[int], path: list[int], cut: int) -> None:
    """Against a search through the text; for its end and for a path behind it, in two pieces."""
    index = SuffixIndex(3)
    index.extend(text[:cut])
    index.extend(text)
    state = index.state
    for token_id in path:
        state = index.after(state, token_id)
    whole = [*text, *path]
    known = [k for k in range(1, 4) if k <= len(whole) and followers_of(text, whole[-k:])]
    for order in known:
        assert list(index.followers[state[order]]) == followers_of(text, whole[-order:])
    for order in range(1, len(state)):
        assert order in known or not index.followers[state[order]]


# --- the best of a row -------------------------------------------------------------------------


def test_shares_become_cells_and_small_ones_are_left_out() -> None:
    """Shares .88, .12 (log-odds 2 and -2) and a tail of nothing; then .5, .5."""
    assert shares_near_top([4, 5, 6], [2.0, 0.0, -9.0], 0.07) == [(4, 12), (5, 5)]
    assert shares_near_top([7, 8, 9], [1.0, 1.0, -9.0], 0.07) == [(7, 8), (8, 9)]


@pytest.mark.parametrize("best", [math.nan, math.inf, -math.inf])
def test_logits_that_are_not_finite_say_nothing(best: float) -> None:
    """An overflow at a draft that is rejected anyway must not end the request."""
    assert shares_near_top([4, 5], [best, min(best, 1.0)], 0.07) == []
    assert shares_near_top([4, 5, 6], [1.0, 1.0, -math.inf], 0.07) == [(4, 8), (5, 9)]


# --- what the target said ----------------------------------------------------------------------


def test_the_pair_is_asked_before_the_token_alone() -> None:
    successors = Successors()
    first, second = said_at(torch.zeros(2, 61))
    successors.learn(1, 2, first)
    successors.learn(5, 2, second)
    assert successors.after(1, 2) == (first, AFTER_PAIR)
    assert successors.after(7, 2) == (second, AFTER_TOKEN), "the newest"
    assert successors.after(1, 3) == (None, AFTER_TOKEN)


def test_what_is_old_is_forgotten_half_by_half() -> None:
    successors, said = Successors(most_entries=4), Said([3], [0.5])
    known = []
    for token_id in range(7):
        successors.learn(50, token_id, said)
        known.append([one for one in range(7) if successors.after(50, one)[0]])
    assert known[3] == [0, 1, 2, 3]
    assert known[-1] == [4, 5, 6], "an entry by token and one by pair: two learnt fill a half"


def test_an_entry_takes_what_adr_8_says() -> None:
    """It keeps nothing of the other nodes of its step, of which most are forgotten sooner."""
    successors, rng = Successors(), np.random.default_rng(0)
    tracemalloc.start()
    before = tracemalloc.get_traced_memory()[0]
    for _ in range(500):
        said = said_at(torch.zeros(32, 61))
        learnt = rng.integers(10_000, size=(4, 2)).tolist()
        for (first, second), one in zip(learnt, said, strict=False):  # of 32 nodes
            successors.learn(first, second, one)
    num_entries = len(successors._new)
    del said, one
    taken = (tracemalloc.get_traced_memory()[0] - before) / num_entries
    tracemalloc.stop()
    assert num_entries > 3500
    assert 16 * 8 / 2 < taken < 450, "bytes; an entry by token and one by pair share what was said"


def test_one_memory_serves_every_temperature() -> None:
    """At T = 0.5 logits count twice, and the noise once."""
    logits = torch.full((1, 61), -20.0)
    logits[0, [10, 20]] = torch.tensor([1.0, 2.0])
    (said,) = said_at(logits)
    keyed = KeyedNoise(1)
    noise = PositionNoise(keyed, 61, torch.device("cpu"))
    lift = (keyed.few(at, [10, 20]) for at in range(1000))
    position = next(at for at, (ten, twenty) in enumerate(lift) if 1.2 < ten - twenty < 1.8)
    assert said.shares_under(noise, position, 1.0, 0.03)[0][0] == 10
    assert said.shares_under(noise, position, 0.5, 0.03)[0][0] == 20


# --- what a request remembers ------------------------------------------------------------------


def said(num_nodes: int, **best: int) -> torch.Tensor:
    """`[N, 61]` logits: node `i` is sure of the token that `n{i}` names, or knows nothing."""
    logits = torch.zeros(num_nodes, 61)
    for name, token_id in best.items():
        logits[int(name[1:]), token_id] = 9.0
    return logits


def step(
    sources: Sources,
    row: Row,
    tree: DraftTree,
    path: tuple[int, ...],
    drawn: int,
    logits: torch.Tensor,
) -> None:
    committed = (*(tree.token_ids[node] for node in path[1:]), drawn)
    row.token_ids.extend(committed)
    slots = [
        (node, 1 + i)
        for i, node in enumerate(
            n for n in range(tree.num_nodes) if tree.is_probe and tree.is_probe[n]
        )
    ]
    num_drafts = tree.num_nodes - len(slots)
    sources.observe(
        StepRecord(row, tree, Verdict(path, committed, "recovered"), logits), slots, num_drafts
    )


def cells(sources: Sources, before: int, token_id: int, depth: int = 9) -> Found:
    """What is known without retrieval."""
    return sources.found((0,), before, token_id, depth)[0]


def test_rejected_drafts_teach_what_follows_them() -> None:
    row = make_row([1, 2])
    sources = Sources(row, Successors())
    tree = DraftTree((2, 10, 11), (-1, 0, 1))
    step(sources, row, tree, (0,), 12, said(3, n0=12, n1=30, n2=31))
    assert cells(sources, 1, 2) == [(12, AFTER_PAIR + 16)]
    assert cells(sources, 10, 11) == [(31, AFTER_PAIR + 16)], "after the pair"
    assert cells(sources, 50, 11) == [(31, AFTER_TOKEN + 16)], "after the token alone"
    assert cells(sources, 50, 51) == []


def test_rejected_drafts_guess_the_places_behind_the_drawn_token() -> None:
    """10 stood where 12 was drawn, so what it says is about the next place."""
    row = make_row([1, 2])
    sources = Sources(row, Successors())
    tree = DraftTree((2, 10, 11), (-1, 0, 1))
    step(sources, row, tree, (0,), 12, said(3, n0=12, n1=30, n2=31))
    assert sources.ahead == [[(30, denoised_cells(1) + 16)], [(31, denoised_cells(2) + 16)]]
    assert cells(sources, 50, 51, depth=2) == sources.ahead[1]
    assert sources.slots == []


def test_probes_speak_before_rejected_drafts() -> None:
    """A probe for the first place, a rejected chain for both: the probe takes the first."""
    row = make_row([1, 2])
    sources = Sources(row, Successors())
    tree = DraftTree((2, 10, 11, 60), (-1, 0, 1, 0), is_probe=(False, False, False, True))
    step(sources, row, tree, (0,), 12, said(4, n0=12, n1=30, n2=31, n3=40))
    assert sources.ahead == [[(40, probed_cells(1) + 16)], [(31, denoised_cells(2) + 16)]]
    assert sources.slots == [1]


def test_retrieval_names_the_newest_after_the_longest_context_first() -> None:
    """After 7 8 came 3; after 8 alone lately 4."""
    row = make_row([7, 8, 3, 5, 8, 4, 7, 8])
    sources = Sources(row, Successors())
    found, _ = sources.found(sources.context, 7, 8, 1)
    assert found == [(3, retrieved_cell(2, 0, 0)), (4, retrieved_cell(1, 0, 1))]


def test_sampled_candidates_stand_under_the_noise_of_their_places() -> None:
    """Of three equal successors, the one that the noise of the place favours leads."""
    row = make_row([1, 2], temperature=1.0)
    sources = Sources(row, Successors())
    logits = torch.full((1, 61), -20.0)
    logits[0, [10, 20, 30]] = 5.0
    step(sources, row, DraftTree((2,), (-1,)), (0,), 12, logits)
    assert row.noise is not None
    leaders = []
    for depth in range(1, 12):
        noise = row.noise(len(row.token_ids) + depth - 1, torch.tensor([10, 20, 30]))
        leaders.append([10, 20, 30][int(noise.argmax())])
        assert cells(sources, 1, 2, depth)[0][0] == leaders[-1]
    assert len(set(leaders)) == 3


# --- the tree ----------------------------------------------------------------------------------


class Scripted(Sources):
    """Two candidates after everything, a good one and a bad one; depth by depth other tokens."""

    def __init__(self) -> None:
        self.index = SuffixIndex(1)

    @property
    def context(self) -> State:
        return (0,)

    @property
    def end(self) -> tuple[int, int]:
        return 5, 4

    def found(self, context: State, before: int, token_id: int, depth: int) -> tuple[Found, int]:
        del context, before, token_id
        return [(10 * depth, AFTER_PAIR + 14), (10 * depth + 1, AFTER_PAIR + 7)], 4


def grown(width: int, worth: tuple[float, ...] = (), max_depth: int = 50) -> BestFirst:
    growth = BestFirst(Scripted(), Fusion(GREEDY_WEIGHTS), worth, max_depth)
    growth.grow([0.01] * width)
    return growth


def test_the_tree_grows_by_gain() -> None:
    growth = grown(12, worth=(0.9, 0.5))
    assert len(growth.gains) == 12
    assert growth.gains == sorted(growth.gains, reverse=True)
    tree = growth.tree(12, [60])
    assert tree.num_nodes == 12
    drafts = [node for node in range(1, 12) if not tree.is_probe[node]]
    assert sorted((tree.scores[node] for node in drafts), reverse=True) == pytest.approx(
        [gain for gain in growth.gains[1:] if gain in tree.scores]
    )
    assert tree.token_ids[:4] == (5, 10, 20, 30), "the best path comes first"
    assert set(tree.sources[1:]) == {FUSED, PROBE}
    siblings = [(tree.parents[n], tree.token_ids[n]) for n in drafts]
    assert len(set(siblings)) == len(siblings)


def test_deep_drafts_promise_a_little_less() -> None:
    """The same two candidates at every place; from the third on a chance counts for less."""
    growth = grown(60)
    reach: dict[int, float] = {}
    for token_id, own in zip(growth.token_ids, growth.reach, strict=True):
        reach[token_id] = max(own, reach.get(token_id, 0.0))  # behind the good ones
    chance = reach[10]
    assert reach[20] == pytest.approx(chance**2)
    assert reach[30] == pytest.approx(FADE * chance**3)
    assert reach[40] == pytest.approx(FADE**2 * chance**4)


def test_a_narrower_tree_is_the_beginning_of_the_wider_one() -> None:
    growth = grown(12, worth=(0.4,))
    wide, narrow = growth.tree(12, [60]), growth.tree(6, [60])
    assert narrow.num_nodes == 6
    paths = [{path_of(tree, node) for node in range(tree.num_nodes)} for tree in (wide, narrow)]
    assert paths[1] <= paths[0]
    assert growth.tree(1, [60]) == DraftTree((5,), (-1,), scores=(1.0,), sources=("",))


def path_of(tree: DraftTree, node: int) -> tuple[int, ...]:
    path: tuple[int, ...] = ()
    while node >= 0:
        path, node = (tree.token_ids[node], *path), tree.parents[node]
    return path


def test_growth_stops_where_a_place_costs_more_than_it_gains() -> None:
    growth = BestFirst(Scripted(), Fusion(GREEDY_WEIGHTS), (), 50)
    growth.grow([0.3] * 40)
    assert min(growth.gains) >= 0.3
    growth = BestFirst(Scripted(), Fusion(GREEDY_WEIGHTS), (), 50)
    growth.grow([1.5] * 40)
    assert growth.gains == [1.0]


@pytest.mark.parametrize("max_depth", [0, 1, 3])
def test_nothing_lies_deeper_than_it_may(max_depth: int) -> None:
    tree = grown(20, worth=(0.4, 0.3), max_depth=max_depth).tree(20, [60])
    assert max(tree.layout.depths) <= max_depth


def test_probes_end_up_in_chains_under_their_nodes() -> None:
    growth = grown(9, worth=(0.9, 0.8, 0.7))
    tree = growth.tree(9, [60, 61])
    assert tree.is_probe == tuple(token_id >= 60 for token_id in tree.token_ids)
    for index, chain in enumerate(growth.probes):
        assert [tree.parents[node] for node in chain] == [index, *chain][: len(chain)]
        assert [tree.token_ids[node] for node in chain] == [60, 61, 61][: len(chain)]
    assert sum(map(len, growth.probes)) == sum(tree.is_probe) > 0
