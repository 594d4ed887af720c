"""Randomness that is an argument: keyed Gumbel draws, and the noise tokens of MSN.

Keyed draws are a public contract, pinned by golden vectors in `tests/unit/test_keyed_draws.py`:

    stream  = mix(mix(mix(seed) + sample_index) + position)           64-bit, wrapping
    bits    = mix(stream + (token_id + 1) * 0x9E3779B97F4A7C15)       SplitMix64, random access
    uniform = ((bits >> 12) + 0.5) / 2**52                            strictly inside (0, 1)
    noise   = -log(-log(uniform))                                     standard Gumbel, fp64

All but the logarithm is exact. That is the platform's, and its last bit differs between libraries on
some processors: noise is the same to a few units in the last place of an fp64 everywhere.

`mix` is the output function of SplitMix64 (Steele, Lea and Flood, OOPSLA 2014). The noise of one
token depends on nothing but (seed, sample_index, position, token_id): not on the batch row, the
vocabulary size, the device or the order of calls, so a drafter may look at it (DESIGN 2).
"""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import torch

from draftless.errors import ConfigError

_MASK64 = (1 << 64) - 1
_GOLDEN = 0x9E3779B97F4A7C15
_MUL_1 = 0xBF58476D1CE4E5B9
_MUL_2 = 0x94D049BB133111EB
_BITS_OF_ONE = 0x3FF0000000000000


def mix64(value: int) -> int:
    """SplitMix64's output function on one integer, modulo 2**64."""
    value &= _MASK64
    value = ((value ^ (value >> 30)) * _MUL_1) & _MASK64
    value = ((value ^ (value >> 27)) * _MUL_2) & _MASK64
    return value ^ (value >> 31)


def hash_ids(seed: int, *integers: int, ids: Sequence[int] = ()) -> int:
    """A 64-bit hash of integers and token ids: the seed of everything that must not depend on order."""
    state = mix64(seed + _GOLDEN)
    for value in (*integers, len(ids), *ids):
        state = mix64((state + _GOLDEN) ^ mix64(value))
    return state


def signed(value: int) -> int:
    """The int64 with the same bits, because torch has no unsigned arithmetic."""
    value &= _MASK64
    return value - (1 << 64) if value >> 63 else value


def _shift_right(bits: torch.Tensor, count: int) -> torch.Tensor:
    """Logical shift of int64 bits (torch's own is arithmetic)."""
    return (bits >> count) & ((1 << (64 - count)) - 1)


def token_keys(token_ids: np.ndarray) -> np.ndarray:
    """What token ids `[...]` bring to their bits: `(token_id + 1) * golden`, uint64 `[...]`."""
    return (token_ids.astype(np.uint64) + np.uint64(1)) * np.uint64(_GOLDEN)


def gumbel(bits: np.ndarray) -> np.ndarray:
    """From `stream + (token_id + 1) * golden` (uint64 `[...]`, overwritten) on: fp64 `[...]`."""
    noise = uniform(bits)
    for _ in range(2):
        np.log(noise, out=noise)
        np.negative(noise, out=noise)
    return noise


def uniform(bits: np.ndarray) -> np.ndarray:
    """The same up to the uniform numbers: those of `uniform_on_device`, at a third of its time."""
    spare = np.empty_like(bits)
    for shift, factor in ((30, _MUL_1), (27, _MUL_2), (31, 1)):
        np.right_shift(bits, np.uint64(shift), out=spare)
        np.bitwise_xor(bits, spare, out=bits)
        if factor > 1:
            np.multiply(bits, np.uint64(factor), out=bits)
    # The upper 52 bits as those of a double in [1, 2): no conversion, and every step is exact.
    np.right_shift(bits, np.uint64(12), out=bits)
    np.bitwise_or(bits, np.uint64(_BITS_OF_ONE), out=bits)
    noise = bits.view(np.float64)
    np.subtract(noise, 1.0 - 2.0**-53, out=noise)
    return noise


def uniform_on_device(bits: torch.Tensor) -> torch.Tensor:
    """From the same bits (int64 `[...]`) on: fp64 `[...]`, the uniform numbers."""
    bits = (bits ^ _shift_right(bits, 30)) * signed(_MUL_1)
    bits = (bits ^ _shift_right(bits, 27)) * signed(_MUL_2)
    bits = bits ^ _shift_right(bits, 31)
    return (_shift_right(bits, 12).double() + 0.5) * 2.0**-52


