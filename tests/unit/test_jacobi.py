"""TR-Jacobi: the tree, the guesses, and the twelve bugs of the reference implementation.

The bugs are numbered as in `research/seed-methods.md` 1.3:

1. short paths padded with the root: `test_verify.py`, mutant `root_counted_twice`
2. tokens after an EOS inside a block: `test_verify.py`, mutant `eos_ignored_inside_the_tree`
3. an EOS as the free token noticed one forward later: `test_nothing_follows_an_eos` here
4. `max_new_tokens` overshot: `test_the_limit_is_met_exactly` here
5. no match retrieves the prompt's start: `test_ngram.py`, and `test_no_match_means_no_chain`
6. the oldest match wins: `test_ngram.py`
7. crash on short texts: `test_ngram.py`, and `test_prompts_of_one_token` here
8. the last step is not counted: `test_every_step_is_counted` here
9. leftovers of short paths are the root's logits: `test_guesses_come_from_rejected_nodes_only`
10. one device, one row, one EOS id, no overflow check: `test_stops.py`, the ragged rows of the
    matrix, and `test_the_context_may_fill_up` here
11. prefill computes all logits: `test_target.py`
12. the training script is missing: it is `draftless train msn`, tested in `tests/training`
"""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest
import torch

from draftless.drafters.jacobi import TRJacobiDrafter, jacobi_template, leftover_nodes
from draftless.drafters.ngram import NullDrafter
from draftless.errors import ConfigError
from draftless.layout import tree_layout
from draftless.noise import KeyedNoise
from draftless.params import SamplingParams
from draftless.types import DraftTree, Row, StepRecord, Verdict
from support.driving import Job, RandomPasses, Result, make_row, run
from support.models import CONTEXT, VOCAB_SIZE, prompt_ids, target

PAPER = {"budget": 70, "depth": 5, "top_k": 10}


def propose(drafter: TRJacobiDrafter, row: Row) -> DraftTree:
    (tree,) = drafter.propose([row], RandomPasses())
    return tree


def observe(
    drafter: TRJacobiDrafter, row: Row, tree: DraftTree, path: tuple[int, ...]
) -> torch.Tensor:
    """A step that accepted `path` and drew token 0 after it; returns the logits that were seen."""
    logits = torch.randn(tree.num_nodes, VOCAB_SIZE, generator=torch.Generator().manual_seed(1))
    committed = (*(tree.token_ids[node] for node in path[1:]), 0)
    row.token_ids.extend(committed)
    drafter.observe([StepRecord(row, tree, Verdict(path, committed, "recovered"), logits)])
    return logits


# --- the tree ----------------------------------------------------------------------------------


def test_the_template_is_medusas_tree_and_a_spine() -> None:
    template = jacobi_template(5, 10)
    assert Counter(map(len, template)) == {1: 10, 2: 28, 3: 23, 4: 2, 5: 1}
    assert template[:5] == tuple((0,) * n for n in range(1, 6))
    assert len(set(template)) == 64
    for path in template:
        assert path[:-1] in ((), *template[: template.index(path)]), "parents come first"


@pytest.mark.parametrize(("depth", "top_k"), [(1, 10), (3, 10), (5, 2), (2, 1), (9, 10)])
def test_smaller_templates_are_parts_of_it(depth: int, top_k: int) -> None:
    template = jacobi_template(depth, top_k)
    assert max(map(len, template)) == depth
    assert max(max(path) for path in template) < top_k
    assert set(template) <= {*jacobi_template(5, 10), *((0,) * n for n in range(1, depth + 1))}


def test_the_full_tree_of_the_paper() -> None:
    """63 nodes and one chain of five, if all cells are filled and nothing coincides."""
    drafter = TRJacobiDrafter(**PAPER)
    row = make_row([1, 2, 3, 50, 51, 52, 53, 54, 1, 2, 3])
    drafter.reset(row)
    distinct = [[10 * d + rank for rank in range(10)] for d in range(5)]
    drafter._states[row].guesses = distinct
    tree = propose(drafter, row)
    # The spine's fifth node is ours; the 70th node is the budget.
    assert tree.num_nodes == 70
    assert Counter(tree.layout.depths) == {0: 1, 1: 11, 2: 29, 3: 24, 4: 3, 5: 2}
    chain = [tree.token_ids.index(50)]
    while tree.layout.children[chain[-1]]:
        chain.append(tree.layout.children[chain[-1]][0])
    assert [tree.token_ids[node] for node in chain] == [50, 51, 52, 53, 54]


