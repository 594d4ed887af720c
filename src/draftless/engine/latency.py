"""Measures the price list: T(W, L, B), seconds of the target's forward pass on this machine.

It goes through `TargetModel.forward`, so whatever that is (eager, compiled, strict, int8) is what is
priced. Prompts are not needed: zeros in the cache and random tokens cost what text does.
"""

from __future__ import annotations

import json
import os
import statistics
import time
import warnings
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from itertools import product
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from draftless.caches import CACHE_VARIABLE, cache_folder
from draftless.engine.target import TargetModel
from draftless.errors import ArtifactError, ConfigError
from draftless.layout import chain_parents, tree_layout
from draftless.prices import Point, PriceList, completed, read_price_list, write_price_list
from draftless.provenance import hardware_name

QUIET = 0.1
"""Noise (`facts["noise"]`) above which a list is worth measuring again."""

# Passes of one point in a row, and how long they take: in decoding a pass comes after its like, and on a
# CPU it takes a dozen of them until the weights lie in the cache as far as they can.
_BLOCK, _BLOCK_S = (3, 12), 0.02

# Of measuring, and of what runs: lists of an older one are measured again.
_METHOD = 3


@dataclass(frozen=True, slots=True)
class LatencyOptions:
    """Which passes are timed, and how often.

    Attributes:
        widths: nodes of one row, closest where the time of a pass jumps. It is a staircase: products
            take 6 rows at once with AVX-512, 16 with AMX, and eight or more at once elsewhere.
        lengths: cached tokens per row; lowered to what the model's context allows.
        rows: of batches; their first is a single row.
        batch_widths: nodes per row where there are several.
        rounds: fewest and most timed passes of every point; between them the noise decides.
        seconds: no round begins after so long, but for the fewest; thrice that while it is noisy.

    Raises:
        ConfigError: an axis is empty, unordered or too small.
    """

    widths: tuple[int, ...] = (1, 2, 4, 6, 7, 8, 9, 12, 13, 16, 17, 24, 32, 33, 64)
    lengths: tuple[int, ...] = (128, 1024)
    rows: tuple[int, ...] = (1, 8)
    batch_widths: tuple[int, ...] = (1, 4, 16)
    rounds: tuple[int, int] = (3, 15)
    seconds: float = 1.5

    def __post_init__(self) -> None:
        for name in ("widths", "lengths", "rows", "batch_widths", "rounds"):
            values = getattr(self, name)
            if not values or list(values) != sorted(values) or values[0] < 1:
                raise ConfigError(f"{name}={values} must be ascending numbers of at least 1")


# What is measured silently: seconds, and which points, the most useful ones first.
_QUICK_S = 1.0
_QUICK_WIDTHS = (1, 4, 8, 2, 16, 6, 12, 24, 32)
_QUICK_LONG, _QUICK_BATCH = (1, 16), (1, 4, 16)  # widths with more cached tokens, with more rows
_QUICK_BLOCK, _QUICK_BLOCK_S = (2, 12), 0.04  # as `_BLOCK`
_QUICK_ROUNDS = 3  # the most

FULL = LatencyOptions(
    widths=(*range(1, 21), 24, 28, 32, 33, 48, 64, 96, 128),
    lengths=(64, 512, 2048),
    rows=(1, 4, 16),
    rounds=(7, 31),
    seconds=60.0,
)
"""What `draftless calibrate latency` measures."""


def measure(
    target: TargetModel,
    options: LatencyOptions,
    on_round: Callable[[int, int], None] | None = None,
) -> PriceList:
    """Time passes; all points in turn, so that other load hits them alike, and lower quartiles of
    that, because other load can only add.

    Args:
        target: whose forward passes are timed.
        options: which passes, and how often.
        on_round: called with the rounds that are done and the most that there will be.
    """
    points = grid(target, options)
    with torch.inference_mode():
        rounds = _rounds(_Passes(target, points), options, on_round)
    seconds = np.quantile(rounds, 0.25, axis=0)
    return _table(
        target,
        dict(zip(points, seconds.tolist(), strict=True)),
        is_full=options == FULL,
        num_points=len(points),
        num_rounds=len(rounds),
        noise=_noise(rounds),
    )


def measure_quickly(target: TargetModel) -> PriceList:
    """A latency table in about a second: T(1) first, then as many points as there is time for.

    What was not measured comes from a default shape, scaled to what was (`prices.completed`). No
    block begins that would probably end too late, but a single pass is always made, however long
    it takes.

    Args:
        target: whose forward passes are timed.

    Returns:
        A table with the facts `is_full` (False), `num_points` (how many were measured) and
        `noise`: 1 where T(1) alone is known.
    """
    end = time.perf_counter() + _QUICK_S
    samples: dict[Point, list[float]] = {}
    num_rounds = 0
    with torch.inference_mode():
        passes = [_Passes(target, points) for points in _quick_groups(target)]
        while num_rounds < _QUICK_ROUNDS and _quick_round(passes, samples, end):
            num_rounds += 1
    seconds = {point: float(np.quantile(found, 0.25)) for point, found in samples.items()}
    return _table(
        target,
        completed(seconds),
        is_full=False,
        num_points=len(seconds),
        num_rounds=max(1, num_rounds),
        noise=_quick_noise(samples, PriceList.from_points(completed(seconds))),
    )


