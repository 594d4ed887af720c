"""`auto`: one tree from every source that the checkpoint supports, as wide as it pays, or none.

Ours. Retrieval from prompt and output, recycled successors (2408.08696), denoised guesses (2406.17404)
and adaptive-token probes (2403.18647) speak for the same places; `fusion` makes one probability of
what they say, `best_first` grows the tree, `planner` weighs it against the measured price of a forward and
decides when to stop drafting and when to try again. Nothing has to be trained: a source that a model
does not support stays silent, and one that is always wrong is unlearned within a few steps.
"""

from __future__ import annotations

import weakref
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

from draftless.drafters.common import check_adaptive_ids, check_least
from draftless.drafters.guesses import Guesses, PythonGuesses
from draftless.drafters.native_guesses import NativeGuesses, is_native, native_successors
from draftless.drafters.pace import FIRST_TRUST, Pace, trust_after
from draftless.drafters.planner import Planner, StepPrices, best_width
from draftless.drafters.priors import COUPLED_WEIGHTS, GREEDY_WEIGHTS
from draftless.drafters.successors import Successors
from draftless.prices import PriceList, read_price_list
from draftless.types import DraftPasses, DraftTree, Row, StepRecord

_USUAL_PRICES = PriceList.from_points(
    {
        (1, 0, 1): 1.0e-2,
        (8, 0, 1): 1.1e-2,
        (16, 0, 1): 1.3e-2,
        (32, 0, 1): 1.8e-2,
        (64, 0, 1): 3.0e-2,
    }
)
"""Where nothing was measured: the shape of an 88M model on two cores (DESIGN 8)."""

_PASSED_ON = 0.25  # of what a request learnt about the sources


class AutoDrafter:
    """Drafts from all sources at once, by measured prices.

    Of a request four things stay, none of which can change what is written (ADR 8): a little of how much
    each kind of evidence was worth (some 240 numbers), so that a model whose adaptive tokens mean nothing,
    say, is known after a few requests; whether drafting paid; what steps cost beside the list; and, with
    `keep_table`, what the target said after the pairs of tokens it met.

    Args:
        prices: what a forward costs on this machine: a `PriceList`, its dict, or its file; None is
            the shape of a usual curve.
        adaptive_ids: adaptive tokens of the model (see `sdsat`); empty: no probes.
        max_width: widest tree, root and probes included.
        keep_table: keep what the target said after each pair of tokens for later requests, as Token
            Recycling does, instead of one table for each.
        vocab_size: for checking the ids.
    """

    def __init__(
        self,
        prices: PriceList | Mapping[str, Any] | str | Path | None = None,
        adaptive_ids: Sequence[int] = (),
        max_width: int = 32,
        keep_table: bool = True,
        vocab_size: int | None = None,
    ) -> None:
        check_least("auto", max_width=(max_width, 2))
        check_adaptive_ids("auto", adaptive_ids, vocab_size)
        self._planner = Planner(_price_list(prices), max_width)
        self._adaptive_ids = tuple(adaptive_ids)
        # Where no target is compiled yet, it is asked again at the first request.
        self._is_native: bool | None = is_native() or None
        self._keeps_table = keep_table
        self._kept: Any = None
        self._states: WeakKeyDictionary[Row, _State] = WeakKeyDictionary()
        # By whether a request is sampled.
        self._learnt = {False: list(GREEDY_WEIGHTS), True: list(COUPLED_WEIGHTS)}
        self._trust = {False: FIRST_TRUST, True: FIRST_TRUST}

    def reset(self, row: Row) -> None:
        if self._is_native is None:
            self._is_native = is_native()
        successors = self._kept
        if successors is None:
            successors = native_successors() if self._is_native else Successors()
            self._kept = successors if self._keeps_table else None
        is_sampled = row.noise is not None
        make = NativeGuesses if self._is_native else PythonGuesses
        held: Row = weakref.proxy(row)  # by what is kept under the row, or it would never go
        guesses = make(held, successors, self._learnt[is_sampled], self._adaptive_ids)
        guesses.look()
        self._states[row] = _State(held, guesses, Pace(self._trust[is_sampled]))

    def propose(self, rows: Sequence[Row], _: DraftPasses) -> list[DraftTree]:
        states = [self._states[row] for row in rows]
        if all(state.pace.is_asleep for state in states):
            return [state.tree(1) for state in states]
        length = max(len(row.token_ids) for row in rows)
        is_sampled = any(row.noise is not None for row in rows)
        prices = self._planner.prices(length, len(rows), is_sampled=is_sampled)
        rate = sum(state.pace.rate(prices.plain_s) for state in states)
        least = rate * (prices.seconds[1] - prices.plain_s) / len(rows)
        is_batch = len(rows) > 1  # a single row has its purse, and a match that wakes it
        awake = [
            s for s in states if not (s.pace.is_asleep or (is_batch and s.pace.lie_down(least)))
        ]
        most_s = max((state.pace.most_s(prices.plain_s) for state in awake), default=0.0)
        limit = bisect_right(prices.seconds, most_s)
        slopes = prices.slopes[: max(limit, 1)]
        for state in awake:
            # A place of the padded width is shared by all rows, and so is what it costs.
            state.gains = state.guesses.grow(slopes, rate / len(rows))
            state.prices = prices
        width = best_width([state.gains or [1.0] for state in states], prices.seconds, rate)
        return [state.tree(width) for state in states]

    def observe(self, records: Sequence[StepRecord]) -> None:
        states = [self._states[record.row] for record in records]
        width = max(record.tree.num_nodes for record in records)
        time_s = records[0].time_s
        if time_s and any(state.gains for state in states):
            self._planner.learn(
                max(len(record.row.token_ids) for record in records),
                len(records),
                width,
                forward_s=time_s["forward"],
                propose_s=time_s["propose"],
                is_sampled=any(record.row.noise is not None for record in records),
            )
        for record, state in zip(records, states, strict=True):
            state.observe(record, width)
            if record.verdict.finish_reason:
                is_sampled = record.row.noise is not None
                learnt, own = self._learnt[is_sampled], state.guesses.weights
                learnt[:] = [
                    old + _PASSED_ON * (new - old) for old, new in zip(learnt, own, strict=True)
                ]
                self._trust[is_sampled] = trust_after(self._trust[is_sampled], state.pace.saved)


@dataclass(slots=True)
class _State:
    """One request; `gains` are there between `propose` and `observe` of a step that drafts."""

    row: Row
    guesses: Guesses
    pace: Pace
    gains: Sequence[float] = ()
    prices: StepPrices | None = None

    def tree(self, width: int) -> DraftTree:
        return self.guesses.tree(width) if self.gains else DraftTree.chain(self.row.token_ids[-1:])

    def observe(self, record: StepRecord, width: int) -> None:
        verdict = record.verdict
        if not self.gains:
            self.pace.sleep(self.guesses.look() if self.pace.looks else 0)
            return
        self.gains = ()
        assert self.prices is not None
        seconds = self.prices.seconds[width - 1]
        # A last step without drafts may have had no room for any.
        if record.tree.num_nodes > 1 or not verdict.finish_reason:
            self.pace.count(len(verdict.token_ids), seconds, self.prices.plain_s)
        if not verdict.finish_reason:
            self.guesses.observe(record)


def _price_list(prices: PriceList | Mapping[str, Any] | str | Path | None) -> PriceList:
    if prices is None:
        return _USUAL_PRICES
    if isinstance(prices, PriceList):
        return prices
    return PriceList.from_dict(prices) if isinstance(prices, Mapping) else read_price_list(prices)
