"""Random trees through tiny models: logits, commits, and drafters that never fail."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from draftless.drafters.ngram import NgramIndex
from draftless.drafters.registry import DRAFTERS
from draftless.engine.position_noise import PositionNoise
from draftless.engine.tree import prune
from draftless.engine.verify import walk
from draftless.noise import KeyedNoise
from draftless.params import SamplingParams
from draftless.types import DraftTree, Row, StepRecord
from support.drafters import registered
from support.driving import RandomPasses
from support.models import VOCAB_SIZE, stock_model, target
from support.trees import draft_trees, node_paths

TOLERANCE = 1e-5  # transformers computes norms, rotations and softmax in fp32 even in fp64 models
FEW = settings(max_examples=12)
PROMPTS = st.lists(st.integers(0, VOCAB_SIZE - 1), min_size=1, max_size=20)
TREES = draft_trees(VOCAB_SIZE, max_nodes=14)


def with_root(tree: DraftTree, root: int) -> DraftTree:
    return DraftTree((root, *tree.token_ids[1:]), tree.parents, tree.is_probe)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma2", "gpt_neox"])
@FEW
@given(prompt=PROMPTS, tree=TREES)
@torch.inference_mode()
def test_each_node_has_the_logits_of_its_own_path(
    family: str, prompt: list[int], tree: DraftTree
) -> None:
    model = target(family)
    tree = with_root(tree, prompt[-1])
    cache = model.make_cache(1, 8)
    model.prefill(cache, 0, prompt[:-1])
    logits = model.forward(cache, [tree.token_ids], [tree.layout])[0]
    for node, path in enumerate(node_paths(tree)):
        ids = torch.tensor([[*prompt, *path]])
        wanted = stock_model(family)(ids).logits[0, -1]
        torch.testing.assert_close(logits[node], wanted, atol=TOLERANCE, rtol=TOLERANCE)


@pytest.mark.parametrize("family", ["llama", "mistral", "gpt_neox"])
@FEW
@given(prompts=st.lists(PROMPTS, min_size=2, max_size=3), tree=TREES, data=st.data())
@torch.inference_mode()
def test_committing_a_path_is_prefilling_it(
    family: str, prompts: list[list[int]], tree: DraftTree, data: st.DataObject
) -> None:
    """In every row of a ragged batch, down to the numbers in the cache."""
    model = target(family)
    cache = model.make_cache(len(prompts), 4)
    for row, prompt in enumerate(prompts):
        model.prefill(cache, row, prompt[:-1])
    trees = [with_root(tree, prompt[-1]) for prompt in prompts]
    model.forward(cache, [t.token_ids for t in trees], [t.layout for t in trees])
    for row, prompt in enumerate(prompts):
        node = data.draw(st.integers(0, tree.num_nodes - 1))
        path = sorted(tree.layout.mask[node].nonzero()[:, 0].tolist())
        cache.commit(row, path)
        ids = [*prompt[:-1], *(trees[row].token_ids[n] for n in path)]
        fresh = model.make_cache(1, len(ids))
        model.prefill(fresh, 0, ids)
        torch.testing.assert_close(
            cache.data[:, :, row, :, : len(ids)],
            fresh.data[:, :, 0, :, : len(ids)],
            atol=TOLERANCE,
            rtol=TOLERANCE,
        )


@pytest.mark.parametrize("name", DRAFTERS)
@settings(max_examples=40)
@given(data=st.data())
def test_drafters_never_fail_and_keep_their_contract(name: str, data: st.DataObject) -> None:
    """Any short text over few tokens, any draws, any room; several rows side by side."""
    drafter = registered(name)
    temperature = data.draw(st.sampled_from([0.0, 0.7]))
    top_k = data.draw(st.sampled_from([0, 3]))
    noise = PositionNoise(KeyedNoise(1), VOCAB_SIZE, torch.device("cpu")) if temperature else None
    params = SamplingParams(temperature=temperature, top_k=top_k, seed=1)
    rows = [
        Row(index, data.draw(st.lists(st.integers(0, 3), min_size=1, max_size=9)), params, noise)
        for index in range(data.draw(st.integers(1, 3)))
    ]
    for row in rows:
        drafter.reset(row)
    for _ in range(data.draw(st.integers(1, 6))):
        records = []
        for row in rows:
            row.max_depth = data.draw(st.integers(0, 8))
        for row, tree in zip(rows, drafter.propose(rows, RandomPasses()), strict=True):
            assert tree.token_ids[0] == row.token_ids[-1]
            assert max(tree.layout.depths) <= row.max_depth
            assert all(0 <= token_id < VOCAB_SIZE for token_id in tree.token_ids)
            tree = prune(tree, row.max_depth)
            draws = data.draw(st.lists(st.integers(0, 3), min_size=9, max_size=9))
            verdict = walk(tree, lambda _, path, d=draws: d[len(path)], lambda _: None)
            row.token_ids.extend(verdict.token_ids)
            logits = torch.randn(tree.num_nodes, VOCAB_SIZE)
            records.append(StepRecord(row, tree, verdict, logits))
        drafter.observe(records)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=30), st.integers(1, 4), st.integers(1, 5))
def test_lookup_against_brute_force(ids: list[int], max_ngram: int, count: int) -> None:
    """The longest suffix that occurs earlier, its newest occurrence, what follows it."""
    wanted: list[int] = []
    for length in range(min(max_ngram, len(ids) - 1), 0, -1):
        suffix = ids[-length:]
        begins = [b for b in range(len(ids) - length) if ids[b : b + length] == suffix]
        if begins:
            after = begins[-1] + length
            read = [*ids]
            while len(read) < after + count:  # a match near the end is read on into itself
                read.append(read[len(read) - (len(ids) - after)])
            wanted = read[after : after + count]
            break
    index = NgramIndex(max_ngram)
    for end in range(1, len(ids)):  # the index grows token by token
        index.continuation(ids[:end], count)
    assert index.continuation(ids, count) == wanted
