"""Token Recycling: the template, the table, the trees and the coupling."""

from __future__ import annotations

import gc
from collections.abc import Sequence
from typing import Any

import pytest
import torch

from draftless.drafters.recycling import (
    COUPLED_RANKS,
    GREEDY_RANKS,
    RecyclingDrafter,
    SuccessorTable,
    nodes_beside,
    recycling_template,
)
from draftless.errors import ConfigError
from draftless.noise import KeyedNoise
from draftless.params import SamplingParams
from draftless.types import DraftTree, Row, StepRecord, Verdict
from support.driving import Job, RandomPasses, Result, make_row, run
from support.models import VOCAB_SIZE, prompt_ids, target

PAPER: dict[str, Any] = {"learn_prompt": False, "borrow": False}


def propose(drafter: RecyclingDrafter, row: Row) -> DraftTree:
    (tree,) = drafter.propose([row], RandomPasses())
    return tree


def logits_of(*successors: Sequence[int]) -> torch.Tensor:
    """`[N, V]` logits: row `i` ranks `successors[i]` first, and then the other ids downwards."""
    rows = torch.arange(VOCAB_SIZE).neg().float().repeat(len(successors), 1)
    for row, ids in zip(rows, successors, strict=True):
        row[list(ids)] = torch.arange(len(ids), 0, -1).float()
    return rows


def observe(
    drafter: RecyclingDrafter,
    row: Row,
    tree: DraftTree,
    logits: torch.Tensor,
    path: tuple[int, ...] = (0,),
    drawn: int = 0,
) -> None:
    """A step that accepted `path` and drew `drawn` after it."""
    committed = (*(tree.token_ids[node] for node in path[1:]), drawn)
    row.token_ids.extend(committed)
    drafter.observe([StepRecord(row, tree, Verdict(path, committed, "recovered"), logits)])


def taught(rows: dict[int, Sequence[int]], row: Row, **options: Any) -> RecyclingDrafter:
    """A drafter that saw these successors; `row` stands as it did before."""
    drafter = RecyclingDrafter(**{**PAPER, **options})
    drafter.reset(row)
    observe(drafter, row, DraftTree.chain(list(rows)), logits_of(*rows.values()))
    row.token_ids.pop()
    return drafter


# --- the template ------------------------------------------------------------------------------


def test_the_template_holds_the_likeliest_paths_by_depth() -> None:
    """0.6, .36, .216, .13, .08 (rank 1), .078; then twice .048 (one rank 1 in two), and .047."""
    assert recycling_template(7, 8, 12) == ((0,), (1,), *[(0,) * n for n in range(2, 6)])
    assert set(recycling_template(10, 8, 12)) - set(recycling_template(7, 8, 12)) == {
        (0, 1),
        (1, 0),
        (0,) * 6,
    }


def test_a_template_for_sampling_is_wider() -> None:
    """.35, .1225, .09, .045, .043; then twice .0315."""
    wanted = ((0,), (1,), (2,), (0, 0), (0, 1), (1, 0), (0, 0, 0))
    assert recycling_template(8, 8, 12, COUPLED_RANKS) == wanted


@pytest.mark.parametrize(("budget", "top_k", "depth"), [(80, 8, 12), (16, 8, 3), (40, 2, 6)])
def test_templates_are_trees_within_their_limits(budget: int, top_k: int, depth: int) -> None:
    template = recycling_template(budget, top_k, depth)
    assert len(template) == len(set(template)) == budget - 1
    assert max(map(len, template)) <= depth
    assert max(map(max, template)) < top_k
    for index, path in enumerate(template):
        assert path[:-1] in ((), *template[:index]), "parents come first"
        assert path[-1] == 0 or (*path[:-1], path[-1] - 1) in template[:index], "ranks without gaps"


@pytest.mark.parametrize("budget", [2, 5, 16, 40])
def test_a_smaller_budget_keeps_a_part(budget: int) -> None:
    assert set(recycling_template(budget, 8, 12)) < set(recycling_template(80, 8, 12))