@dataclass(frozen=True, slots=True)
class KeyedNoise:
    """The Gumbel noise of one request: a pure function of (position, token ids).

    Attributes:
        seed: the request's seed; any Python integer, taken modulo 2**64.
        sample_index: which of several samples of the same prompt and seed this is.
    """

    seed: int
    sample_index: int = 0
    base: int = field(init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "base", mix64(mix64(self.seed) + self.sample_index))

    def __call__(
        self,
        position: int | Sequence[int],
        token_ids: torch.Tensor,  # [...] int64; [m, n] for m positions
    ) -> torch.Tensor:  # float64, shape and device of token_ids
        """Noise of `token_ids` for the token that is emitted at absolute `position`.

        With several positions, row `i` of `token_ids` belongs to position `i`.
        """
        if token_ids.device.type == "cpu":
            bits = token_keys(np.atleast_1d(token_ids.numpy()))
            if isinstance(position, int):
                bits += np.uint64(self.stream(position))
            else:
                bits += self.streams(position)
            return torch.from_numpy(gumbel(bits)).view(token_ids.shape)
        return self._on_device(position, token_ids)

    def _on_device(self, position: int | Sequence[int], token_ids: torch.Tensor) -> torch.Tensor:
        bits = (token_ids + 1) * signed(_GOLDEN)
        if isinstance(position, int):
            bits += signed(self.stream(position))
        else:
            bits += torch.from_numpy(self.streams(position).view(np.int64)).to(bits.device)
        return -torch.log(-torch.log(uniform_on_device(bits)))

    def few(self, position: int, token_ids: Sequence[int]) -> list[float]:
        """The same for a handful of ids: without tensors, which cost more than the noise itself."""
        stream, log = self.stream(position), math.log
        return [
            -log(-log(((mix64(stream + (token_id + 1) * _GOLDEN) >> 12) + 0.5) * 2.0**-52))
            for token_id in token_ids
        ]

    def stream(self, position: int) -> int:
        """What seed, sample and position bring to the bits."""
        return mix64(self.base + position)

    def streams(self, positions: Sequence[int]) -> np.ndarray:  # [m, 1] uint64
        """`stream` of several positions, to be added to keys `[n]` or `[m, n]`."""
        return np.array([[self.stream(position)] for position in positions], dtype=np.uint64)


NoiseSource = Literal["prefix", "vocabulary"]


@dataclass(frozen=True)
class NoiseSampler:
    """Draws MSN's noise tokens; training and decoding share it (2406.17404, "ahead noise").

    Attributes:
        source: `prefix` draws uniformly from the tokens before the place (so by frequency);
            `vocabulary` draws uniformly from all ids below `vocab_size`.
        vocab_size: needed for `vocabulary` only.
        excluded_ids: never drawn as noise: special tokens, and ids that stand for no token.
    """

    source: NoiseSource = "prefix"
    vocab_size: int | None = None
    excluded_ids: Collection[int] = field(default_factory=frozenset)
    _vocabulary: Sequence[int] = field(init=False, repr=False, compare=False, default=())

    def __post_init__(self) -> None:
        if self.source not in ("prefix", "vocabulary"):
            raise ConfigError(
                f"noise source {self.source!r} is unknown; use 'prefix' or 'vocabulary'"
            )
        if self.source == "vocabulary" and not self.vocab_size:
            raise ConfigError("noise source 'vocabulary' needs vocab_size")
        if self.source == "vocabulary":
            known = [i for i in range(self.vocab_size or 0) if i not in self.excluded_ids]
            object.__setattr__(self, "_vocabulary", known)

    def pool(self, prefix_ids: Sequence[int]) -> Sequence[int]:
        """The ids that may be drawn after `prefix_ids`, with their multiplicity."""
        if self.source == "vocabulary":
            return self._vocabulary
        if not self.excluded_ids:
            return prefix_ids
        return [i for i in prefix_ids if i not in self.excluded_ids]

    def draw(
        self, prefix_ids: Sequence[int], count: int, generator: np.random.Generator
    ) -> list[int]:
        """Draw a run of `count` noise tokens to stand after `prefix_ids`.

        Each token is drawn from all tokens before its own place, earlier noise of the run included
        (the paper edits its array in place, from left to right). Such a copy of an earlier draw is
        itself a draw from the prefix, so every token of the run has the prefix's distribution.

        Returns:
            `count` ids, or an empty list where nothing may be drawn (an empty prefix).
        """
        pool = self.pool(prefix_ids)
        if not pool:
            return []
        drawn: list[int] = []
        grows = self.source == "prefix"
        for _ in range(count):
            index = int(generator.integers(len(pool) + (len(drawn) if grows else 0)))
            drawn.append(pool[index] if index < len(pool) else drawn[index - len(pool)])
        return drawn
