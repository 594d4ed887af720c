"""SDSAT: adaptive tokens, which a model was trained to read as "what comes next?".

Source: SDSAT (arXiv 2403.18647). Slot `m` of a chain of adaptive tokens after token `t` stands at the
place of `t+m` and predicts the token at `t+m+1`. The chain is made of probes: fed for their logits,
never accepted, and gone from the cache after the step.

With `steps=2` a drafting step (root and probes) and a verification step (root and drafts) take
turns, as in the paper. The drafting step commits the target's own token as well, so there is never
one forward pass more than in plain decoding.

With `steps=1`, ours, every step does both. Probes hang under the nodes where the walk may stop, so
that wherever it does, the next draft is ready; a node whose own probes do not reach far enough takes
over what those of its nearest ancestor say about the same places. `growth.py` spends the budget on
drafts and probes by expected gain.

Differs from the reference implementation, whose bugs are listed with their tests in
`tests/unit/test_sdsat.py`: sampled drafts are the best candidates under the noise of the target's own
draws, in a tree that follows their probabilities instead of a fixed one, and are verified exactly.
What followed the longest earlier match of the text's end competes with the candidates, as TR-Jacobi
does it. The paper is `steps=2, top_k=1, retrieval_len=0`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from weakref import WeakKeyDictionary

import torch

from draftless.drafters.common import best_ids, check_adaptive_ids, check_least, competing
from draftless.drafters.growth import TreeGrowth
from draftless.drafters.ngram import NgramIndex
from draftless.errors import ConfigError
from draftless.types import DraftPasses, DraftTree, Row, StepRecord, Verdict

_FIRST_RATE, _RATE_FALLS = 0.65, 0.85  # how often a slot is right, before anything is counted
_SHARE_WEIGHT = 2.0  # how many right candidates the shares as they are are worth
_MAX_NGRAM = 3
# How often a retrieved token is right after a match of 1, 2, ... tokens (docs/log.md).
_GREEDY_HITS = (0.30, 0.36, 0.80, 0.85, 0.90)
_SAMPLED_HITS = (0.06, 0.10, 0.20, 0.40, 0.60)
_PRIOR_WEIGHT = 4.0  # how many counts such a first guess is worth
_STEEPEST = 6  # log-odds beyond it share the outermost bucket


class SDSATDrafter:
    """Drafts what the model itself predicts at adaptive tokens.

    Args:
        adaptive_ids: one id for all slots, or one per slot (beyond the last one: the last again).
        steps: 2 drafts and verifies in turns, 1 does both in one pass.
        k: longest chain of probes; may exceed the length that was trained.
        budget: most nodes of a tree, root and probes included.
        top_k: most candidates per depth; 1 makes chains.
        couple: rank candidates under the keyed noise of their positions when sampling.
        retrieval_len: length of a retrieved chain that competes with the candidates; 0 for none.
        vocab_size: for checking the ids.
    """

    def __init__(  # noqa: PLR0913 - these are the options of one method
        self,
        adaptive_ids: Sequence[int] = (),
        steps: int = 1,
        k: int = 5,
        budget: int = 70,
        top_k: int = 8,
        couple: bool = True,
        retrieval_len: int = 8,
        vocab_size: int | None = None,
    ) -> None:
        if not adaptive_ids:
            raise ConfigError(
                "sdsat needs a model with adaptive tokens, and this one has none: train them with "
                "`draftless train sdsat`, or name their ids with adaptive_ids"
            )
        check_adaptive_ids("sdsat", adaptive_ids, vocab_size)
        if steps not in (1, 2):
            raise ConfigError(f"steps={steps} of sdsat is neither 1 nor 2")
        least = {"k": (k, 1), "budget": (budget, 2), "top_k": (top_k, 1)}
        check_least("sdsat", **least, retrieval_len=(retrieval_len, 0))
        self._adaptive_ids = tuple(adaptive_ids)
        self._steps = steps
        self._k = k
        self._budget = budget
        self._top_k = top_k
        self._couple = couple
        self._retrieval_len = retrieval_len
        self._states: WeakKeyDictionary[Row, _State] = WeakKeyDictionary()

    def reset(self, row: Row) -> None:
        self._states[row] = _State()

    def propose(self, rows: Sequence[Row], _: DraftPasses) -> list[DraftTree]:
        return [self._tree(row, self._states[row]) for row in rows]

    def _tree(self, row: Row, state: _State) -> DraftTree:
        candidates = state.calibrated()
        is_drafting = self._steps == 1 or not candidates
        rates = [state.rate(slot) for slot in range(1, self._k + 1)] if is_drafting else []
        chain: list[tuple[int, float]] = []
        if self._retrieval_len and (candidates or self._steps == 1):
            chain = state.retrieve(row, self._retrieval_len)
        growth = TreeGrowth(candidates, rates, row.max_depth, chain)
        growth.spend(self._budget - 1)
        return growth.tree(row.token_ids[-1], self._adaptive_ids)

    def observe(self, records: Sequence[StepRecord]) -> None:
        for record in records:
            if record.verdict.finish_reason:
                continue
            assert record.logits is not None
            state = self._states[record.row]
            state.learn(record.verdict)
            slots = ready_slots(record.tree, record.verdict.path)
            nodes = torch.tensor([node for node, _ in slots], dtype=torch.long)
            logits = record.logits.index_select(0, nodes.to(record.logits.device))
            shares = self._shares(record.row, logits)
            state.candidates = [
                Candidates(slot, found) for (_, slot), found in zip(slots, shares, strict=True)
            ]

    def _shares(self, row: Row, logits: torch.Tensor) -> list[dict[int, float]]:
        """The likeliest tokens of each row of `logits [m, V]`, for the next `m` positions."""
        if not len(logits):
            return []
        scores, ids = competing(row, logits, self._top_k, couple=self._couple)
        scores = scores.float()
        total = scores.logsumexp(1, keepdim=True)
        values, best = best_ids(scores, ids, self._top_k)
        shares = (values - total).exp().tolist()
        return [
            {token_id: share for token_id, share in zip(*pair, strict=True) if share > 0.0}
            for pair in zip(best.tolist(), shares, strict=True)
        ]


def ready_slots(tree: DraftTree, path: Sequence[int]) -> list[tuple[int, int]]:
    """Probes that predict depths 1, 2, ... of the next tree, and their slots, after a walk.

    The stop node's own probes come first. Where they end, those of its nearest ancestor that are
    long enough go on: `j` levels up, slot `m + j` stands at the same place.
    """
    return speaking_slots([probe_chain(tree, node) for node in reversed(path)])


def speaking_slots(chains: Sequence[Sequence[int]]) -> list[tuple[int, int]]:
    """The same, from the chains of probes under the stop node, its parent, and so on."""
    found: list[tuple[int, int]] = []
    while True:
        slots = ((chain, len(found) + up) for up, chain in enumerate(chains))
        ready = next(((chain[i], i + 1) for chain, i in slots if i < len(chain)), None)
        if ready is None:
            return found
        found.append(ready)


def probe_chain(tree: DraftTree, node: int) -> list[int]:
    """The chain of probes that hangs under a node."""
    chain: list[int] = []
    children = tree.layout.children
    while tree.is_probe:
        below = next((child for child in children[node] if tree.is_probe[child]), None)
        if below is None:
            break
        chain.append(below)
        node = below
    return chain


@dataclass(frozen=True, slots=True)
class Candidates:
    """What one slot says about one place: tokens and their shares, the likeliest first."""

    slot: int
    shares: dict[int, float]


class _Rates:
    """How often something was right, by key; a first guess stands for what is not counted yet."""

    def __init__(self) -> None:
        self._tried: dict[int, int] = {}
        self._right: dict[int, int] = {}

    def add(self, key: int, is_right: bool) -> None:
        self._tried[key] = self._tried.get(key, 0) + 1
        self._right[key] = self._right.get(key, 0) + is_right

    def rate(self, key: int, prior: float) -> float:
        right = self._right.get(key, 0) + _PRIOR_WEIGHT * prior
        return right / (self._tried.get(key, 0) + _PRIOR_WEIGHT)


@dataclass(slots=True)
class _State:
    """What one request carries from step to step.

    Shares are corrected by what came of such shares before, in buckets of equal log-odds: the share
    of a greedy candidate in particular is a guess of the model about itself, not its frequency.
    """

    candidates: list[Candidates] = field(default_factory=list)
    _index: NgramIndex = field(default_factory=lambda: NgramIndex(_MAX_NGRAM))
    _retrieved: list[int] = field(default_factory=list)
    _matched: int = 0  # length of the match that it followed
    _hits: _Rates = field(default_factory=_Rates)  # of retrieved tokens, by length
    _expected: dict[int, float] = field(default_factory=dict)  # per bucket, the sum of the shares
    _right: dict[int, int] = field(default_factory=dict)  # ... and how many were the target's token
    _accepted: _Rates = field(default_factory=_Rates)  # of drafts, by slot

    def calibrated(self) -> list[list[tuple[int, float]]]:
        """Candidates per depth with the chance of each, if all tokens before are accepted."""
        return [
            [(token_id, self._chance(share)) for token_id, share in found.shares.items()]
            for found in self.candidates
        ]

    def _chance(self, share: float) -> float:
        bucket = _bucket(share)
        right = self._right.get(bucket, 0) + _SHARE_WEIGHT
        return min(0.99, share * right / (self._expected.get(bucket, 0.0) + _SHARE_WEIGHT))

    def rate(self, slot: int) -> float:
        """How often a draft from this slot is accepted, if all tokens before are."""
        return self._accepted.rate(slot, _FIRST_RATE * _RATE_FALLS ** (slot - 1))

    def retrieve(self, row: Row, count: int) -> list[tuple[int, float]]:
        """The retrieved chain, and the chance of each token if all before are right."""
        self._retrieved, self._matched = self._index.match(row.token_ids, count)
        priors = _GREEDY_HITS if row.noise is None else _SAMPLED_HITS
        lengths = map(self._match_length, range(len(self._retrieved)))
        return [
            (token_id, self._hits.rate(length, priors[length - 1]))
            for token_id, length in zip(self._retrieved, lengths, strict=True)
        ]

    def _match_length(self, place: int) -> int:
        """Tokens that match before a place of the chain: each one that is right is one more."""
        return min(self._matched + place, len(_GREEDY_HITS))

    def _learn_retrieved(self, verdict: Verdict) -> None:
        pairs = zip(self._retrieved, verdict.token_ids, strict=False)
        for place, (token_id, right) in enumerate(pairs):
            self._hits.add(self._match_length(place), token_id == right)
            if token_id != right:
                break
        self._retrieved = []

    def learn(self, verdict: Verdict) -> None:
        """Count what came of the candidates. All that stand before the last token were right."""
        self._learn_retrieved(verdict)
        num_accepted = verdict.num_accepted_tokens
        pairs = zip(self.candidates, verdict.token_ids, strict=False)
        for depth, (found, token_id) in enumerate(pairs):
            for candidate, share in found.shares.items():
                bucket = _bucket(share)
                self._expected[bucket] = self._expected.get(bucket, 0.0) + share
                self._right[bucket] = self._right.get(bucket, 0) + (candidate == token_id)
            if depth < num_accepted or verdict.last_kind == "recovered":
                self._accepted.add(found.slot, depth < num_accepted)


def _bucket(share: float) -> int:
    share = min(max(share, 1e-9), 1.0 - 1e-9)
    return max(-_STEEPEST, min(_STEEPEST, round(math.log(share / (1.0 - share)))))