@pytest.mark.parametrize("budget", [2, 6, 11, 16, 30])
def test_a_budget_keeps_the_spine_then_the_chain_then_the_likeliest(budget: int) -> None:
    row = make_row([1, 2, 3, 50, 51, 52, 53, 54, 1, 2, 3])
    trees = []
    for limit in (budget, 70):
        drafter = TRJacobiDrafter(**{**PAPER, "budget": limit})
        drafter.reset(row)
        drafter._states[row].guesses = [[10 * d + rank for rank in range(10)] for d in range(5)]
        trees.append(propose(drafter, row))
    small, large = trees
    assert small.num_nodes == budget
    assert (small.token_ids, small.parents) == (large.token_ids[:budget], large.parents[:budget])


def test_equal_guesses_cost_one_node() -> None:
    """A retrieved chain that repeats the spine shares its nodes."""
    drafter = TRJacobiDrafter(budget=70, depth=3, retrieval_len=3)
    row = make_row([1, 2, 3, 40, 41, 42, 1, 2, 3])
    drafter.reset(row)
    drafter._states[row].guesses = [[40], [41], [42]]
    assert propose(drafter, row).token_ids == (3, 40, 41, 42)


@pytest.mark.parametrize("max_depth", [0, 1, 2, 4])
def test_nothing_is_deeper_than_can_be_used(max_depth: int) -> None:
    drafter = TRJacobiDrafter(**PAPER)
    row = make_row([1, 2, 3, 50, 51, 52, 53, 54, 1, 2, 3], max_depth=max_depth)
    drafter.reset(row)
    tree = propose(drafter, row)
    assert max(tree.layout.depths) == max_depth


def test_empty_cells_hold_noise_from_the_prefix_on_the_spine_only() -> None:
    drafter = TRJacobiDrafter(**PAPER, retrieval_len=0)
    row = make_row([7, 8, 9, 10])
    drafter.reset(row)
    tree = propose(drafter, row)
    assert tree.parents == (-1, 0, 1, 2, 3, 4)
    assert set(tree.token_ids[1:]) <= {7, 8, 9, 10}


def test_noise_is_the_same_for_the_same_prompt() -> None:
    trees = []
    for _ in range(2):
        drafter, row = TRJacobiDrafter(), make_row(prompt_ids(20))
        drafter.reset(row)
        trees.append([propose(drafter, row) for _ in range(3)])
    assert trees[0] == trees[1]


def test_no_match_means_no_chain() -> None:
    drafter = TRJacobiDrafter(depth=1)
    row = make_row([1, 2, 3, 4, 5, 6, 7])
    drafter.reset(row)
    assert propose(drafter, row).num_nodes == 2, "the root and one noise token"


# --- the guesses -------------------------------------------------------------------------------


def test_of_two_longest_paths_the_first_is_left_over() -> None:
    assert leftover_nodes((-1, 0, 0, 1, 2), 0) == (1, 3)


@pytest.mark.parametrize(
    ("stop", "nodes"), [(0, (1, 2, 5)), (1, (2, 5)), (2, (5,)), (3, (4, 5)), (4, (5,)), (5, ())]
)
def test_leftovers_are_the_longest_path_below_and_then_the_trees_own(
    stop: int, nodes: tuple[int, ...]
) -> None:
    """Each of them stands one place before the guess that it makes: depths go on without a gap."""
    parents = (-1, 0, 1, 0, 3, 2)
    assert leftover_nodes(parents, stop) == nodes
    depths = tree_layout(parents).depths
    assert [depths[n] for n in nodes] == [depths[stop] + d for d in range(1, len(nodes) + 1)]


def test_guesses_come_from_rejected_nodes_only() -> None:
    """Rejected nodes of the best path, in order; never the root's or an accepted node's row."""
    drafter = TRJacobiDrafter(depth=4, top_k=3, retrieval_len=0)
    row = make_row([7, 8, 9, 10])
    drafter.reset(row)
    tree = propose(drafter, row)
    assert tree.parents == (-1, 0, 1, 2, 3)
    logits = observe(drafter, row, tree, (0, 1))
    assert drafter._states[row].guesses == logits[2:].topk(3).indices.tolist()
    following = propose(drafter, row)
    assert following.token_ids[1:4] == tuple(logits[2:].argmax(1).tolist())


def test_nothing_is_left_over_from_a_path_that_was_accepted_whole() -> None:
    drafter = TRJacobiDrafter(depth=2, retrieval_len=0)
    row = make_row([7, 8, 9, 10])
    drafter.reset(row)
    observe(drafter, row, propose(drafter, row), (0, 1, 2))
    assert drafter._states[row].guesses == []


