"""From the operators of a recorded pass to nodes that work on one token at a time.

A tensor of the pass has one axis of tokens. What is computed for a token from that token alone becomes instructions
on its own numbers, in the precision and with the roundings of the model's own code; products and attention stay whole.
Views, transposes and slices cost nothing. A value that depends on no token is the one that was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from draftless.engine.cpu.products import ProductOperators
from draftless.engine.cpu.record import Call, Recording
from draftless.engine.cpu.shapes import cut, filled, three
from draftless.engine.cpu.sums import SumOperators
from draftless.engine.cpu.values import (
    TOKENS,
    Axis,
    Constant,
    Instruct,
    Linear,
    Node,
    NotLowered,
    Operand,
    Placed,
    Storage,
    View,
    broadcast,
    dense_axes,
    merged,
    tokens_at,
)

_UNARY = {
    "neg": "neg", "rsqrt": "rsqrt", "sqrt": "sqrt", "exp": "exp", "silu": "silu", "tanh": "tanh",
    "sigmoid": "sigmoid", "relu": "relu", "cos": "cos", "sin": "sin", "abs": "abs", "erf": "erf",
}  # fmt: skip
_BINARY = {
    "add": "add", "sub": "sub", "mul": "mul", "div": "div", "maximum": "maximum", "minimum": "minimum",
}  # fmt: skip
_SAME = {"alias", "contiguous", "clone", "detach", "lift_fresh"}
_FLOATS = (torch.float32, torch.bfloat16)


class Lowering(SumOperators, ProductOperators):
    """Lowers one recording.

    Args:
        recording: of a model in `dtype`.
        dtype: float32 or bfloat16.

    Attributes:
        nodes: in order; some may serve nothing.
        logits: the result.
        states: what comes before the head; None if it depends on no token.
        token_ids, positions: the storage of these two.

    Raises:
        NotLowered: an operator that is not known, or that mixes tokens.
    """

    def __init__(self, recording: Recording, dtype: torch.dtype) -> None:
        self._dtype = dtype
        self._num_tokens = recording.token_ids.shape[1]
        self.nodes: list[Node] = []
        self._values: dict[int, View] = {}
        self._linears: dict[int, Linear] = {}
        self.token_ids, self.positions = Storage(1, torch.int64), Storage(1, torch.int64)
        for tensor, storage in (
            (recording.token_ids, self.token_ids),
            (recording.positions, self.positions),
        ):
            axes = (Axis(1, 0), Axis(self._num_tokens, TOKENS))
            self._values[id(tensor)] = View(storage, axes, 0, torch.int64)
        for call in recording.calls:
            if call.name == "attention":
                self._attention(call)
            elif self._is_of_tokens(call):
                self._call(call)
        if id(recording.logits) not in self._values:
            raise NotLowered("logits that depend on no token")
        self.logits = self._values[id(recording.logits)]
        self.states = self._values.get(id(recording.states))

    def _is_of_tokens(self, call: Call) -> bool:
        for one in (*call.args, *call.kwargs.values()):
            parts = one if isinstance(one, tuple | list) else (one,)
            if any(isinstance(part, torch.Tensor) and id(part) in self._values for part in parts):
                return True
        return False

    def _call(self, call: Call) -> None:
        library, _, name = call.name.partition(".")
        name, _, overload = name.partition(".")
        if library != "aten":
            raise NotLowered(f"{call.name}, which is no operator of torch")
        if call.is_mutable:
            raise NotLowered(f"{call.name}, which writes in place")
        name = name.removeprefix("_unsafe_")
        made: View | Sequence[View]
        if name in _UNARY:
            made = self._elementwise(_UNARY[name], call, call.args[:1])
        elif name in _BINARY:
            is_plain = call.kwargs.get("alpha", 1) == 1 and not call.kwargs.get("rounding_mode")
            if not is_plain or len(call.args) != 2:
                raise NotLowered(f"{call.name} with {call.args[2:]} {call.kwargs}")
            made = self._elementwise(_BINARY[name], call, call.args)
        elif name in _SAME or name in ("to", "_to_copy", "type_as"):
            made = self._cast(self._view(call.args[0]), call.results[0].dtype)
        else:
            handler: Callable[[Call, str], View | Sequence[View]] | None = getattr(
                self, f"_on_{name}", None
            )
            if handler is None:
                raise NotLowered(f"{call.name}")
            made = handler(call, overload)
        for tensor, view in zip(
            call.results, made if isinstance(made, list | tuple) else [made], strict=True
        ):
            if tuple(tensor.shape) != view.shape:
                raise NotLowered(f"{call.name} of shape {tuple(tensor.shape)}")
            self._values[id(tensor)] = view

    def _view(self, tensor: Any) -> View:
        if id(tensor) not in self._values:
            raise NotLowered("an operator on something that is not of tokens")
        return self._values[id(tensor)]

    def _operand(self, value: Any) -> Operand:
        if isinstance(value, torch.Tensor):
            if id(value) in self._values:
                return self._values[id(value)]
            if not value.is_floating_point() and value.dtype not in (torch.int64, torch.int32):
                raise NotLowered(f"a constant of {value.dtype}")
            return Constant(value.detach().float().contiguous().clone())
        if isinstance(value, bool) or not isinstance(value, int | float):
            raise NotLowered(f"an operand {value!r}")
        return Constant(torch.tensor(float(value), dtype=torch.float32))

    # Instructions.

    def _fresh(self, shape: Sequence[int], at: int, dtype: torch.dtype) -> View:
        axes = dense_axes(shape, at)
        size = 1
        for axis in axes:
            size *= 1 if axis.stride == TOKENS else axis.size
        return View(Storage(size, dtype), axes, 0, dtype)

    def _instruct(
        self, op: str, out: View, operands: Sequence[Operand], number: float = 0.0
    ) -> None:
        """Instructions that fill `out`; operands broadcast to its shape."""
        lists = [broadcast(one.axes, out.shape) for one in operands]
        inner = [index for index, axis in enumerate(out.axes) if axis.stride != TOKENS]
        for axes in lists:
            for index, axis in enumerate(axes):
                is_tokens, wants = axis.stride == TOKENS, out.axes[index].stride == TOKENS
                if is_tokens != wants and not (wants and axis.stride == 0):
                    raise NotLowered(f"{op} that mixes tokens")
        sizes, strides = merged(
            [out.axes[i].size for i in inner],
            [[axes[i].stride for i in inner] for axes in (out.axes, *lists)],
        )
        first, *others = map(three, strides)
        a, b = filled(
            [
                Placed(one.storage, one.first, them)
                if isinstance(one, View)
                else Placed(one.tensor, 0, them)
                for one, them in zip(operands, others, strict=True)
            ],
            (None, None),
        )
        is_rounded = out.dtype == torch.bfloat16
        to = Placed(out.storage, out.first, first)
        self.nodes.append(Instruct(op, three(sizes), to, a, b, is_rounded, number))

    def _elementwise(self, op: str, call: Call, args: Sequence[Any], number: float = 0.0) -> View:
        operands = [self._operand(one) for one in args]
        (result,) = call.results
        if result.dtype == torch.bfloat16:
            operands = [self._rounded(op, *both) for both in enumerate(operands)]
        if result.dtype not in (*_FLOATS, torch.int64) or (
            result.dtype == torch.int64 and op not in ("add", "sub", "mul")
        ):
            raise NotLowered(f"{call.name} in {result.dtype}")
        at = None
        for one in operands:
            axes = broadcast(one.axes, result.shape)
            at = tokens_at(axes) if at is None else at
        assert at is not None
        out = self._fresh(result.shape, at, result.dtype)
        self._instruct(op, out, operands, number)
        return out

    def _rounded(self, op: str, index: int, operand: Operand) -> Operand:
        """An operand of an operator in bfloat16, as torch reads it."""
        if isinstance(operand, View):
            return self._cast(operand, torch.bfloat16) if operand.dtype == torch.int64 else operand
        is_factor = op in ("mul", "div") and index == 1 and operand.tensor.dim() == 0
        return operand if is_factor else Constant(operand.tensor.bfloat16().float())

    def _copy(self, view: View, dtype: torch.dtype | None = None) -> View:
        at = tokens_at(view.axes)
        assert at is not None
        out = self._fresh(view.shape, at, dtype or view.dtype)
        self._instruct("copy", out, [view])
        return out

    def _cast(self, view: View, dtype: torch.dtype) -> View:
        if dtype == view.dtype:
            return view
        if dtype not in _FLOATS:
            raise NotLowered(f"a cast from {view.dtype} to {dtype}")
        if dtype == torch.float32:
            return View(view.storage, view.axes, view.first, dtype)
        return self._copy(view, dtype)

    def _on_zeros_like(self, call: Call, _: str) -> View:
        (result,) = call.results
        at = tokens_at(self._view(call.args[0]).axes)
        if at is None or result.dtype not in _FLOATS:
            raise NotLowered(f"{call.name} in {result.dtype}")
        out = self._fresh(result.shape, at, result.dtype)
        self._instruct("copy", out, [self._operand(0.0)])
        return out

    def _on_dropout(self, call: Call, _: str) -> View:
        if call.args[2]:
            raise NotLowered(f"{call.name} while training")
        return self._view(call.args[0])

    def _on_pow(self, call: Call, overload: str) -> View:
        if overload != "Tensor_Scalar":
            raise NotLowered(call.name)
        exponent = torch.tensor(float(call.args[1]), dtype=torch.float32)
        return self._elementwise(
            "pow", call, call.args[:1], exponent.to(call.results[0].dtype).item()
        )

    def _on_square(self, call: Call, _: str) -> View:
        return self._elementwise("pow", call, call.args[:1], 2.0)

    def _on_gelu(self, call: Call, _: str) -> View:
        is_tanh = call.kwargs.get("approximate") == "tanh"
        return self._elementwise("gelu_tanh" if is_tanh else "gelu", call, call.args[:1])

    def _on_cat(self, call: Call, _: str) -> View:
        parts = [self._view(part) for part in call.args[0]]
        (result,) = call.results
        axis = (call.args[1] if len(call.args) > 1 else 0) % result.dim()
        at = tokens_at(parts[0].axes)
        if at is None or at == axis:
            raise NotLowered("tokens put behind one another")
        out = self._fresh(result.shape, at, result.dtype)
        start = 0
        for part in parts:
            size = part.axes[axis].size
            self._instruct("copy", cut(out, axis, start, size), [part])
            start += size
        return out

    def _on_embedding(self, call: Call, _: str) -> View:
        table, index = call.args[0], self._view(call.args[1])
        if id(table) in self._values or table.dtype not in _FLOATS or index.inner:
            raise NotLowered("an embedding of another form")
        table = table.detach() if table.stride(1) == 1 else table.detach().contiguous()
        at = tokens_at(index.axes)
        assert at is not None
        (result,) = call.results
        out = self._fresh(result.shape, at, result.dtype)
        size = (1, 1, result.shape[-1])
        place = Placed(index.storage, index.first)
        self.nodes.append(
            Instruct("embed", size, Placed(out.storage, 0, (0, 0, 1)), place, table=table)
        )
        return out
