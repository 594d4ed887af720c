"""The law, second proof: exhaustive forking, no statistics (peers.md 3.4).

The draw is replaced by a fork over all outcomes with their probabilities, so that running the
walk with its processors, warpers and stops over and over gives the exact law of the text. It must
be the product of the conditionals, here made from `transformers`' own processors. The length is at
least the depth of the trees plus two; with less, a bonus from the wrong row goes unseen.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as hf

from draftless.drafters.growth import TreeGrowth
from draftless.engine import sampling
from draftless.engine.position_noise import PositionNoise
from draftless.engine.sampling import TokenSampler
from draftless.engine.stops import StopChecker
from draftless.engine.verify import walk
from draftless.noise import KeyedNoise
from draftless.params import SamplingParams
from draftless.types import DraftTree, Row, Verdict
from support.nucleus import nucleus_of_sdsat

VOCAB = 3
DEPTH = 3
LENGTH = DEPTH + 2
PROMPT = (1, 0)
CPU = torch.device("cpu")
MARKOV = 1.5 * torch.randn(
    VOCAB, VOCAB, VOCAB, dtype=torch.float64, generator=torch.Generator().manual_seed(3)
)  # [second last, last, next] logits

Law = dict[tuple[int, ...], float]
Trees = Callable[[Sequence[int]], DraftTree]


def logits_of(tree: DraftTree, committed: Sequence[int]) -> torch.Tensor:  # [N, V]
    """What a model with an exact tree mask computes: each node sees its own path."""
    paths = [list(committed)]
    for node in range(1, tree.num_nodes):
        paths.append([*paths[tree.parents[node]], tree.token_ids[node]])
    return torch.stack([MARKOV[path[-2], path[-1]] for path in paths])


# --- trees -------------------------------------------------------------------------------------


def full_binary(ids: Sequence[int]) -> DraftTree:
    return DraftTree((ids[-1], 0, 1, 2, 0, 1, 2, 0), (-1, 0, 0, 1, 1, 2, 2, 4), ())


def with_probes(ids: Sequence[int]) -> DraftTree:
    """A probe before its draft twin, a chain of probes, and equal siblings."""
    return DraftTree(
        (ids[-1], 1, 1, 0, 2, 1, 0, 1),
        (-1, 0, 0, 1, 2, 2, 0, 5),
        (False, True, False, True, False, False, False, False),
    )


def changing(ids: Sequence[int]) -> DraftTree:
    """The tree depends on the text: nothing, a chain or a bush, of the least likely tokens too."""
    guess = int(MARKOV[ids[-2], ids[-1]].argmin())
    if len(ids) % 3 == 0:
        return DraftTree.chain([ids[-1]])
    if len(ids) % 3 == 1:
        return DraftTree.chain([ids[-1], guess, (guess + 1) % VOCAB, ids[-1]])
    return DraftTree((ids[-1], guess, guess, (guess + 2) % VOCAB, 0), (-1, 0, 0, 0, 3), ())


def of_sdsat(ids: Sequence[int]) -> DraftTree:
    """Drafts with chains of probes under them, as its planner grows them."""
    first, second = ids[-2] % 2, (ids[-1] + 1) % 3
    growth = TreeGrowth([[(first, 0.6), (2, 0.3)], [(second, 0.7)], [(1, 0.5)]], [0.8, 0.7], 3)
    growth.spend(8)
    return growth.tree(ids[-1], [2, 0])


TREES = [full_binary, with_probes, changing, of_sdsat]
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "top-k": {"temperature": 0.7, "top_k": 2},
    "top-p": {"top_p": 0.8, "min_p": 0.15},
    "processors": {"repetition_penalty": 1.7, "bad_words_ids": [[0, 0, 1], [1, 2, 1]]},
    "everything": {"repetition_penalty": 0.6, "bad_words_ids": [[2, 0]], "typical_p": 0.9},
}
EOS = {"none": (), "some": (2,)}


def reference_processors(options: dict[str, Any]) -> LogitsProcessorList:
    """Written out by hand, in the order of `transformers`."""
    found = LogitsProcessorList()
    if "repetition_penalty" in options:
        found.append(hf.RepetitionPenaltyLogitsProcessor(options["repetition_penalty"]))
    if "bad_words_ids" in options:
        found.append(hf.NoBadWordsLogitsProcessor(options["bad_words_ids"]))
    if "temperature" in options:
        found.append(hf.TemperatureLogitsWarper(options["temperature"]))
    if "top_k" in options:
        found.append(hf.TopKLogitsWarper(options["top_k"]))
    if "top_p" in options:
        found.append(hf.TopPLogitsWarper(options["top_p"]))
    if "min_p" in options:
        found.append(hf.MinPLogitsWarper(options["min_p"]))
    if "typical_p" in options:
        found.append(hf.TypicalLogitsWarper(options["typical_p"]))
    return found


def product_of_conditionals(options: dict[str, Any], eos: Sequence[int]) -> Law:
    processors, law = reference_processors(options), {}

    def extend(text: tuple[int, ...], weight: float) -> None:
        if len(text) == LENGTH or (text and text[-1] in eos):
            law[text] = weight
            return
        ids = [*PROMPT, *text]
        scores = processors(torch.tensor([ids]), MARKOV[ids[-2], ids[-1]][None].clone())
        for token_id, p in enumerate(scores.softmax(-1)[0].tolist()):
            if p:
                extend((*text, token_id), weight * p)

    extend((), 1.0)
    return law


# --- forking -----------------------------------------------------------------------------------


class Fork:
    """Chooses outcomes by a script and notes what else was possible."""

    def __init__(self) -> None:
        self._script: list[int] = []
        self._sizes: list[int] = []
        self.weight = 1.0

    def choose(self, scores: torch.Tensor) -> int:  # [n] float64, warped, without noise
        chances = scores.softmax(0)
        possible = chances.nonzero()[:, 0]
        depth = len(self._sizes)
        if depth == len(self._script):
            self._script.append(0)
        self._sizes.append(len(possible))
        choice = int(possible[self._script[depth]])
        self.weight *= float(chances[choice])
        return choice

    def next(self) -> bool:
        """Go on to the next combination of outcomes, if there is one."""
        while self._script and self._script[-1] + 1 == self._sizes[len(self._script) - 1]:
            self._script.pop()
        if not self._script:
            return False
        self._script[-1] += 1
        self._sizes, self.weight = [], 1.0
        return True


class NoNoise(PositionNoise):
    """Leaves the scores as they are, for `Fork` to choose by."""

    def __call__(self, *_: Any) -> torch.Tensor:
        return torch.zeros(())

    def draw(self, *_: Any) -> None:
        """By no operator, which would choose itself."""


def forked_law(
    trees: Trees,
    options: dict[str, Any],
    eos: Sequence[int],
    monkeypatch: pytest.MonkeyPatch,
    verify: Callable[..., Verdict] = walk,
) -> Law:
    fork, law = Fork(), {}
    monkeypatch.setattr(sampling, "lowest_argmax", fork.choose)
    params = SamplingParams(**{"max_new_tokens": LENGTH, "temperature": 1.0, **options})
    while True:
        row = Row(0, PROMPT, params, NoNoise(KeyedNoise(0), VOCAB, CPU))
        sampler, stops = TokenSampler(row, eos, CPU), StopChecker(row, eos, None, None, CPU)
        reason = None
        while reason is None:
            tree = trees(row.token_ids)
            sampler.bind(logits_of(tree, row.token_ids))
            verdict = verify(tree, sampler.draw, stops.push)
            row.token_ids.extend(verdict.token_ids)
            reason = verdict.finish_reason
        text = tuple(row.token_ids[len(PROMPT) :])
        law[text] = law.get(text, 0.0) + fork.weight
        if not fork.next():
            return law


def distance(law: Law, other: Law) -> float:
    """The largest difference of the probability of a text."""
    return max(abs(law.get(text, 0.0) - other.get(text, 0.0)) for text in {*law, *other})


@pytest.mark.parametrize("eos", EOS)
@pytest.mark.parametrize("options", OPTIONS)
@pytest.mark.parametrize("trees", TREES)
def test_the_law_is_the_product_of_conditionals(
    trees: Trees, options: str, eos: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    law = forked_law(trees, OPTIONS[options], EOS[eos], monkeypatch)
    assert sum(law.values()) == pytest.approx(1.0, abs=1e-12)
    assert distance(law, product_of_conditionals(OPTIONS[options], EOS[eos])) < 1e-12


# --- what the proof must reject ----------------------------------------------------------------


def redraw_after_mismatch(tree: DraftTree, draw: Any, stop: Any) -> Verdict:
    def twice(node: int, path_ids: Sequence[int]) -> int:
        token_id = draw(node, path_ids)
        if tree.layout.children[node] and tree.child_carrying(node, token_id) is None:
            return draw(node, path_ids)
        return token_id

    return walk(tree, twice, stop)


def bonus_from_the_parents_row(tree: DraftTree, draw: Any, stop: Any) -> Verdict:
    def above(node: int, path_ids: Sequence[int]) -> int:
        is_leaf = node and not tree.layout.children[node]
        return draw(tree.parents[node] if is_leaf else node, path_ids)

    return walk(tree, above, stop)


def processors_miss_the_path(tree: DraftTree, draw: Any, stop: Any) -> Verdict:
    return walk(tree, lambda node, _: draw(node, ()), stop)


def eos_ignored_inside_the_tree(tree: DraftTree, draw: Any, stop: Any) -> Verdict:
    verdict = walk(tree, draw, lambda _: None)
    return replace(verdict, finish_reason=[stop(t) for t in verdict.token_ids][-1])


@pytest.mark.parametrize(
    ("parents", "wanted"),
    [
        ((-1, 0), 0.75),  # one path: 2p - p^2
        ((-1, 0, 1, 1), 0.875),  # two paths through the same node: two tries
        ((-1, 0, 1, 1, 1), 0.9375),
    ],
)
@pytest.mark.parametrize("is_exact", [True, False])
def test_the_nucleus_rule_of_sdsat_favours_drafts(
    parents: tuple[int, ...], wanted: float, is_exact: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A draft that the target gives one half comes out much more often; with the walk, one half."""
    monkeypatch.setitem(globals(), "MARKOV", HALVES)
    children = (0, 1, 2)[: len(parents) - 2]

    def trees(ids: Sequence[int]) -> DraftTree:
        return DraftTree((ids[-1], 0, *children), parents)

    verify = walk if is_exact else nucleus_of_sdsat
    law = forked_law(trees, {"max_new_tokens": 1}, (), monkeypatch, verify)
    of_draft = sum(weight for text, weight in law.items() if text[0] == 0)
    assert of_draft == pytest.approx(0.5 if is_exact else wanted, abs=1e-12)


HALVES = torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64).log().expand(VOCAB, VOCAB, VOCAB)


@pytest.mark.parametrize(
    "verify",
    [
        redraw_after_mismatch,
        bonus_from_the_parents_row,
        processors_miss_the_path,
        eos_ignored_inside_the_tree,
    ],
)
def test_broken_verifiers_have_another_law(
    verify: Callable[..., Verdict], monkeypatch: pytest.MonkeyPatch
) -> None:
    options, eos = OPTIONS["processors"], EOS["some"]
    law = forked_law(full_binary, options, eos, monkeypatch, verify)
    assert len(law) > 10
    assert distance(law, product_of_conditionals(options, eos)) > 1e-3