def test_guesses_are_ranked_under_the_noise_of_their_own_positions() -> None:
    drafter = TRJacobiDrafter(depth=3, top_k=4, retrieval_len=0)
    row = make_row([7, 8, 9, 10], temperature=0.8)
    drafter.reset(row)
    logits = observe(drafter, row, propose(drafter, row), (0,))
    keyed, ids = KeyedNoise(4), torch.arange(VOCAB_SIZE)
    # Token 0 was drawn for position 4, so the first guess is for position 5.
    wanted = [
        (logits[1 + d].float() / 0.8 + keyed(5 + d, ids)).topk(4).indices.tolist() for d in range(3)
    ]
    assert drafter._states[row].guesses == wanted


@pytest.mark.parametrize("options", [{"top_k": 5}, {"top_p": 0.9}, {"min_p": 0.1}], ids=str)
def test_guesses_under_truncation_come_from_the_likely_tokens(options: dict[str, Any]) -> None:
    drafter = TRJacobiDrafter(depth=2, top_k=4, retrieval_len=0)
    row = make_row([7, 8, 9, 10], temperature=1.5, **options)
    drafter.reset(row)
    logits = observe(drafter, row, propose(drafter, row), (0,))
    for guesses, scores in zip(drafter._states[row].guesses, logits[1:], strict=True):
        assert set(guesses) <= set(scores.topk(32).indices.tolist())


def decode_with(jobs: list[Job], **options: Any) -> list[Result]:
    return run(target("llama"), TRJacobiDrafter(**options), jobs)


def test_coupling_changes_the_guesses_and_never_the_output() -> None:
    job = Job(prompt_ids(20), SamplingParams(max_new_tokens=40, temperature=1.0, seed=2))
    coupled, plain = (decode_with([job], couple=couple)[0] for couple in (True, False))
    assert coupled.token_ids == plain.token_ids
    trees = [[step.tree for step in result.steps] for result in (coupled, plain)]
    assert trees[0] != trees[1]


# --- the reference's bugs ----------------------------------------------------------------------


def plain_text(job: Job) -> list[int]:
    return run(target("llama"), NullDrafter(), [job])[0].token_ids


def repeating() -> Job:
    """Greedy text that loops, so that drafts are accepted."""
    return Job([11, 9] * 12, SamplingParams(max_new_tokens=60))


def test_nothing_follows_an_eos() -> None:
    """Whichever token is the EOS: inside a block, or the free token of a step."""
    job = repeating()
    text = plain_text(job)
    kinds = set()
    for eos in dict.fromkeys(text):
        wanted = text[: text.index(eos) + 1]
        (result,) = decode_with([Job(job.prompt_ids, job.params, (eos,))])
        assert result.token_ids == wanted
        assert result.finish_reason == "stop"
        last = result.steps[-1]
        node = last.verdict.path[-1]
        kinds.add(last.tree.child_carrying(node, eos) is not None)
    assert False in kinds


def test_the_limit_is_met_exactly() -> None:
    job = repeating()
    text = plain_text(job)
    for limit in range(1, 20):
        short = Job(job.prompt_ids, SamplingParams(max_new_tokens=limit))
        assert decode_with([short])[0].token_ids == text[:limit]


def test_prompts_of_one_token() -> None:
    for token_id in range(0, VOCAB_SIZE, 10):
        job = Job([token_id], SamplingParams(max_new_tokens=8))
        assert decode_with([job])[0].token_ids == plain_text(job)


def test_every_step_is_counted() -> None:
    """The last one too: acceptance length is tokens over steps, and the histogram adds up."""
    (result,) = decode_with([repeating()])
    stats = result.request.stats
    assert stats.num_steps == len(result.steps) == sum(stats.acceptance_histogram)
    assert stats.num_committed_tokens == len(result.token_ids) == 60
    assert stats.acceptance_length == 60 / len(result.steps)
    accepted = sum(n * count for n, count in enumerate(stats.acceptance_histogram))
    assert accepted == stats.num_accepted_tokens == 60 - len(result.steps)
    assert stats.num_forward_passes == len(result.steps) + 1, "one for prefill"
    assert stats.num_draft_tokens == sum(step.tree.num_draft_tokens for step in result.steps)


def test_the_context_may_fill_up() -> None:
    """No slot beyond the last position, no traceback, and the plain text to the end."""
    job = Job(prompt_ids(CONTEXT - 20), SamplingParams(max_new_tokens=100))
    (result,) = decode_with([job], budget=70)
    assert (len(result.token_ids), result.finish_reason) == (20, "length")
    assert result.token_ids == plain_text(job)


@pytest.mark.parametrize(
    "options",
    [{"budget": 1}, {"depth": 0}, {"top_k": 0}, {"retrieval_ngram": 0}, {"retrieval_len": -1}],
    ids=str,
)
def test_bad_options(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError, match=next(iter(options))):
        TRJacobiDrafter(**options)