def _quick_groups(target: TargetModel) -> list[list[Point]]:
    """Points of one cache each, the most useful ones first; those that the context has room for."""
    options = LatencyOptions()
    lengths = _lengths(target, options)
    short, room = lengths[0], target.max_positions
    groups = [
        [(width, short, 1) for width in _QUICK_WIDTHS],
        *([(width, length, 1) for width in _QUICK_LONG] for length in lengths[1:]),
        [(width, short, options.rows[-1]) for width in _QUICK_BATCH],
    ]
    return [
        [p for p in group if p[0] == 1 or room is None or p[0] + p[1] <= room] for group in groups
    ]


def _quick_round(passes: Sequence[_Passes], samples: dict[Point, list[float]], end: float) -> bool:
    """A block of every point there is time for; False where time was up before all were done."""
    is_whole = True
    for one in passes:
        for point in one.points:
            now = time.perf_counter()
            if samples and now + _guess(samples, point) * _QUICK_BLOCK[0] > end:
                is_whole = False
                continue
            samples.setdefault(point, []).extend(
                one.block(point, _QUICK_BLOCK, _QUICK_BLOCK_S, end)
            )
    return is_whole


def _guess(samples: Mapping[Point, Sequence[float]], point: Point) -> float:
    """Seconds that a pass will probably take."""
    known = {at: min(found) for at, found in samples.items()}
    return PriceList.from_points(completed(known)).forward_s(*point)


def _quick_noise(samples: Mapping[Point, Sequence[float]], table: PriceList) -> float:
    """How far the times lie apart, or how far they had to be moved to rise, whichever is more."""
    if len(samples) < 2:
        return 1.0
    apart = [_noise(np.array(found)[:, None]) for found in samples.values() if len(found) > 1]
    moved = [
        abs(float(np.quantile(found, 0.25)) / table.forward_s(*point) - 1.0)
        for point, found in samples.items()
    ]
    return max(float(np.median(apart)) if apart else 0.0, *moved)


def _table(target: TargetModel, points: Mapping[Point, float], **facts: Any) -> PriceList:
    key = price_key(target)
    facts["noise"] = round(facts["noise"], 4)
    return PriceList.from_points(
        points,
        **{name: key[name] for name in ("hardware", "model_fingerprint", "dtype", "is_compiled")},
        facts={
            **key,
            "date": datetime.now(UTC).isoformat(timespec="seconds"),
            **facts,
            "load": round(os.getloadavg()[0], 2),
        },
    )


def expected_s(table: PriceList, points: Sequence[Point], options: LatencyOptions) -> float:
    """Seconds that `measure` takes on a quiet machine, by what is known of single passes."""
    of_pass = [table.forward_s(*point) for point in points]
    of_round = sum(s * max(_BLOCK[0], min(_BLOCK[1], _BLOCK_S / s)) for s in of_pass)
    fewest, most = options.rounds
    return of_round * (1 + max(fewest, min(most, options.seconds / of_round)))


def grid(target: TargetModel, options: LatencyOptions) -> list[Point]:
    """The points that the model's context has room for."""
    lengths = _lengths(target, options)
    limit = target.max_positions
    most = options.widths[-1] if limit is None else limit - lengths[-1]
    points: list[Point] = []
    for rows, length in product(options.rows, lengths):
        widths = options.widths if rows == 1 else options.batch_widths
        points += [(width, length, rows) for width in widths if width <= max(1, most)]
    return points


