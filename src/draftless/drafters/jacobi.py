"""TR-Jacobi: tree-based, retrieval-augmented Jacobi decoding.

Source: Make Some Noise (arXiv 2406.17404), sections on TR-Jacobi decoding; the 63-node tree is
Medusa's `mc_sim_7b_63` (arXiv 2401.10774), which the reference implementation uses.

Each step feeds, in one pass, a tree of guesses and one chain that was retrieved from the text.
What the model says at the *rejected* nodes of the best path (it saw wrong input there: the task
that MSN trains) ranks the guesses of the next step.

Differs from the reference implementation: it samples; its guesses are ranked under the noise of
the target's own draws; a cell without a guess costs a node only on the tree's spine; the spine goes
as deep as the chain, so that a step without a match still leaves something to denoise; the newest
and longest match is retrieved, and none where there is none. Its twelve bugs are listed, each
with its test, in `tests/unit/test_jacobi.py`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from draftless.drafters.common import best_ids, check_least, competing, fitting_template
from draftless.drafters.ngram import RETRIEVAL, NgramIndex
from draftless.engine.likeliest import likeliest
from draftless.noise import NoiseSampler, NoiseSource, hash_ids
from draftless.types import DraftPasses, DraftTree, Row, StepRecord

# Ranks from the root on, the most likely node first: a prefix of the list is the best small tree.
_MEDUSA_63 = (
    "0 00 1 01 2 000 10 02 3 03 4 04 20 05 001 5 06 6 07 010 11 7 08 002 30 09 8 9 100 020 12 003 "
    "40 21 004 005 0000 011 006 030 50 13 007 008 009 60 040 14 70 012 200 31 22 80 050 15 101 021 "
    "90 060 0001 16 070"
)
_DENOISED, _NOISE = "denoised", "noise"  # the sources, beside retrieval
_NOISE_SALT = 0x4A41  # so that the decoder's noise is not the training's

Path = tuple[int, ...]


@lru_cache
def jacobi_template(depth: int, top_k: int) -> tuple[Path, ...]:
    """Rank paths in the order in which a budget is spent: the spine, then the likeliest nodes."""
    spine = [(0,) * length for length in range(1, depth + 1)]
    rest = [tuple(map(int, word)) for word in _MEDUSA_63.split()]
    return (
        *spine,
        *(p for p in rest if len(p) <= depth and max(p) < top_k and p not in spine),
    )


class TRJacobiDrafter:
    """Drafts from denoised predictions and retrieval, in the target's own pass.

    Args:
        budget: most nodes of a tree, the root included; 70 is the paper's tree.
        depth: deepest guess; a retrieved chain may go on below.
        top_k: guesses per depth.
        retrieval_ngram: longest suffix that is looked up.
        retrieval_len: length of the retrieved chain; 0 turns retrieval off.
        noise_source: where the tokens of empty cells come from, as in training.
        vocab_size: for noise from the vocabulary.
        couple: rank guesses under the keyed noise of their positions when sampling.
        template: rank paths in the order in which a budget is spent, or a file of `draftless
            calibrate tree`; None is Medusa's tree. The spine is always there.
    """

    def __init__(  # noqa: PLR0913 - these are the options of one method
        self,
        budget: int = 70,
        depth: int = 5,
        top_k: int = 10,
        retrieval_ngram: int = 3,
        retrieval_len: int = 5,
        noise_source: NoiseSource = "prefix",
        vocab_size: int | None = None,
        couple: bool = True,
        template: Any = None,
    ) -> None:
        check_least(
            "tr-jacobi",
            budget=(budget, 2),
            depth=(depth, 1),
            top_k=(top_k, 1),
            retrieval_ngram=(retrieval_ngram, 1),
            retrieval_len=(retrieval_len, 0),
        )
        self._template = jacobi_template(depth, top_k)
        if template is not None:
            rest = fitting_template(template, depth, top_k)
            self._template = (*self._template[:depth], *(path for path in rest if any(path)))
        self._budget = budget
        self._depth = depth
        self._top_k = top_k
        self._retrieval_ngram = retrieval_ngram
        self._retrieval_len = retrieval_len
        self._noise = NoiseSampler(noise_source, vocab_size=vocab_size)
        self._couple = couple
        self._states: WeakKeyDictionary[Row, _State] = WeakKeyDictionary()

    def reset(self, row: Row) -> None:
        self._states[row] = _State(row, self._retrieval_ngram)

    def propose(self, rows: Sequence[Row], _: DraftPasses) -> list[DraftTree]:
        return [self._tree(row, self._states[row]) for row in rows]

    def _tree(self, row: Row, state: _State) -> DraftTree:
        builder = _TreeBuilder(row.token_ids[-1], self._budget)
        depth = min(self._depth, row.max_depth)
        template = self._template
        guesses = self._guesses(row, state, depth)
        for path in template[:depth]:
            source = _DENOISED if len(path) <= len(state.guesses) else _NOISE
            builder.add_path(path, guesses, source)
        builder.add_chain(self._retrieve(row, state))
        for path in template[self._depth :]:
            builder.add_path(path, guesses, _DENOISED)
        return builder.tree()

    def _guesses(self, row: Row, state: _State, depth: int) -> list[list[int]]:
        """Ranked guesses per depth; where there is none, one noise token (for the spine)."""
        guesses = state.guesses[:depth]
        empty = depth - len(guesses)
        noise = self._noise.draw(row.token_ids, empty, state.generator)
        return [*guesses, *([token] for token in noise)]

    def future_ranks(self, row: Row, token_ids: Sequence[int]) -> Path:
        """Ranks of the tokens that follow, each among the guesses of its depth, until the first that
        is none of them (`calibration.tree_search`)."""
        ranks: list[int] = []
        for token_id, guesses in zip(token_ids, self._states[row].guesses, strict=False):
            if token_id not in guesses:
                break
            ranks.append(guesses.index(token_id))
        return tuple(ranks)

    def _retrieve(self, row: Row, state: _State) -> list[int]:
        count = min(self._retrieval_len, row.max_depth)
        return state.index.continuation(row.token_ids, count) if count else []

    def observe(self, records: Sequence[StepRecord]) -> None:
        for record in records:
            assert record.logits is not None
            nodes = leftover_nodes(record.tree.parents, record.verdict.path[-1])
            rows = record.logits[list(nodes)] if nodes else record.logits[:0]
            self._states[record.row].guesses = self._rank(record.row, rows[: self._depth])

    def _rank(self, row: Row, logits: torch.Tensor) -> list[list[int]]:
        """The `top_k` guesses of each row of `logits [m, V]`, for the next `m` positions."""
        if not len(logits):
            return []
        noise, params, count = row.noise, row.params, self._top_k
        ranked: list[list[int]]
        if noise is None:
            ranked = likeliest(logits, count)[0].tolist()
        elif self._couple and not params.is_truncated:
            rows, first = range(len(logits)), len(row.token_ids)
            places = range(first, first + len(logits))
            best, _ = noise.likeliest(logits, rows, places, params.temperature, count)
            ranked = best.tolist()
        else:
            scores, ids = competing(row, logits, count, couple=self._couple)
            ranked = best_ids(scores, ids, count)[1].tolist()
        return ranked


class _State:
    """What one request carries from step to step."""

    def __init__(self, row: Row, retrieval_ngram: int) -> None:
        self.index = NgramIndex(retrieval_ngram)
        self.guesses: list[list[int]] = []
        self.generator = np.random.default_rng(hash_ids(_NOISE_SALT, ids=row.token_ids))


class _TreeBuilder:
    """Adds nodes while the budget lasts; a node that is there already is not added twice."""

    def __init__(self, root: int, budget: int) -> None:
        self._budget = budget
        self._token_ids = [root]
        self._parents = [-1]
        self._sources = [""]
        self._nodes: dict[tuple[int, int], int] = {}
        self._by_path: dict[Path, int] = {(): 0}

    def add_chain(self, token_ids: Sequence[int]) -> None:
        node: int | None = 0
        for token_id in token_ids:
            if node is not None:
                node = self._add(node, token_id, RETRIEVAL)

    def add_path(self, path: Path, guesses: Sequence[Sequence[int]], source: str) -> None:
        """Add the node at `path`, if its parent is there and its cell has a guess."""
        parent = self._by_path.get(path[:-1])
        if parent is None or len(path) > len(guesses):
            return
        cell = guesses[len(path) - 1]
        if path[-1] < len(cell):
            node = self._add(parent, cell[path[-1]], source)
            if node is not None:
                self._by_path[path] = node

    def _add(self, parent: int, token_id: int, source: str) -> int | None:
        node = self._nodes.get((parent, token_id))
        if node is None and len(self._token_ids) < self._budget:
            node = self._nodes[parent, token_id] = len(self._token_ids)
            self._token_ids.append(token_id)
            self._parents.append(parent)
            self._sources.append(source)
        return node

    def tree(self) -> DraftTree:
        return DraftTree(tuple(self._token_ids), tuple(self._parents), sources=tuple(self._sources))


@lru_cache(maxsize=4096)
def leftover_nodes(parents: tuple[int, ...], stop: int) -> tuple[int, ...]:
    """Nodes whose logits guess the next step's depths 1, 2, ... after a walk that ended at `stop`.

    The longest path below `stop` (the first on ties), continued where it ends by the deeper nodes
    of the tree's longest path: these saw other wrong tokens, but stand at the right positions.
    """
    path = _longest_path(parents, stop)
    depth, node = len(path), stop
    while node:
        depth, node = depth + 1, parents[node]
    return (*path, *_longest_path(parents, 0)[depth:])


def _longest_path(parents: tuple[int, ...], node: int) -> list[int]:
    """The longest path below `node`, without it; the first such path on ties."""
    heights = [0] * len(parents)
    heirs = [-1] * len(parents)
    for child in range(len(parents) - 1, 0, -1):
        parent, height = parents[child], heights[child] + 1
        if height >= heights[parent]:  # from behind, so the first of equals comes last
            heights[parent], heirs[parent] = height, child
    path = []
    while heirs[node] >= 0:
        node = heirs[node]
        path.append(node)
    return path
