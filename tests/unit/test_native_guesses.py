"""The guesses of `auto` in C++ against those in Python: the same trees, gains and weights, number for number."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch

from draftless.drafters.best_first import DOUBT
from draftless.drafters.guesses import Guesses, PythonGuesses
from draftless.drafters.native_guesses import NativeGuesses, _constants, native_successors
from draftless.drafters.priors import COUPLED_WEIGHTS, GREEDY_WEIGHTS
from draftless.drafters.successors import Successors
from draftless.engine import native
from draftless.engine.position_noise import PositionNoise
from draftless.engine.sampling import TokenSampler
from draftless.engine.verify import walk
from draftless.noise import KeyedNoise
from draftless.params import SamplingParams
from draftless.types import DraftTree, Row, StepRecord, Verdict

pytestmark = pytest.mark.skipif(
    not (native.load("draws") and native.load("guesses", _constants())),
    reason="no compiler here",
)

VOCAB_SIZE = 60
ADAPTIVE_IDS = (58, 59)
CPU = torch.device("cpu")
OPTIONS = [
    {},
    {"temperature": 1.0},
    {"temperature": 0.6, "top_p": 0.9},
    {"temperature": 1.3, "top_k": 5},
]


class Pair:
    """One request, guessed in both languages at once; every answer is compared.

    Args:
        memories: of Python and C++, which requests may share.
    """

    def __init__(
        self,
        row: Row,
        memories: tuple[Successors, Any],
        adaptive_ids: Sequence[int] = ADAPTIVE_IDS,
    ) -> None:
        weights = GREEDY_WEIGHTS if row.noise is None else COUPLED_WEIGHTS
        self.both: tuple[Guesses, Guesses] = (
            PythonGuesses(row, memories[0], weights, adaptive_ids),
            NativeGuesses(row, memories[1], weights, adaptive_ids),
        )
        self.look()

    def _same(self, answers: Iterator[Any]) -> Any:
        first, second = answers
        assert first == second
        return first

    def look(self) -> int:
        return int(self._same(one.look() for one in self.both))

    def propose(self, costs: Sequence[float], worth: float, width: int) -> DraftTree:
        gains = self._same(list(one.grow(costs, worth)) for one in self.both)
        assert gains[0] == 1.0
        tree = self._same(one.tree(width) for one in self.both)
        assert isinstance(tree, DraftTree)
        return tree

    def observe(self, record: StepRecord) -> None:
        for one in self.both:
            one.observe(record)
        assert list(self.both[0].weights) == list(self.both[1].weights)


class Talk:
    """What a target says: after each token mostly the same three, so that drafts come true and fail."""

    def __init__(self, seed: int, dtype: torch.dtype = torch.bfloat16) -> None:
        self._draw = torch.Generator().manual_seed(seed)
        self._usual = torch.randn(VOCAB_SIZE, VOCAB_SIZE, generator=self._draw) * 3
        self._dtype = dtype

    def logits(self, tree: DraftTree) -> torch.Tensor:
        usual = self._usual[list(tree.token_ids)]
        noise = torch.randn(usual.shape, generator=self._draw)
        wider = torch.full((tree.num_nodes, VOCAB_SIZE + 3), 99.0, dtype=self._dtype)
        wider[:, :VOCAB_SIZE] = usual + noise
        return wider[:, :VOCAB_SIZE]  # a view, as rows of a batch are


def new_row(options: dict[str, Any], seed: int, length: int = 12) -> Row:
    rng = random.Random(seed)
    params = SamplingParams(seed=seed, **options)
    keyed = KeyedNoise(seed)
    noise = None if params.is_greedy else PositionNoise(keyed, VOCAB_SIZE, CPU)
    return Row(seed, [rng.randrange(20) for _ in range(length)], params, noise)


def step(pair: Pair, row: Row, talk: Talk, costs: Sequence[float], width: int) -> DraftTree:
    """One step as the engine makes it."""
    tree = pair.propose(costs, 1.0, width)
    logits = talk.logits(tree)
    sampler = TokenSampler(row, (), CPU)
    sampler.bind(logits)
    verdict = walk(tree, sampler.draw, lambda _: None)
    row.token_ids.extend(verdict.token_ids)
    pair.observe(StepRecord(row, tree, verdict, logits))
    return tree


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("adaptive_ids", [(), ADAPTIVE_IDS], ids=["no probes", "probes"])
def test_it_is_the_same_tree_number_for_number(
    options: dict[str, Any], adaptive_ids: tuple[int, ...]
) -> None:
    """Over requests that share a memory, at widths that stay below what was grown, and with naps."""
    memories, rng = (Successors(), native_successors()), random.Random(5)
    shapes, widest, num_probes = set(), 0, 0
    for seed in range(4):
        row, talk = new_row(options, seed, length=1 + 8 * seed), Talk(seed // 2)
        pair = Pair(row, memories, adaptive_ids)
        for _ in range(60):
            if rng.random() < 0.1:  # a step without drafting, with or without a look
                row.token_ids.append(rng.randrange(20))
                if rng.random() < 0.5:
                    pair.look()
            row.max_depth = rng.choice([1, 3, 40])
            costs = [rng.choice([0.002, 0.04, 0.3])] * rng.choice([2, 9, 24])
            tree = step(pair, row, talk, costs, rng.choice([2, 5, 24]))
            shapes.add(tree.parents)
            widest = max(widest, tree.num_nodes)
            num_probes += sum(tree.is_probe)
    assert len(shapes) > 20 and widest > 12, "trees of all kinds were compared"
    assert bool(num_probes) == bool(adaptive_ids)


def test_where_all_is_sure_a_walk_may_stop_all_the_same() -> None:
    """A text that goes round in circles: probes stand where the chance to stop is next to none."""
    row, talk = new_row({}, 0), Talk(0)
    talk._usual = torch.full((VOCAB_SIZE, VOCAB_SIZE), -20.0)
    talk._usual[torch.arange(VOCAB_SIZE), (torch.arange(VOCAB_SIZE) + 1) % 7] = 20.0
    row.max_depth = 2
    pair = Pair(row, (Successors(), native_successors()))
    for _ in range(400):
        tree = step(pair, row, talk, [1e-4] * 16, 16)
    assert sum(tree.is_probe) and tree.scores[-1] == DOUBT


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_logits_of_other_types(dtype: torch.dtype) -> None:
    row, talk = new_row({"temperature": 1.0}, 3), Talk(3, dtype)
    row.max_depth = 9
    pair = Pair(row, (Successors(), native_successors()))
    for _ in range(20):
        step(pair, row, talk, [0.02] * 12, 12)


@pytest.mark.parametrize("strange", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_logits_that_are_not_finite(strange: float, temperature: float) -> None:
    """What is drawn then, `remove_invalid_values` decides; here it is the best of what is sound."""
    row, talk = new_row({"temperature": temperature}, 2), Talk(2)
    row.max_depth = 9
    pair = Pair(row, (Successors(), native_successors()))
    for turn in range(40):
        tree = pair.propose([0.02] * 12, 1.0, 12)
        logits = talk.logits(tree)
        token_id = int(logits[0].argmax())
        logits[turn % 2 :: 2, turn % 5 :: 5] = strange
        logits[-1] = strange
        row.token_ids.append(token_id)
        pair.observe(StepRecord(row, tree, Verdict((0,), (token_id,), "bonus"), logits))


@pytest.mark.parametrize("most_entries", [3, 20, 100])
def test_what_is_old_is_forgotten_at_the_same_time(most_entries: int) -> None:
    memories = Successors(most_entries), native_successors(most_entries)
    for seed in range(2):
        row, talk = new_row({}, seed), Talk(7)
        row.max_depth = 9
        pair = Pair(row, memories)
        for _ in range(40):
            step(pair, row, talk, [0.02] * 12, 12)


def test_threads_may_share_a_memory() -> None:
    """Python runs on while C++ works: readers and writers of one table must wait for each other."""
    memory = native_successors(40)

    def write(seed: int) -> int:
        row, talk = new_row({}, seed), Talk(seed)
        row.max_depth = 9
        guesses = NativeGuesses(row, memory, GREEDY_WEIGHTS, ())
        for _ in range(300):
            guesses.grow([0.002] * 24, 1.0)
            tree = guesses.tree(24)
            logits = talk.logits(tree)
            token_id = int(logits[0].argmax())
            row.token_ids.append(token_id)
            guesses.observe(StepRecord(row, tree, Verdict((0,), (token_id,), "bonus"), logits))
        return len(row.token_ids)

    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(write, range(4))) == [312] * 4


def test_another_tree_than_the_proposed_one_is_refused() -> None:
    row, talk = new_row({}, 0), Talk(0)
    guesses = NativeGuesses(row, native_successors(), GREEDY_WEIGHTS, ())
    with pytest.raises(RuntimeError, match="before grow"):
        guesses.tree(3)
    guesses.grow([0.01] * 9, 1.0)
    tree = guesses.tree(9)
    logits = talk.logits(DraftTree((*tree.token_ids, 1), (*tree.parents, 0)))
    with pytest.raises(RuntimeError, match="not the step of the tree"):
        guesses.observe(StepRecord(row, tree, Verdict((0,), (1,), "bonus"), logits))