def test_a_template_that_is_full_ends() -> None:
    assert recycling_template(80, 2, 2) == ((0,), (1,), (0, 0), (0, 1), (1, 0), (1, 1))


# --- the table ---------------------------------------------------------------------------------


def successors(table: SuccessorTable, token_id: int) -> list[int]:
    ids, logits = table.rows([token_id])
    return [int(i) for i, x in zip(ids[0], logits[0], strict=True) if x > -float("inf")]


def test_the_table_keeps_ids_and_logits_the_likeliest_first() -> None:
    table = SuccessorTable(3)
    logits = torch.randn(2, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    table.learn([5, 7], logits)
    ids, values = table.rows([7, 5])
    wanted = logits[[1, 0]].topk(3)
    assert ids.tolist() == wanted.indices.tolist()
    assert values.tolist() == wanted.values.tolist()


def test_later_rows_replace_earlier_ones_in_one_step_and_over_steps() -> None:
    table = SuccessorTable(2)
    table.learn([5, 7, 5], logits_of([1, 2], [3, 4], [8, 9]))
    assert successors(table, 5) == [8, 9]
    table.learn([7], logits_of([6, 1]))
    assert (successors(table, 7), successors(table, 5)) == ([6, 1], [8, 9])


def test_an_impossible_token_is_no_successor() -> None:
    table = SuccessorTable(3)
    logits = torch.full((1, VOCAB_SIZE), -torch.inf)
    logits[0, 9] = 1.0
    table.learn([5], logits)
    assert successors(table, 5) == [9]
    assert successors(table, 6) == []


def test_the_table_grows() -> None:
    """Beyond its first rows, and with more successors than there are tokens."""
    table = SuccessorTable(VOCAB_SIZE + 5)
    for token_id in range(1000):
        table.learn([token_id], logits_of([token_id % VOCAB_SIZE]))
    for token_id in range(1000):
        found = successors(table, token_id)
        assert found[0] == token_id % VOCAB_SIZE
        assert len(found) == VOCAB_SIZE


def test_a_text_teaches_what_followed_the_newest_first() -> None:
    table = SuccessorTable(2)
    table.learn([1], logits_of([4, 5]))
    table.learn_text([1, 2, 3, 2, 6, 2, 3, 2, 7, 9])
    assert successors(table, 2) == [7, 3], "each follower once, and no more than there is room for"
    assert successors(table, 1) == [4, 5], "what the model said stays"
    assert successors(table, 9) == [], "nothing followed"


# --- the tree ----------------------------------------------------------------------------------

CHAIN: dict[int, Sequence[int]] = {1: [2, 3], 2: [4, 5], 3: [6, 7], 4: [8, 9]}


def test_an_exact_tree() -> None:
    """Template of seven nodes: ranks 0 to depth 5, and rank 1 at depth 1; 8 has no row."""
    row = make_row([50, 1])
    drafter = taught(CHAIN, row, budget=7)
    tree = propose(drafter, row)
    assert tree.token_ids == (1, 2, 3, 4, 8)
    assert tree.parents == (-1, 0, 0, 1, 3)
    assert tree.sources == ("", *["recycled"] * 4)


def test_a_wider_exact_tree() -> None:
    row = make_row([50, 1])
    tree = propose(taught(CHAIN, row, top_k=2, depth=2), row)
    assert tree.token_ids == (1, 2, 3, 4, 5, 6, 7)
    assert tree.parents == (-1, 0, 0, 1, 1, 2, 2)


def test_a_gap_ends_its_own_branch_only() -> None:
    row = make_row([50, 1])
    tree = propose(taught({1: [2, 3], 2: [4, 5], 5: [8, 9]}, row, top_k=2, depth=3), row)
    # 3 and 4 have no rows.
    assert tree.token_ids == (1, 2, 3, 4, 5, 8, 9)
    assert tree.parents == (-1, 0, 0, 1, 1, 4, 4)


def test_an_unknown_token_has_no_children() -> None:
    """The prompt teaches nothing unless it is asked to."""
    drafter, row = RecyclingDrafter(**PAPER), make_row([3, 1, 2, 3])
    drafter.reset(row)
    assert propose(drafter, row) == DraftTree((3,), (-1,), sources=("",))


@pytest.mark.parametrize("max_depth", [0, 1, 2, 3, 20])
@pytest.mark.parametrize("budget", [2, 9, 80])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_budget_and_depths_are_kept(max_depth: int, budget: int, temperature: float) -> None:
    """With a full table: as deep as may be, as many nodes as may be, and no equal siblings."""
    row = make_row([9], temperature=temperature, max_depth=max_depth)
    rows = {t: [(7 * t + r) % VOCAB_SIZE for r in range(1, 9)] for t in range(VOCAB_SIZE)}
    tree = propose(taught(rows, row, budget=budget, depth=6), row)
    ranks = COUPLED_RANKS if temperature else GREEDY_RANKS
    paths = recycling_template(budget, 8, min(6, max_depth), ranks)
    assert tree.num_nodes == 1 + len(paths)
    assert sorted(tree.layout.depths[1:]) == sorted(map(len, paths))
    siblings = [[tree.token_ids[c] for c in nodes] for nodes in tree.layout.children]
    assert all(len(set(ids)) == len(ids) for ids in siblings)


def test_a_row_learns_from_every_node_but_probes() -> None:
    """Rejected nodes too; the later of equal tokens wins, wherever it hangs."""
    drafter, row = RecyclingDrafter(**PAPER, budget=4), make_row([1])
    drafter.reset(row)
    tree = DraftTree((1, 2, 3, 2, 4), (-1, 0, 0, 2, 0), (False, False, False, False, True))
    observe(drafter, row, tree, logits_of([9], [10], [11], [12], [13]), path=(0, 1), drawn=3)
    for token_id, first in ((1, 9), (2, 12), (3, 11)):
        row.token_ids[-1] = token_id
        assert propose(drafter, row).token_ids[1] == first
    row.token_ids[-1] = 4
    assert propose(drafter, row).num_nodes == 1


def test_a_prompt_gives_the_first_tree() -> None:
    drafter, row = RecyclingDrafter(budget=4), make_row([5, 6, 7, 5])
    drafter.reset(row)
    assert propose(drafter, row).token_ids == (5, 6, 7, 5)


# --- borrowing ---------------------------------------------------------------------------------


def test_nodes_beside_are_those_of_the_depth_siblings_first() -> None:
    parents = (-1, 0, 0, 1, 2, 2)
    assert nodes_beside(parents, (0,)) == (1, 2)
    assert nodes_beside(parents, (0, 2)) == (4, 5, 3)
    assert nodes_beside(parents, (0, 2, 4)) == ()


@pytest.mark.parametrize(("borrow", "first"), [(True, (11,)), (False, ())])
def test_a_drawn_token_without_a_row_borrows(borrow: bool, first: tuple[int, ...]) -> None:
    drafter = RecyclingDrafter(**{**PAPER, "borrow": borrow}, budget=2)
    row = make_row([1])
    drafter.reset(row)
    tree = DraftTree((1, 2, 3, 4), (-1, 0, 1, 0), (False, False, False, False))
    # After node 1 token 20 is drawn where token 3 was drafted.
    observe(drafter, row, tree, logits_of([9], [10], [11], [12]), path=(0, 1), drawn=20)
    assert propose(drafter, row).token_ids == (20, *first)


def test_where_nothing_stands_beside_the_node_itself_lends() -> None:
    drafter = RecyclingDrafter(learn_prompt=False, budget=2)
    row = make_row([1])
    drafter.reset(row)
    observe(drafter, row, DraftTree.chain([1]), logits_of([9]), drawn=20)
    assert propose(drafter, row).token_ids == (20, 9)


def test_nobody_borrows_from_a_probe_or_over_a_row_of_their_own() -> None:
    drafter = RecyclingDrafter(learn_prompt=False, budget=2)
    row = make_row([1])
    drafter.reset(row)
    tree = DraftTree((1, 2, 3, 4), (-1, 0, 0, 0), (False, True, False, False))
    observe(drafter, row, tree, logits_of([9], [10], [11], [12]), drawn=20)
    assert propose(drafter, row).token_ids == (20, 11)
    observe(drafter, row, tree, logits_of([9], [10], [13], [12]), drawn=20)
    assert propose(drafter, row).token_ids == (20, 11)


# --- tables of requests ------------------------------------------------------------------------


@pytest.mark.parametrize("keep_table", [False, True])
def test_a_table_belongs_to_its_row_unless_it_is_kept(keep_table: bool) -> None:
    first, second = make_row([1]), make_row([1])
    drafter = taught({1: [2]}, first, budget=2, keep_table=keep_table)
    drafter.reset(second)
    assert propose(drafter, first).token_ids == (1, 2)
    assert propose(drafter, second).token_ids == ((1, 2) if keep_table else (1,))


def test_a_finished_request_leaves_nothing_behind() -> None:
    row = make_row([1])
    drafter = taught({1: [2]}, row)
    assert len(drafter._tables) == 1
    del row
    gc.collect()
    assert len(drafter._tables) == 0


def decode_with(jobs: list[Job], **options: Any) -> list[Result]:
    return run(target("llama"), RecyclingDrafter(**options), jobs)


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_kept_table_changes_the_drafts_and_never_the_output(temperature: float) -> None:
    params = SamplingParams(max_new_tokens=30, temperature=temperature, seed=2)
    drafter = RecyclingDrafter(keep_table=True)
    first, again = (
        run(target("llama"), drafter, [Job(prompt_ids(20), params)])[0] for _ in range(2)
    )
    assert first.token_ids == again.token_ids
    assert first.steps[0].tree != again.steps[0].tree


# --- sampling ----------------------------------------------------------------------------------


def test_successors_are_ranked_under_the_noise_of_their_own_positions() -> None:
    row = make_row([7, 8, 1], temperature=0.8)
    rows = {t: [(7 * t + r) % VOCAB_SIZE for r in range(1, 9)] for t in range(VOCAB_SIZE)}
    drafter = taught(rows, row, top_k=2, depth=2)
    keyed, logits = KeyedNoise(4), logits_of(*rows.values())

    def best(token_id: int, position: int) -> list[int]:
        noisy = logits[token_id] / 0.8 + keyed(position, torch.arange(VOCAB_SIZE))
        return noisy.topk(2).indices.tolist()

    first = best(1, 3)
    assert propose(drafter, row).token_ids == (1, *first, *best(first[0], 4), *best(first[1], 4))


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_successors_under_truncation_come_from_the_likely_tokens(options: dict[str, Any]) -> None:
    """At this temperature the noise alone decides, so all 64 tokens would have their turn."""
    row = make_row([50, 1], temperature=1000.0, **options)
    rows = {t: range(VOCAB_SIZE) for t in range(VOCAB_SIZE)}
    tree = propose(taught(rows, row), row)
    assert max(tree.token_ids[1:]) < 32
    free = make_row([50, 1], temperature=1000.0)
    assert max(propose(taught(rows, free), free).token_ids[1:]) >= 32


def test_without_coupling_the_likeliest_come_first() -> None:
    row = make_row([50, 1], temperature=1.0)
    assert propose(taught(CHAIN, row, budget=7, couple=False), row).token_ids == (1, 2, 3, 4, 8)


def test_coupling_changes_the_drafts_and_never_the_output() -> None:
    job = Job(prompt_ids(20), SamplingParams(max_new_tokens=40, temperature=1.0, seed=2))
    coupled, plain = (decode_with([job], couple=couple)[0] for couple in (True, False))
    assert coupled.token_ids == plain.token_ids
    assert [s.tree for s in coupled.steps] != [s.tree for s in plain.steps]
    assert len(coupled.steps) < len(plain.steps)


@pytest.mark.parametrize("options", [{"budget": 1}, {"depth": 0}, {"top_k": 0}], ids=str)
def test_bad_options(options: dict[str, int]) -> None:
    ((name, value),) = options.items()
    with pytest.raises(ConfigError, match=f"{name}={value} of recycling is below"):
        RecyclingDrafter(**options)
