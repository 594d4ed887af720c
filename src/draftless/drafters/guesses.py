"""What `auto` knows of one request, and the tree that it grows from it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from draftless.drafters.best_first import BestFirst
from draftless.drafters.fusion import Fusion
from draftless.drafters.probe_worth import ProbeWorth
from draftless.drafters.sdsat import speaking_slots
from draftless.drafters.sources import Sources
from draftless.drafters.successors import Successors
from draftless.types import DraftTree, Row, StepRecord


class Guesses(Protocol):
    """The guesses of one request; see `PythonGuesses`, which explains, and `NativeGuesses`, which is fast."""

    @property
    def weights(self) -> Sequence[float]:
        """Of the fusion, as learnt so far."""
        ...

    def look(self) -> int:
        """Take in what was written since; how many tokens at the text's end stand in it before."""
        ...

    def grow(self, costs: Sequence[float], worth: float) -> Sequence[float]:
        """Grow the tree of the next step (`BestFirst.grow`).

        Returns:
            The gains of its nodes in the order in which it takes them, the root's first.
        """
        ...

    def tree(self, width: int) -> DraftTree:
        """The best `width` nodes of it, or fewer."""
        ...

    def observe(self, record: StepRecord) -> None:
        """Learn from a step that drafted this tree."""
        ...


class PythonGuesses:
    """Guesses wherever there is no compiler.

    Args:
        row: the request.
        successors: to learn from and to add to; other requests may do the same.
        weights: of the fusion, to start from.
        adaptive_ids: see `AutoDrafter`.
    """

    def __init__(
        self,
        row: Row,
        successors: Successors,
        weights: Sequence[float],
        adaptive_ids: Sequence[int],
    ) -> None:
        self._row = row
        self._adaptive_ids = adaptive_ids
        self._sources = Sources(row, successors)
        self._fusion = Fusion(weights)
        self._worth = ProbeWorth()
        self._growth: BestFirst | None = None

    @property
    def weights(self) -> Sequence[float]:
        return self._fusion.weights

    def look(self) -> int:
        return self._sources.look()

    def grow(self, costs: Sequence[float], worth: float) -> Sequence[float]:
        self.look()
        of_slots = self._worth.of_slots if self._adaptive_ids else ()
        self._growth = BestFirst(self._sources, self._fusion, of_slots, self._row.max_depth)
        self._growth.grow(costs, worth)
        return self._growth.gains

    def tree(self, width: int) -> DraftTree:
        assert self._growth is not None
        return self._growth.tree(width, self._adaptive_ids)

    def observe(self, record: StepRecord) -> None:
        growth, verdict = self._growth, record.verdict
        assert growth is not None
        steps = [growth.found[growth.nodes[node]] for node in verdict.path]
        self._worth.learn(self._fusion, steps, verdict.token_ids, self._sources.slots)
        for (found, none_cell), token_id in zip(steps, verdict.token_ids, strict=True):
            if found:
                self._fusion.learn(found, none_cell, token_id)
        slots = speaking_slots([growth.probes[node] for node in reversed(verdict.path)])
        self._sources.observe(record, slots, len(growth.nodes))
