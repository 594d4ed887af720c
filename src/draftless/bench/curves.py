"""Curves: speed over the position in the text, time over the width, speed-up over a stream."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import numpy as np

from draftless.bench.averages import Pair, turns_of
from draftless.bench.rows import Row, Turn
from draftless.bench.statistics import rate_ratio

MIN_STEPS = 5
MIN_TURN_SHARE = 0.1
NUM_BINS = 12
WINDOW = 10

Curve = list[tuple[float, float]]


def position_edges(rows: Iterable[Row]) -> list[int]:
    """Borders of equal bins over the longest answer, at round numbers of tokens."""
    longest = max((turn.num_tokens for turn in turns_of(rows)), default=0)
    width = next(w for w in _round_widths() if w * NUM_BINS >= longest)
    return list(range(0, longest + width, width))


def _round_widths() -> Iterable[int]:
    scale = 1
    while True:
        yield from (scale, 2 * scale, 5 * scale)
        scale *= 10


def speed_over_position(rows: Sequence[Row], edges: Sequence[int]) -> Curve:
    """Tokens per second between two places of the answer, all answers together.

    The prefill is left out; where a method does not tell it, the first step is. A step's time is
    spread evenly over its tokens. A bin that few answers reach is left out.

    Args:
        rows: of one case.
        edges: token indices, ascending.

    Returns:
        (middle of the bin, tokens per second).
    """
    borders = np.asarray(edges, dtype=np.float64)
    tokens, seconds = np.zeros(len(borders) - 1), np.zeros(len(borders) - 1)
    num_turns = np.zeros(len(borders) - 1)
    turns = [turn for turn in turns_of(rows) if len(turn.step_s) == turn.num_steps > 1]
    for turn in turns:
        places, times = _clock(turn)
        inside = np.clip(borders, places[0], places[-1])
        covered = np.diff(inside)
        tokens += covered
        seconds += np.diff(np.interp(inside, places, times))
        num_turns += covered > 0
    is_shown = (num_turns >= max(1, MIN_TURN_SHARE * len(turns))) & (seconds > 0)
    middles = (borders[1:] + borders[:-1]) / 2
    speeds = np.divide(tokens, seconds, out=np.zeros_like(tokens), where=seconds > 0)
    return list(zip(middles[is_shown].tolist(), speeds[is_shown].tolist(), strict=True))


def _clock(turn: Turn) -> tuple[np.ndarray, np.ndarray]:
    """Tokens done and seconds passed, at the begin of decoding and after every step."""
    places, times = np.cumsum(turn.step_tokens, dtype=np.float64), np.asarray(turn.step_s)
    if turn.prefill_s is None:
        return places, times
    return np.concatenate(([0.0], places)), np.concatenate(([turn.prefill_s], times))


def cost_of_width(rows: Sequence[Row]) -> Curve:
    """Median time of a whole step by the tokens fed to it (root and drafts), for our engine.

    Widths are put together by powers of two: 1, 2, 3-4, 5-8, ...

    Returns:
        (mean width of the bin, milliseconds); bins with few steps are left out.
    """
    widths: list[float] = []
    times: list[float] = []
    for turn in turns_of(rows):
        is_complete = len(turn.step_s) == len(turn.step_drafted) == turn.num_steps
        if turn.time_s and turn.prefill_s is not None and is_complete:
            widths += [1 + drafted for drafted in turn.step_drafted]
            times += np.diff([turn.prefill_s, *turn.step_s]).tolist()
    width, seconds = np.asarray(widths), np.asarray(times)
    bins = np.ceil(np.log2(width)) if widths else width
    return [
        (float(width[bins == one].mean()), 1000 * float(np.median(seconds[bins == one])))
        for one in np.unique(bins)
        if (bins == one).sum() >= MIN_STEPS
    ]


def speed_up_over_requests(pairs: Iterable[Pair], num_requests: int) -> Curve:
    """Speed-up over the place in a stream: tokens per second over the plain loop's, running.

    Each point is of `WINDOW` requests in a row (fewer in a short stream), their tokens and seconds
    summed up. One without an answer that counts is left out.

    Args:
        pairs: of one stream.
        num_requests: of the stream.

    Returns:
        (middle of the window, counted from 1; speed-up).
    """
    totals = np.zeros((num_requests, 4))
    for own, plain in pairs:
        assert own.position is not None
        totals[own.position] += (own.num_tokens, own.seconds, plain.num_tokens, plain.seconds)
    window = min(WINDOW, max(1, num_requests // 3))
    curve = []
    for first in range(num_requests - window + 1):
        sums = totals[first : first + window].sum(axis=0)
        if sums.all():
            curve.append((first + (window + 1) / 2, float(rate_ratio(sums))))
    return curve
