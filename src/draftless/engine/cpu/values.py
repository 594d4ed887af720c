"""What a lowered pass is made of: per-token storage, views of it, and the nodes that fill it."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

import torch

TOKENS = -1
"""The stride of the axis of tokens, which storage does not have."""


class NotLowered(Exception):  # noqa: N818 - a verdict on a model, not an error of the program
    """This model's pass holds something that the native forward pass does not know."""


@dataclass(eq=False, slots=True)
class Storage:
    """Numbers of one token that a node writes.

    Attributes:
        size: how many.
        dtype: float32 or bfloat16, whose precision they have; int64 of tokens and positions.
    """

    size: int
    dtype: torch.dtype


@dataclass(frozen=True, slots=True)
class Axis:
    size: int
    stride: int  # TOKENS of the axis of tokens


@dataclass(frozen=True, slots=True)
class View:
    """A tensor of a recorded pass: axes over a storage.

    Attributes:
        axes: one per dimension of the tensor.
    """

    storage: Storage
    axes: tuple[Axis, ...]
    first: int
    dtype: torch.dtype

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(axis.size for axis in self.axes)

    @property
    def inner(self) -> list[Axis]:
        """The axes that storage has, without those of size one."""
        return [axis for axis in self.axes if axis.stride != TOKENS and axis.size > 1]

    @property
    def is_dense(self) -> bool:
        """Whether the inner axes lie in order without gaps."""
        return [a.stride for a in self.inner] == dense_strides([a.size for a in self.inner])


@dataclass(frozen=True, slots=True)
class Constant:
    """Float32 numbers that are the same for all tokens.

    Attributes:
        tensor: contiguous float32.
        shape: of the tensor in the recorded pass, to which it broadcasts.
    """

    tensor: torch.Tensor

    @property
    def axes(self) -> tuple[Axis, ...]:
        return tuple(map(Axis, self.tensor.shape, self.tensor.stride()))


Operand = View | Constant


@dataclass(eq=False, slots=True)
class Instruct:
    """One instruction of `native/elementwise.h`: `out = op(a, b)` over `sizes`, with the strides of each.

    Attributes:
        op: name, as in `Op`.
        out, a, b: storage (or constants) with the number of the first element and three strides.
        table: of an embedding, `[rows, size]`.
    """

    op: str
    sizes: tuple[int, int, int]
    out: Placed
    a: Placed | None = None
    b: Placed | None = None
    is_rounded: bool = False
    number: float = 0.0
    table: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class Placed:
    storage: Storage | torch.Tensor
    first: int
    strides: tuple[int, int, int] = (0, 0, 0)


@dataclass(eq=False, slots=True)
class Linear:
    """Linear layers that share their input, side by side."""

    x: View
    out: Storage
    weights: list[torch.Tensor] = field(default_factory=list)
    biases: list[torch.Tensor | None] = field(default_factory=list)


@dataclass(eq=False, slots=True)
class Attend:
    query: View
    key: View
    value: View
    out: Storage
    place: dict[str, Any]


Node = Instruct | Linear | Attend


def dense_strides(sizes: Sequence[int]) -> list[int]:
    return [prod(sizes[index + 1 :]) for index in range(len(sizes))]


def dense_axes(shape: Sequence[int], tokens_at: int) -> tuple[Axis, ...]:
    """Axes over fresh storage: all but that of the tokens in order."""
    sizes = [1 if index == tokens_at else size for index, size in enumerate(shape)]
    strides = dense_strides(sizes)
    return tuple(
        Axis(size, TOKENS if index == tokens_at else strides[index])
        for index, size in enumerate(shape)
    )


def tokens_at(axes: Sequence[Axis]) -> int | None:
    """The axis of tokens."""
    return next((i for i, axis in enumerate(axes) if axis.stride == TOKENS), None)


def broadcast(axes: Sequence[Axis], shape: Sequence[int]) -> list[Axis]:
    """Axes as an operand of a result of this shape.

    Raises:
        NotLowered: numbers that differ by token without being of tokens.
    """
    padded = [*[Axis(1, 0)] * (len(shape) - len(axes)), *axes]
    return [
        axis if axis.size == size or axis.stride == TOKENS else Axis(size, 0)
        for axis, size in zip(padded, shape, strict=True)
    ]


def merged(
    sizes: Sequence[int], strides: Sequence[Sequence[int]]
) -> tuple[list[int], list[list[int]]]:
    """Neighbouring axes made one where all operands allow it, then brought to exactly three.

    Args:
        sizes: of the axes.
        strides: per operand, of each axis.

    Raises:
        NotLowered: more than three are left.
    """
    kept: list[int] = []
    of_all: list[list[int]] = [[] for _ in strides]
    for index, size in enumerate(sizes):
        if size == 1:
            continue
        here = [one[index] for one in strides]
        if kept and all(mine[-1] == at * size for mine, at in zip(of_all, here, strict=True)):
            kept[-1] *= size
            for mine, at in zip(of_all, here, strict=True):
                mine[-1] = at
        else:
            kept.append(size)
            for mine, at in zip(of_all, here, strict=True):
                mine.append(at)
    if len(kept) > 3:
        raise NotLowered(f"an operation over {len(kept)} axes")
    missing = 3 - len(kept)
    return [1] * missing + kept, [[0] * missing + mine for mine in of_all]


def regrouped(axes: Sequence[Axis], sizes: Sequence[int]) -> list[int] | None:
    """Strides of inner axes seen with other sizes; None where they cannot be seen so."""
    old = [axis for axis in axes if axis.size > 1]
    strides: list[int] = []
    position = 0
    remaining = list(sizes)
    while remaining:
        size = remaining.pop(0)
        if size == 1:
            strides.append(0)
            continue
        group, total = [size], size
        begin, span = position, 1
        while span != total:
            if span < total:
                if position >= len(old):
                    return None
                span *= old[position].size
                position += 1
            else:
                if not remaining:
                    return None
                group.append(remaining.pop(0))
                total *= group[-1]
        taken = old[begin:position]
        if any(a.stride != b.stride * b.size for a, b in itertools.pairwise(taken)):
            return None
        strides += [step * taken[-1].stride for step in dense_strides(group)]
    return strides if position == len(old) else None
