"""`Guesses` in C++ (`engine/native/guesses.cpp`): the same numbers, and half of what `auto` itself takes."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any

from draftless.drafters import best_first, fusion, near_top, probe_worth, sources, successors
from draftless.drafters.best_first import FUSED, PROBE
from draftless.engine import native
from draftless.engine.position_noise import PositionNoise
from draftless.types import DraftTree, Row, StepRecord

_CONSTANTS = {
    "MaxOrder": fusion.MAX_ORDER,
    "Newest": fusion.NEWEST,
    "Kinds": fusion.KINDS,
    "Ranks": fusion.RANKS,
    "Places": fusion.PLACES,
    "Shares": fusion.SHARES,
    "None": fusion.NONE,
    "Retrieved": fusion.RETRIEVED,
    "AfterToken": fusion.AFTER_TOKEN,
    "AfterPair": fusion.AFTER_PAIR,
    "Denoised": fusion.DENOISED,
    "Probed": fusion.PROBED,
    "NumCells": fusion.NUM_CELLS,
    "Rate": fusion.RATE,
    "Sure": fusion.SURE,
    "NumShared": near_top.NUM_SHARED,
    "NumLikely": successors.NUM_LIKELY,
    "LeastGreedy": sources.LEAST_GREEDY,
    "LeastCoupled": sources.LEAST_COUPLED,
    "MostRetrieved": sources.MOST_RETRIEVED,
    "Ahead": sources.AHEAD,
    "Doubt": best_first.DOUBT,
    "Fade": best_first.FADE,
    "FadesFrom": best_first.FADES_FROM,
    "WorthPrior": probe_worth.PRIOR,
    "WorthRate": probe_worth.RATE,
    "WorthDrift": probe_worth.DRIFT,
    "GoesOn": probe_worth.GOES_ON,
}


def is_native() -> bool:
    """Whether the guesses of a request can be in C++: where a target is compiled for a CPU."""
    return native.operator("largest") is not None and native.is_loaded("guesses", _constants())


@cache
def _constants() -> str:
    lines = []
    for name, value in _CONSTANTS.items():
        if isinstance(value, tuple):
            lines.append(f"constexpr double k{name}[] = {{{', '.join(map(repr, value))}}};")
        else:
            kind = "double" if isinstance(value, float) else "int64_t"
            lines.append(f"constexpr {kind} k{name} = {value!r};")
    return "\n".join(lines)


def native_successors(most_entries: int = successors.MOST_ENTRIES) -> Any:
    """The counterpart of `Successors`."""
    return _class("Successors")(most_entries)


def _class(name: str) -> Any:
    found = native.operator(name)
    assert found is not None, "is_native() was not asked"
    return found


class NativeGuesses:
    """The counterpart of `PythonGuesses`."""

    def __init__(
        self, row: Row, successors: Any, weights: Sequence[float], adaptive_ids: Sequence[int]
    ) -> None:
        noise = None
        if row.noise is not None:
            assert isinstance(row.noise, PositionNoise), "another noise is not known in C++"
            noise = row.noise.keyed.base
        params = row.params
        self._row = row
        self._adaptive_ids = list(adaptive_ids)
        core = _class("Guesses")(
            successors, list(weights), noise, params.temperature, params.is_truncated
        )
        # Bound once: every access makes another method.
        self._weights, self._look = core.weights, core.look
        self._grow, self._tree, self._observe = core.grow, core.tree, core.observe
        self._num_seen = 0

    @property
    def weights(self) -> Sequence[float]:
        weights: list[float] = self._weights()
        return weights

    def look(self) -> int:
        token_ids = self._row.token_ids
        match_len: int = self._look(token_ids[self._num_seen :])
        self._num_seen = len(token_ids)
        return match_len

    def grow(self, costs: Sequence[float], worth: float) -> Sequence[float]:
        if self._num_seen < len(self._row.token_ids):
            self.look()
        has_probes = bool(self._adaptive_ids)
        gains: list[float] = self._grow(costs, worth, self._row.max_depth, has_probes)
        return gains

    def tree(self, width: int) -> DraftTree:
        token_ids, parents, scores, num_drafts = self._tree(width, self._adaptive_ids)
        num_probes = len(token_ids) - num_drafts
        return DraftTree(
            tuple(token_ids),
            tuple(parents),
            is_probe=(*[False] * num_drafts, *[True] * num_probes) if num_probes else (),
            scores=tuple(scores),
            sources=("", *[FUSED] * (num_drafts - 1), *[PROBE] * num_probes),
        )

    def observe(self, record: StepRecord) -> None:
        logits = record.logits
        assert logits is not None
        if not logits.is_cpu:
            logits = logits.cpu()
        self._observe(logits, record.verdict.path, record.verdict.token_ids)
        self._num_seen = len(self._row.token_ids)
