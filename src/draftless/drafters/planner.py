"""How wide a step pays, and whether drafting pays at all: gains against prices.

A node is worth its place iff its gain (the chance that it is accepted) exceeds what its place costs in
tokens: its seconds times the tokens per second that the request makes anyway (peers.md 4.2). The rate
is that of many steps, not of this one: time saved in a hopeless step is spent at the usual rate.
With measured prices, which are a staircase, the widths are compared one by one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from draftless.drafters.steepness import Steepness
from draftless.prices import PriceList, Seconds

# What drafting costs beside the forward, per row of a batch and per node, until it was seen.
OWN_S, OWN_NODE_S = 55e-6, 10e-6

# It is 1.3 to 1.8, but lists make width a little dear: this was fastest on validation prompts.
OWN_OVER_PROPOSE = 1.0
_OWN_LEAST, _OWN_MOST, _OWN_RATE = 0.2, 8.0, 0.02
_LENGTHS = 128  # cached lengths are rounded up to a multiple of this
_AT_ONCE = (
    8  # steps that are learnt from together: after a pass all code is cold, and cold code is slow
)
_MOVED = 1.1  # a slope that moved by less is still the one that was reckoned with


@dataclass(frozen=True)
class StepPrices:
    """Prices of a step for one cached length and number of rows.

    Attributes:
        seconds: of a step that drafts, by width from 1 on; drafting's own cost included.
        slopes: the cheapest way on from each width, in seconds per width.
        plain_s: of a step without drafting.
    """

    seconds: tuple[float, ...]
    slopes: tuple[float, ...]
    plain_s: float

    @classmethod
    def of(cls, curve: Seconds, num_rows: int, *, own: float = 1.0) -> StepPrices:
        """From the seconds of the forward alone, by width from 1 on; `own` scales what is beside it."""
        widths = np.arange(1, len(curve) + 1)
        seconds = curve + own * own_s(widths, num_rows)
        apart = widths - widths[:, None]
        steps = (seconds - seconds[:, None]) / np.where(apart > 0, apart, np.nan)  # [from, to]
        slopes = np.nanmin(steps[:-1], axis=1)
        return cls(tuple(seconds.tolist()), (*slopes.tolist(), math.inf), float(curve[0]))


def own_s(width: Any, num_rows: int) -> Any:
    """Seconds of drafting beside the forward, as first guessed."""
    return num_rows * (OWN_S + OWN_NODE_S * width)


class Planner:
    """Prices at hand, and what follows from them.

    Args:
        prices: of the target's forward passes on this machine.
        max_width: widest tree.
    """

    def __init__(self, prices: PriceList, max_width: int) -> None:
        self._prices = prices
        self._max_width = max_width
        self._kinds: dict[tuple[int, bool], _Kind] = {}
        self._seen: list[tuple[int, int, int, float, float, bool]] = []  # what to learn from

    def prices(self, length: int, num_rows: int, *, is_sampled: bool = False) -> StepPrices:
        """Of a step of so many rows with so many cached tokens each."""
        place = -(-length // _LENGTHS)
        kind = self._kind(num_rows, is_sampled)
        found = kind.prices.get(place)
        if found is None:
            curve = np.array(self._curve(kind, length, num_rows))
            curve = curve[0] + kind.slope * (curve - curve[0])
            found = StepPrices.of(curve, num_rows, own=kind.own)
            kind.prices[place] = found
        return found

    def learn(
        self,
        length: int,
        num_rows: int,
        width: int,
        *,
        forward_s: float,
        propose_s: float,
        is_sampled: bool,
    ) -> None:
        """A step of rows with so many cached tokens took these seconds."""
        if width <= self._max_width:
            self._seen.append((length, num_rows, width, forward_s, propose_s, is_sampled))
        if len(self._seen) >= _AT_ONCE:
            for step in self._seen:
                self._learn(*step)
            self._seen.clear()

    def _learn(
        self,
        length: int,
        num_rows: int,
        width: int,
        forward_s: float,
        propose_s: float,
        is_sampled: bool,
    ) -> None:
        kind = self._kind(num_rows, is_sampled)
        curve = self._curve(kind, length, num_rows)
        kind.steepness.learn(curve[0], curve[width - 1], forward_s)
        if width > 1:
            # In the list's own seconds, as the forwards are.
            guess = kind.steepness.scale * own_s(width, num_rows)
            seen = min(_OWN_MOST, max(_OWN_LEAST, OWN_OVER_PROPOSE * propose_s / guess))
            kind.own_now += _OWN_RATE * (seen - kind.own_now)
        kind.refresh()

    def _kind(self, num_rows: int, is_sampled: bool) -> _Kind:
        key = num_rows, is_sampled
        return self._kinds.get(key) or self._kinds.setdefault(key, _Kind())

    def _curve(self, kind: _Kind, length: int, num_rows: int) -> list[float]:
        """The list's own seconds, by width from 1 on."""
        place = -(-length // _LENGTHS)
        found = kind.curves.get(place)
        if found is None:
            seconds = self._prices.curve(place * _LENGTHS, num_rows, self._max_width)
            found = kind.curves[place] = seconds.tolist()
        return found


@dataclass(slots=True)
class _Kind:
    """What is known of the steps of one number of rows, greedy or sampled; lengths in `_LENGTHS`.

    Attributes:
        curves: by length, the list's own seconds.
        prices: by length, what follows with the slope and the own cost.
        steepness: learns the slope.
        slope: that `prices` were reckoned with.
        own_now: drafting's own cost over the first guess, as learnt so far.
        own: the one that `prices` were reckoned with.
    """

    curves: dict[int, list[float]] = field(default_factory=dict)
    prices: dict[int, StepPrices] = field(default_factory=dict)
    steepness: Steepness = field(default_factory=Steepness)
    slope: float = 1.0
    own_now: float = 1.0
    own: float = 1.0

    def refresh(self) -> None:
        """Forget prices that no longer hold."""
        slope = self.steepness.value
        if _has_moved(slope, self.slope) or _has_moved(self.own_now, self.own):
            self.slope, self.own = slope, self.own_now
            self.prices.clear()


def _has_moved(now: float, then: float) -> bool:
    return not 1.0 / _MOVED < now / then < _MOVED


def best_width(gains: Sequence[Sequence[float]], seconds: Sequence[float], rate: float) -> int:
    """The width with the most tokens beyond what its seconds are worth.

    Args:
        gains: per row the gains of its nodes in the order in which it takes them, the root's first.
        seconds: of a step by width, from 1 on; all rows are padded to the widest.
        rate: tokens per second of all rows that the time would bring otherwise.
    """
    totals = [0.0] * min(max(map(len, gains)), len(seconds))
    for row in gains:
        for place, gain in enumerate(row[: len(totals)]):
            totals[place] += gain
    tokens, best, chosen = 0.0, -math.inf, 1
    for place, gain in enumerate(totals):
        tokens += gain
        value = tokens - rate * seconds[place]
        if value > best:
            best, chosen = value, place + 1
    return chosen
