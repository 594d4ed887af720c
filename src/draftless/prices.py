"""The price list: what a forward pass of the target costs on one machine, by width, length and rows.

Measured at some points (`engine.latency`), interpolated in between. Planners weigh a draft's chance
against its price; the emitted ids never depend on it.
"""

from __future__ import annotations

import json
from bisect import bisect_right
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from draftless.errors import ArtifactError, ConfigError, DraftlessError
from draftless.jsonl import write_json

FORMAT_VERSION = 1

_LENGTH_STEP = 64  # a curve serves this many cached lengths, so that few are computed

Seconds = npt.NDArray[np.float64]
Point = tuple[int, int, int]
"""Tree width (nodes per row), cached tokens per row, rows."""


@dataclass(frozen=True, eq=False)
class PriceList:
    """Seconds of forward passes, made monotone: more of anything never costs less.

    Linear between the measured points; beyond the last one of an axis it goes on like the last
    interval (there a wider pass still never costs less), before the first one it is flat. A list
    that was measured with one number of rows prices the rows of a batch like more width.

    Attributes:
        widths, lengths, rows: the measured values of each axis, ascending; tree width is nodes per
            row, padded to the widest row; length is cached tokens per row.
        seconds: `[widths, lengths, rows]`.
        hardware: the processor's or GPU's name.
        model_fingerprint: of the model whose passes were measured (`TargetModel.fingerprint`).
        dtype: of its weights, such as `bfloat16`.
        is_compiled: whether the compiled forward was measured.
        facts: what else is known: threads, versions, noise.
    """

    widths: tuple[int, ...]
    lengths: tuple[int, ...]
    rows: tuple[int, ...]
    seconds: Seconds
    hardware: str = ""
    model_fingerprint: str = ""
    dtype: str = ""
    is_compiled: bool = False
    facts: Mapping[str, Any] = field(default_factory=dict)
    _curves: dict[Point, Seconds] = field(default_factory=dict, init=False, repr=False)

    def __post_init__(self) -> None:
        for name, axis in (("widths", self.widths), ("lengths", self.lengths), ("rows", self.rows)):
            low = 0 if name == "lengths" else 1
            if not axis or list(axis) != sorted(set(axis)) or axis[0] < low:
                raise ConfigError(
                    f"{name} of a price list must ascend from {low} or more, not {axis}"
                )
        shape = (len(self.widths), len(self.lengths), len(self.rows))
        seconds = np.array(self.seconds, dtype=np.float64)
        if seconds.shape != shape or not np.isfinite(seconds).all() or seconds.min() <= 0:
            raise ConfigError(
                f"a price list with {shape} points needs as many times above 0, not {self.seconds}"
            )
        object.__setattr__(self, "seconds", risen(seconds))

    @classmethod
    def from_points(cls, points: Mapping[Point, float], **about: Any) -> PriceList:
        """A list of measured points.

        Widths that are missing for some length and rows are interpolated from those that are there,
        after these were made to rise: a last interval that falls would be carried on below 0.

        Args:
            points: seconds by (width, length, rows).
            **about: `hardware`, `model_fingerprint`, `dtype`, `is_compiled`, `facts`.

        Raises:
            ConfigError: some length was measured with some rows only, or a value is out of range.
        """
        if not points:
            raise ConfigError("a price list needs at least one measured point")
        widths, lengths, rows = (tuple(sorted(set(v))) for v in zip(*points, strict=True))
        seconds = np.empty((len(widths), len(lengths), len(rows)))
        for (i, length), (j, count) in product(enumerate(lengths), enumerate(rows)):
            own = sorted(w for w, at, num in points if (at, num) == (length, count))
            if not own:
                raise ConfigError(
                    f"a price list needs every length with every number of rows; {length} tokens "
                    f"in {count} rows were not measured"
                )
            measured = risen(np.array([points[width, length, count] for width in own]))
            seconds[:, i, j] = _line_through(own, measured, np.array(widths, dtype=np.float64))
        return cls(widths, lengths, rows, seconds, **about)

    def forward_s(self, width: int, length: int = 512, rows: int = 1) -> float:
        """Seconds of one forward pass.

        Args:
            width: nodes per row, at least 1.
            length: cached tokens per row.
            rows: of the batch.
        """
        return float(self._line(length, rows, np.array([width]))[0])

    def curve(self, length: int, rows: int, max_width: int) -> Seconds:
        """Seconds of the widths 1 to `max_width`, `[max_width]`; computed once, not to be changed.

        The cached length is rounded up to a multiple of 64.
        """
        length = -(-length // _LENGTH_STEP) * _LENGTH_STEP
        key = (max_width, length, rows)
        found = self._curves.get(key)
        if found is None:
            found = self._line(length, rows, np.arange(1, max_width + 1))
            found.flags.writeable = False
            self._curves[key] = found
        return found

    def _line(self, length: int, rows: int, widths: npt.NDArray[np.int64]) -> Seconds:
        """Seconds of some widths at one length and number of rows."""
        tokens = widths.astype(np.float64)
        if len(self.rows) == 1:
            tokens, rows = tokens * rows / self.rows[0], self.rows[0]
        first, second, share = _between(self.rows, rows)
        plane = (1 - share) * self.seconds[:, :, first] + share * self.seconds[:, :, second]
        first, second, share = _between(self.lengths, length)
        line = (1 - share) * plane[:, first] + share * plane[:, second]
        line = np.maximum.accumulate(line)  # beyond the last length or row differences may cross
        return _line_through(self.widths, line, tokens)

    def to_dict(self) -> dict[str, Any]:
        """For JSON; `from_dict` reads it."""
        return {
            "format_version": FORMAT_VERSION,
            "hardware": self.hardware,
            "model_fingerprint": self.model_fingerprint,
            "dtype": self.dtype,
            "is_compiled": self.is_compiled,
            "widths": list(self.widths),
            "lengths": list(self.lengths),
            "rows": list(self.rows),
            "seconds": self.seconds.tolist(),
            "facts": dict(self.facts),
        }

    @classmethod
    def from_dict(cls, data: Any) -> PriceList:
        """Read what `to_dict` wrote.

        Raises:
            ArtifactError: it has another form or a newer format.
        """
        try:
            version = data["format_version"]
            if version != FORMAT_VERSION:
                raise ArtifactError(
                    f"a price list of format version {version}, this Draftless reads "
                    f"{FORMAT_VERSION}; measure again: draftless calibrate latency --force"
                )
            fields = {key: value for key, value in data.items() if key != "format_version"}
            for axis in ("widths", "lengths", "rows"):
                fields[axis] = tuple(map(int, fields[axis]))
            fields["seconds"] = np.array(fields["seconds"], dtype=np.float64)
            fields["facts"] = dict(fields.get("facts", {}))
            return cls(**fields)
        except ArtifactError:
            raise
        except (TypeError, KeyError, ValueError, AttributeError, DraftlessError) as error:
            raise ArtifactError(f"not a price list: {error!r}") from error

    def __eq__(self, other: object) -> bool:
        return isinstance(other, PriceList) and self.to_dict() == other.to_dict()

    __hash__ = None  # type: ignore[assignment]


def _between(axis: Sequence[int], value: int) -> tuple[int, int, float]:
    """Two places on an axis and the share of the second one, above 1 beyond the last."""
    if len(axis) == 1 or value <= axis[0]:
        return 0, 0, 0.0
    second = min(bisect_right(axis, value), len(axis) - 1)
    share = (value - axis[second - 1]) / (axis[second] - axis[second - 1])
    return second - 1, second, share


def _line_through(axis: Sequence[int], values: Seconds, wanted: Seconds) -> Seconds:
    """Linear between the points, flat before the first, and on beyond the last."""
    found: Seconds = np.interp(wanted, axis, values)
    if len(axis) > 1:
        slope = (values[-1] - values[-2]) / (axis[-1] - axis[-2])
        found += slope * np.maximum(0.0, wanted - axis[-1])
    return found


def risen(seconds: Seconds) -> Seconds:
    """Seconds on a grid, made to rise along every axis: that more work costs less is noise.

    The mean of the smallest rising surface above and the largest one below.
    """
    above, below = seconds, seconds
    for axis in range(seconds.ndim):
        above = np.maximum.accumulate(above, axis)
        below = np.flip(np.minimum.accumulate(np.flip(below, axis), axis), axis)
    return (above + below) / 2


# T(W) over T(1) of the embedded model, compiled, on two cores, 512 cached tokens
# (`benchmarks/results/compiled.json`): nearly flat while memory sets the time, then linear.
_SHAPE_TOKENS = (1, 2, 4, 8, 16, 32)
_SHAPE = np.array([1.0, 1.04, 1.06, 1.14, 1.29, 1.57])
_SHAPE_WIDTHS = (1, 2, 4, 6, 8, 12, 16, 24, 32, 64)


def completed(points: Mapping[Point, float]) -> dict[Point, float]:
    """A few measured points, and what the default shape says of the others.

    The shape is scaled to the measured points, and in between to the nearest two. A batch of
    `rows` trees of `width` nodes is first taken for a tree of `width * rows` nodes. Lengths and
    rows that were not measured at all are left out (`PriceList` carries on without them).

    Args:
        points: seconds by (width, length, rows); of the shortest length and the fewest rows at
            least one.

    Returns:
        Seconds above 0 of `points` and of all widths of the shape, for every length with every
        number of rows; those of `points` as they are.
    """
    widths, lengths, rows = (tuple(sorted(set(v))) for v in zip(*points, strict=True))
    widths = tuple(sorted({*widths, *_SHAPE_WIDTHS}))
    tokens = np.array(widths, dtype=np.float64)
    at, one = lengths[0], rows[0]

    def scaled(guess: Seconds, length: int, count: int) -> Seconds:
        """`guess`, by width, times what the measured points of this length and rows are of it."""
        own = [place for place, width in enumerate(widths) if (width, length, count) in points]
        if not own:
            return guess
        ratios = [points[widths[place], length, count] / guess[place] for place in own]
        found: Seconds = guess * np.interp(tokens, tokens[own], ratios)
        return found

    first = scaled(_line_through(_SHAPE_TOKENS, _SHAPE, tokens * one), at, one)
    of_length = {length: scaled(first, length, one) for length in lengths[1:]} | {at: first}
    rising = risen(first)
    found = dict(points)
    for count in rows:
        guess = first if count == one else _line_through(widths, rising, tokens * count / one)
        batch = scaled(guess, at, count)
        for length in lengths:
            line = scaled(batch * of_length[length] / first, length, count)
            for width, seconds in zip(widths, line.tolist(), strict=True):
                found.setdefault((width, length, count), seconds)
    return found


def write_price_list(file: Path, prices: PriceList) -> None:
    """Write a file in one piece."""
    write_json(file, prices.to_dict())


def read_price_list(file: str | Path) -> PriceList:
    """Read what `write_price_list` wrote.

    Raises:
        ArtifactError: the file is missing, damaged or has a newer format.
    """
    try:
        data = json.loads(Path(file).read_text(encoding="utf-8-sig"))
        return PriceList.from_dict(data)
    except ArtifactError as error:
        raise ArtifactError(f"{file}: {error}") from error
    except (OSError, ValueError) as error:
        raise ArtifactError(
            f"{file} cannot be read as a price list: {error}; "
            "measure again: draftless calibrate latency --force"
        ) from error