def _lengths(target: TargetModel, options: LatencyOptions) -> tuple[int, ...]:
    """Cached lengths that leave room for the widest tree, or at least for half of the context."""
    limit = target.max_positions
    if limit is None:
        return options.lengths
    longest = max(1, limit - options.widths[-1], limit // 2)
    return tuple(sorted({min(length, longest) for length in options.lengths}))


class _Passes:
    """One forward pass per point, of chains of random tokens."""

    def __init__(self, target: TargetModel, points: Sequence[Point]) -> None:
        self._target = target
        self.points = points
        widths, lengths, rows = (max(values) for values in zip(*points, strict=True))
        self._cache = target.make_cache(rows, lengths + widths)
        generator = torch.Generator().manual_seed(0)
        self._ids = torch.randint(target.vocab_size, (rows, widths), generator=generator).tolist()
        self._order = np.random.default_rng(0)

    def round(self) -> list[float]:
        """Seconds of every point's pass.

        In another order each time: after a large batch a CPU is slower for a while, and if that
        always hit one token alone, the list would be flat.
        """
        seconds = [0.0] * len(self.points)
        for index in self._order.permutation(len(self.points)):
            block = self.block(self.points[index], _BLOCK, _BLOCK_S)
            seconds[index] = statistics.median(block)
        return seconds

    def block(
        self, point: Point, most: tuple[int, int], seconds: float, end: float = float("inf")
    ) -> list[float]:
        """Seconds of passes in a row, the later half of them.

        Args:
            point: one of `points`.
            most: fewest and most passes.
            seconds: no pass begins after so long, but for the fewest.
            end: no pass but the first begins after this moment of `time.perf_counter`.
        """
        width, length, rows = point
        for row in range(rows):
            self._cache.truncate(row, 0)
            self._cache.commit(row, range(length))  # zeros, as good as text for the clock
        fed = [ids[:width] for ids in self._ids[:rows]]
        layouts = [tree_layout(chain_parents(width))] * rows
        block: list[float] = []
        while len(block) < most[0] or (len(block) < most[1] and sum(block) < seconds):
            begin = time.perf_counter()
            if block and begin > end:
                break
            logits, *_ = self._target.forward(self._cache, fed, layouts)
            if logits.is_cuda:
                torch.cuda.synchronize(logits.device)
            block.append(time.perf_counter() - begin)
        return block[len(block) // 2 :]


def _rounds(
    passes: _Passes,
    options: LatencyOptions,
    on_round: Callable[[int, int], None] | None,
) -> np.ndarray:  # [rounds, points]
    """Rounds until their medians are settled or time is up; a first one is not counted."""
    fewest, most = options.rounds
    passes.round()
    rounds: list[list[float]] = []
    started = time.perf_counter()
    while len(rounds) < most:
        rounds.append(passes.round())
        if on_round is not None:
            on_round(len(rounds), most)
        spent, noise = time.perf_counter() - started, _noise(np.array(rounds))
        is_late = spent > options.seconds * (1 if noise < QUIET else 3)
        if len(rounds) >= fewest and (is_late or noise < QUIET / 2):
            break
    return np.array(rounds)


def _noise(rounds: np.ndarray) -> float:
    """How far the medians of even and odd rounds lie apart, over their mean; median over points.

    Nothing is known of a single round: infinite.
    """
    if len(rounds) < 2:
        return float("inf")
    even, odd = np.median(rounds[::2], axis=0), np.median(rounds[1::2], axis=0)
    return float(np.median(2 * np.abs(even - odd) / (even + odd)))


def prices_of(target: TargetModel) -> PriceList:
    """The price list of a target on this machine: from this process, the disk, or measured now.

    Measuring takes about a second (`measure_quickly`). On a busy machine the list serves this process
    and is not kept on the disk. A cache that cannot be written costs a warning, nothing else.
    """
    known = _KNOWN.setdefault(target, {})
    name = _file_name(price_key(target))
    if name not in known:
        found = read_cached(target)
        if found is None:
            found = measure_quickly(target)
            if found.facts["noise"] <= QUIET:
                keep(target, found)
        known[name] = found
    return known[name]


_KNOWN: WeakKeyDictionary[TargetModel, dict[str, PriceList]] = WeakKeyDictionary()


def price_key(target: TargetModel) -> dict[str, Any]:
    """What a price list holds for."""
    return {
        "hardware": hardware_name(target.device),
        "model_fingerprint": target.fingerprint(),
        "dtype": str(target.model.dtype).removeprefix("torch."),
        "num_threads": torch.get_num_threads(),
        "torch": torch.__version__,
        "attention": target.model.config._attn_implementation,
        "is_compiled": target.is_compiled,
        "is_strict": target.is_strict,
        "method": _METHOD,
    }


def cache_file(target: TargetModel) -> Path:
    """Where a price list is kept: below `$DRAFTLESS_CACHE`, else the user's cache folder."""
    return cache_folder() / "prices" / _file_name(price_key(target))


def _file_name(key: Mapping[str, Any]) -> str:
    return f"{zlib.crc32(json.dumps(key, sort_keys=True).encode()):08x}.json"


def read_cached(target: TargetModel) -> PriceList | None:
    """The list on the disk; None where there is none, or a damaged one, or one of another target."""
    try:
        found = read_price_list(cache_file(target))
    except ArtifactError:
        return None
    return found if all(found.facts.get(k) == v for k, v in price_key(target).items()) else None


def keep(target: TargetModel, prices: PriceList) -> PriceList:
    """Write a list to the cache, for this process and later ones; returns it."""
    _KNOWN.setdefault(target, {})[_file_name(price_key(target))] = prices
    file = cache_file(target)
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        write_price_list(file, prices)
    except OSError as error:
        warnings.warn(
            f"the price list of this machine cannot be kept in {file.parent} ({error}) and will be "
            f"measured again by every process; set {CACHE_VARIABLE} to a folder that can be written",
            RuntimeWarning,
            stacklevel=2,
        )
    return prices
