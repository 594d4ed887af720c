"""SDSAT: slots and places, what is worth a row, and the bugs of the reference implementation.

The bugs are numbered as in `research/seed-methods.md` 2.4:

1. the nucleus mode draws again after a mismatch, and every path anew: `test_law_forking.py`,
   `test_engine_law.py`, mutant `every_path_drawn_anew`
2. a single chain is enough for that: `test_law_forking.py`
3. drafts and verification use other options: one sampler draws every token (`test_matrix.py`)
4. short paths padded with the last node: `test_verify.py`
5. text before an EOS inside a block is lost: `test_an_eos_keeps_the_text_before_it` here
6. tokens after an EOS and beyond the limit: the same, and `test_the_limit_is_met_exactly` here
7. ten tokens drawn where fewer have mass: `test_tokens_without_mass_are_no_candidates` here
8. the benchmark forces a length: every method there ends by itself
9. one row, a cache as long as the context: ragged rows in `test_matrix.py`, and `test_cache.py`
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pytest
import torch

from draftless.drafters.ngram import NullDrafter
from draftless.drafters.sdsat import SDSATDrafter, ready_slots
from draftless.errors import ConfigError
from draftless.noise import KeyedNoise
from draftless.params import SamplingParams
from draftless.types import DraftTree, StepRecord, Verdict
from support.drafters import PLANTED, PlantedSDSAT
from support.driving import Job, Result, make_row, run
from support.models import CONTEXT, VOCAB_SIZE, prompt_ids, target
from support.sdsat_steps import ID, drafts, observe, probes, propose, started

# --- slots and places --------------------------------------------------------------------------


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("k", [1, 3, 8])
def test_the_first_step_is_a_chain_of_probes(steps: int, k: int) -> None:
    row = make_row([7, 8, 9])
    tree = propose(started(row, steps=steps, k=k), row)
    assert tree.token_ids == (9, *[ID] * k)
    assert tree.parents == tuple(range(-1, k))
    assert tree.is_probe == (False, *[True] * k)
    assert tree.sources == ("", *["probe"] * k)
    assert tree.num_draft_tokens == 0


@pytest.mark.parametrize(
    ("ids", "chain"), [([40], [40] * 5), ([40, 41, 42], [40, 41, 42, 42, 42]), (range(9), range(5))]
)
def test_slots_carry_their_own_ids_or_the_last_one(ids: Sequence[int], chain: list[int]) -> None:
    row = make_row([7, 8, 9])
    assert propose(started(row, adaptive_ids=ids), row).token_ids[1:] == tuple(chain)


def test_two_steps_take_turns() -> None:
    """Slot `m` of the drafting step is depth `m` of the verification step; its own token is kept."""
    row = make_row([7, 8, 9])
    drafter = started(row, steps=2, k=3, top_k=1)
    for _ in range(2):
        tree = propose(drafter, row)
        assert (drafts(tree), probes(tree)) == ([], [1, 2, 3])
        observe(drafter, row, tree, {0: [50], 1: [51], 2: [52], 3: [53]}, drawn=50)
        tree = propose(drafter, row)
        assert tree.token_ids == (50, 51, 52, 53)
        assert tree.parents == (-1, 0, 1, 2)
        assert tree.sources == ("", "adaptive", "adaptive", "adaptive")
        assert not any(tree.is_probe)
        observe(drafter, row, tree, {}, path=(0, 1), drawn=4)


def test_one_step_drafts_from_the_probes_of_the_node_where_the_walk_stopped() -> None:
    row = make_row([7, 8, 9])
    drafter = started(row, k=2, top_k=1, budget=16)
    tree = propose(drafter, row)
    observe(drafter, row, tree, {1: [51], 2: [52]}, drawn=50)
    tree = propose(drafter, row)
    assert [tree.token_ids[node] for node in drafts(tree)] == [51, 52]
    chains = {node: [n for n in probes(tree) if chain_top(tree, n) == node] for node in (0, 1, 2)}
    assert all(len(chain) == 2 for chain in chains.values()), "there is room for all of them"
    for stop, path in ((0, (0,)), (1, (0, 1)), (2, (0, 1, 2))):
        other = make_row([7, 8, 9])
        again = started(other, k=2, top_k=1, budget=16)
        observe(again, other, propose(again, other), {1: [51], 2: [52]}, drawn=50)
        says = {n: [10 * node + slot] for node in chains for slot, n in enumerate(chains[node])}
        assert propose(again, other) == tree
        observe(again, other, tree, says, path=path, drawn=60)
        following = propose(again, other)
        wanted = [10 * stop, 10 * stop + 1]
        assert [following.token_ids[node] for node in drafts(following)] == wanted


def chain_top(tree: DraftTree, node: int) -> int:
    while node in probes(tree):
        node = tree.parents[node]
    return node


@pytest.mark.parametrize(
    ("path", "slots"),
    [
        ((0,), [(3, 1), (4, 2), (5, 3), (6, 4)]),  # the root has four probes of its own
        ((0, 1), [(7, 1), (5, 3), (6, 4)]),  # one of its own, then the root's, shifted by one
        ((0, 1, 2), [(5, 3), (6, 4)]),  # none of its own, its parent's is too short
        ((0, 8), [(9, 1), (10, 2), (6, 4)]),
    ],
)
def test_ancestors_speak_for_nodes_whose_probes_do_not_reach_as_far(
    path: tuple[int, ...], slots: list[tuple[int, int]]
) -> None:
    """(node, slot) of depths 1, 2, ...: each predicts the place that lies so deep."""
    parents = (-1, 0, 1, 0, 3, 4, 5, 1, 0, 8, 9)
    flags = tuple(node in (3, 4, 5, 6, 7, 9, 10) for node in range(11))
    tree = DraftTree((0,) * 11, parents, flags)
    assert ready_slots(tree, path) == slots
    depths = tree.layout.depths
    stop = depths[path[-1]]
    assert [depths[node] - stop for node, _ in slots] == list(range(1, len(slots) + 1))


def test_a_tree_without_probes_leaves_nothing() -> None:
    assert ready_slots(DraftTree.chain([1, 2, 3]), (0, 1)) == []


@pytest.mark.parametrize("steps", [1, 2])
@pytest.mark.parametrize("max_depth", [0, 1, 2, 3, 5])
def test_nothing_stands_where_it_cannot_be_used(steps: int, max_depth: int) -> None:
    """No draft below `max_depth`, no probe that speaks for a place which no step will draft."""
    row = make_row([7, 8, 9])
    drafter = started(row, steps=steps, top_k=3)
    observe(drafter, row, propose(drafter, row), {n: [50 + n, 40 + n] for n in range(1, 6)})
    row.max_depth = max_depth
    tree = propose(drafter, row)
    depths = tree.layout.depths
    assert max(depths) == max_depth
    assert bool(drafts(tree)) == (max_depth > 0)
    assert bool(probes(tree)) == (max_depth > 1 and steps == 1)
    assert all(depths[node] < max_depth for node in probes(tree))


# --- what is worth a row -----------------------------------------------------------------------


@pytest.mark.parametrize("budget", [2, 3, 7, 16, 40])
def test_the_budget_is_met_and_no_sibling_comes_twice(budget: int) -> None:
    row = make_row([7, 8, 9])
    drafter = started(row, budget=budget, top_k=4)
    for step in range(4):
        tree = propose(drafter, row)
        assert tree.num_nodes == (min(6, budget) if step == 0 else budget)
        siblings = [(tree.parents[n], tree.token_ids[n]) for n in drafts(tree)]
        assert len(set(siblings)) == len(siblings)
        observe(drafter, row, tree, {n: [n, n + 1, 3] for n in probes(tree)})


def test_shares_are_corrected_by_what_came_of_them() -> None:
    """Candidates that are always wrong lose their places to probes, right ones keep them."""
    where = {}
    for outcome in ("right", "wrong"):
        row = make_row([7, 8, 9])
        drafter = started(row, k=2, budget=5, top_k=1)
        for _ in range(20):
            tree = propose(drafter, row)
            path = (0, *drafts(tree)) if outcome == "right" else (0,)
            observe(drafter, row, tree, {n: [30 + n] for n in probes(tree)}, path=path, drawn=1)
        tree = propose(drafter, row)
        where[outcome] = {chain_top(tree, node) for node in probes(tree)}
    assert where == {"right": {2}, "wrong": {0}}


@pytest.mark.parametrize("options", [{}, {"top_k": 5}, {"top_p": 0.9}], ids=str)
@pytest.mark.parametrize("temperature", [0.0, 0.8])
def test_candidates_are_the_best_under_the_noise_of_their_own_places(
    temperature: float, options: dict[str, Any]
) -> None:
    row = make_row([7, 8, 9], temperature=temperature, **(options if temperature else {}))
    drafter = started(row, k=3, top_k=4)
    tree = propose(drafter, row)
    logits = 3 * torch.randn(4, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    row.token_ids.append(0)
    drafter.observe([StepRecord(row, tree, Verdict((0,), (0,), "bonus"), logits)])
    keyed, ids = KeyedNoise(4), torch.arange(VOCAB_SIZE)
    for depth, found in enumerate(drafter._states[row].candidates):
        scores = logits[1 + depth].double()
        if temperature:
            scores = scores / temperature + keyed(4 + depth, ids)
        assert list(found.shares) == scores.topk(4).indices.tolist()
        if not options:
            wanted = scores.softmax(0).topk(4).values
            assert list(found.shares.values()) == pytest.approx(wanted.tolist(), rel=1e-4)


def test_tokens_without_mass_are_no_candidates() -> None:
    row = make_row([7, 8, 9])
    drafter = started(row, k=2, top_k=8)
    tree = propose(drafter, row)
    logits = torch.full((tree.num_nodes, VOCAB_SIZE), -torch.inf)
    logits[:, [5, 6]] = 1.0
    row.token_ids.append(0)
    drafter.observe([StepRecord(row, tree, Verdict((0,), (0,), "bonus"), logits)])
    tree = propose(drafter, row)
    assert {tree.token_ids[node] for node in drafts(tree)} == {5, 6}


# --- through the engine, with probes that predict the text ---------------------------------------


def plain_text(job: Job) -> list[int]:
    return run(target("llama"), NullDrafter(), [job])[0].token_ids


def job_of(limit: int = 60, **options: Any) -> Job:
    return Job(prompt_ids(20), SamplingParams(max_new_tokens=limit, seed=3, **options))


def planted(job: Job, text: Sequence[int], **options: Any) -> Result:
    return run(target("llama"), PlantedSDSAT([text], **options), [job])[0]


SAMPLED: list[dict[str, Any]] = [{}, {"temperature": 1.0}]


@pytest.mark.parametrize("sampling", SAMPLED, ids=str)
@pytest.mark.parametrize("options", PLANTED, ids=str)
def test_planted_drafts_are_accepted_and_change_nothing(
    options: dict[str, int], sampling: dict[str, Any]
) -> None:
    """Were a slot read for another place, next to nothing would be accepted."""
    job = job_of(**sampling)
    text = plain_text(job)
    result = planted(job, [*text, *[0] * 20], **options)
    assert result.token_ids == text
    stats = result.request.stats
    # Right first or second in 6 of 7 places: k=1 gains its one token in most (two-step) cycles.
    per_step = {1: 1.4 if options["steps"] == 1 else 1.25, 3: 1.7, 5: 1.8, 8: 1.8}[options["k"]]
    assert stats.acceptance_length > per_step
    assert stats.num_forward_passes <= 1 + len(text), "never more than plain, and one for prefill"
    if options["k"] > 1:
        assert any(s.verdict.path != tuple(range(len(s.verdict.path))) for s in result.steps), (
            "a second-best candidate was accepted, too: the cache had gaps to close"
        )


def test_one_step_needs_fewer_passes_than_two() -> None:
    job = job_of()
    text = [*plain_text(job), *[0] * 20]
    num_steps = [len(planted(job, text, steps=steps, top_k=1).steps) for steps in (1, 2)]
    assert num_steps[0] < 0.9 * num_steps[1]


@pytest.mark.parametrize("options", PLANTED, ids=str)
def test_an_eos_keeps_the_text_before_it(options: dict[str, int]) -> None:
    """Whichever token it is, also inside an accepted block; nothing follows it."""
    job = job_of(30)
    text = plain_text(job)
    num_inside = 0
    for eos in list(dict.fromkeys(text))[5:13]:
        wanted = text[: text.index(eos) + 1]
        result = planted(Job(job.prompt_ids, job.params, (eos,)), text, **options)
        assert (result.token_ids, result.finish_reason) == (wanted, "stop")
        num_inside += result.steps[-1].verdict.num_accepted_tokens > 0
    assert num_inside


@pytest.mark.parametrize("steps", [1, 2])
def test_the_limit_is_met_exactly(steps: int) -> None:
    text = plain_text(job_of(30))
    for limit in range(1, 20):
        result = planted(job_of(limit), text, steps=steps)
        assert (result.token_ids, result.finish_reason) == (text[:limit], "length")


@pytest.mark.parametrize("steps", [1, 2])
def test_the_context_may_fill_up(steps: int) -> None:
    job = Job(prompt_ids(CONTEXT - 20), SamplingParams(max_new_tokens=100))
    text = plain_text(job)
    result = planted(job, text, steps=steps, k=8, budget=70)
    assert (result.token_ids, result.finish_reason) == (text, "length")
    assert len(text) == 20


@pytest.mark.parametrize("steps", [1, 2])
def test_adaptive_tokens_leave_nothing_in_the_cache(steps: int) -> None:
    """After every step the cache holds what a prefill of the committed tokens would."""
    model, job = target("llama"), job_of(25)
    text = plain_text(job)
    caches = []
    original = model.make_cache
    model.make_cache = lambda *args: caches.append(original(*args)) or caches[-1]  # type: ignore[method-assign, func-returns-value]
    seen = 0

    class Looking(PlantedSDSAT):
        def observe(self, records: Sequence[StepRecord]) -> None:
            nonlocal seen
            super().observe(records)
            ids = records[0].row.token_ids[:-1]
            fresh = original(1, len(ids))
            model.prefill(fresh, 0, ids)
            kept, wanted = (c.data[:, :, 0, :, : len(ids)] for c in (caches[0], fresh))
            torch.testing.assert_close(kept, wanted, atol=1e-5, rtol=1e-5)
            seen += 1

    try:
        result = run(model, Looking([text], steps=steps), [job], audit=False)[0]
    finally:
        del model.make_cache  # type: ignore[method-assign]
    assert result.token_ids == text
    assert seen == len(result.steps)


# --- options -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"adaptive_ids": []}, "draftless train sdsat"),
        ({"adaptive_ids": [-1]}, "adaptive_ids"),
        ({"adaptive_ids": [5, 61], "vocab_size": 61}, "are 0 to 60"),
        ({"steps": 3}, "steps=3"),
        ({"k": 0}, "k=0"),
        ({"budget": 1}, "budget=1"),
        ({"top_k": 0}, "top_k=0"),
    ],
    ids=str,
)
def test_bad_options(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SDSATDrafter(**{"adaptive_ids": [ID], **options})
