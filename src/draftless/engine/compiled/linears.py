"""Linear layers on weights that were brought, once, into the order in which a CPU reads them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch.fx import Node
from torch.nn import functional

from draftless.engine import native
from draftless.engine.compiled.huge_pages import HugePages
from draftless.engine.compiled.trace import Traced
from draftless.engine.int8 import is_int8, split_int8

_OUTPUTS = 64  # per block; `kOutputs` in native/linear.cpp


class PackedLinear(Protocol):
    """Linear layers that share their input, side by side.

    Attributes:
        num_bytes: memory of the weights.
        width: outputs.
    """

    @property
    def num_bytes(self) -> int: ...

    @property
    def width(self) -> int: ...

    def put(self, traced: Traced, x: Node) -> Node:
        """A node of a graph for `[..., in]` to `[..., out]`, where the graph is being extended."""


@dataclass(frozen=True, slots=True)
class BlockedLinear:
    """Through `native/linear.cpp`: next to no set-up per call. The weights are inputs of the graph.

    Attributes:
        weight: `[blocks, in / 2, 64, 2]` bfloat16, or int8 where that holds it exactly.
        scale: `[width]` float32 of int8, else None.
        bias: `[width]` bfloat16 or None.
        width: outputs; the last block is filled up with zeros.
    """

    weight: torch.Tensor
    scale: torch.Tensor | None
    bias: torch.Tensor | None
    width: int

    @classmethod
    def pack(
        cls, weight: torch.Tensor, bias: torch.Tensor | None, memory: HugePages
    ) -> BlockedLinear:
        scale = None
        if is_int8(weight):
            weight, scale = split_int8(weight)
        width, num_inputs = weight.shape
        filled = functional.pad(weight, (0, 0, 0, -width % _OUTPUTS))
        blocks = filled.view(-1, _OUTPUTS, num_inputs // 2, 2).transpose(1, 2)
        return cls(memory.place(blocks).contiguous(), scale, bias, width)

    @property
    def num_bytes(self) -> int:
        return self.weight.nbytes

    def put(self, traced: Traced, x: Node) -> Node:
        stored = [
            None if one is None else traced.add_input(one)
            for one in (self.weight, self.scale, self.bias)
        ]
        operator = torch.ops.draftless_cpu.linear.default
        return traced.graph.graph.call_function(operator, (x, *stored, self.width))


@dataclass(frozen=True, slots=True)
class OneDNNLinear:
    """Through oneDNN's inner product, for CPUs without AVX512-BF16 and for float16.

    The graph knows it by its number, since the compiler asks inputs for strides, and this layout has none.

    Attributes:
        weight: in oneDNN's own layout.
        bias: `[out]` or None.
        num_bytes, width: see above.
    """

    weight: torch.Tensor
    bias: torch.Tensor | None
    num_bytes: int
    width: int

    @classmethod
    def pack(cls, weight: torch.Tensor, bias: torch.Tensor | None) -> OneDNNLinear:
        # The layout does not depend on the number of rows that is named here.
        packed = torch.ops.mkldnn._reorder_linear_weight(weight, 1)
        return cls(packed, bias, weight.nbytes, len(weight))

    def put(self, traced: Traced, x: Node) -> Node:
        number = traced.add_input(torch.tensor(len(traced.linears)))
        traced.linears.append(self)
        return traced.graph.graph.call_function(
            torch.ops.draftless.linear.default, (x, number, self.width)
        )

    def __call__(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = torch.ops.mkldnn._linear_pointwise(
            x, self.weight, self.bias, "none", [], ""
        )
        return out


def can_pack(dtype: torch.dtype, device: torch.device) -> bool:
    """Whether packing pays: on a CPU with fast half-precision products."""
    ops = torch.ops.mkldnn
    fast = {
        torch.bfloat16: ops._is_mkldnn_bf16_supported,
        torch.float16: ops._is_mkldnn_fp16_supported,
    }
    return device.type == "cpu" and torch._C._has_mkldnn and dtype in fast and bool(fast[dtype]())


def pack(
    weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None], memory: HugePages
) -> PackedLinear:
    """Pack weights `[out, in]` of half precision; where one has a bias, the others get zeros."""
    bias = None
    if any(one is not None for one in biases):
        pairs = zip(weights, biases, strict=True)
        bias = torch.cat([w.new_zeros(len(w)) if b is None else b for w, b in pairs])
    weight = torch.cat(list(weights)) if len(weights) > 1 else weights[0]
    is_blocked = weight.dtype == torch.bfloat16 and weight.shape[1] % 2 == 0 and has_blocked()
    if is_blocked:
        return BlockedLinear.pack(weight, bias, memory)
    return OneDNNLinear.pack(weight, bias)


def has_blocked() -> bool:
    """Whether `native/linear.cpp` runs here; it is compiled now, or was before."""
    return native.has_fast_products() and native.load("linear")
