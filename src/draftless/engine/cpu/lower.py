"""From the operators of a recorded pass to nodes that work on one token at a time.

A tensor of the pass has one axis of tokens. What is computed for a token from that token alone becomes instructions
on its own numbers, in the precision and with the roundings of the model's own code; products and attention stay whole.
Views, transposes and slices cost nothing. A value that depends on no token is the one that was recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch

from draftless.engine.cpu.record import NUM_TOKENS, Call, Recording
from draftless.engine.cpu.shapes import ViewOperators, cut, filled, three
from draftless.engine.cpu.values import (
    TOKENS,
    Attend,
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
_SAME = {"alias", "contiguous", "clone", "detach", "lift_fresh", "dropout", "native_dropout"}
_FLOATS = (torch.float32, torch.bfloat16)


class Lowering(ViewOperators):
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
        self.nodes: list[Node] = []
        self._values: dict[int, View] = {}
        self._linears: dict[int, Linear] = {}
        self.token_ids, self.positions = Storage(1, torch.int64), Storage(1, torch.int64)
        for tensor, storage in (
            (recording.token_ids, self.token_ids),
            (recording.positions, self.positions),
        ):
            axes = (Axis(1, 0), Axis(NUM_TOKENS, TOKENS))
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
        _, name, overload = call.name.split(".")
        if call.is_mutable:
            raise NotLowered(f"{call.name}, which writes in place")
        name = name.removeprefix("_unsafe_")
        made: View | Sequence[View]
        if name in _UNARY:
            made = self._elementwise(_UNARY[name], call, call.args[:1])
        elif name in _BINARY:
            if call.kwargs.get("alpha", 1) != 1 or call.kwargs.get("rounding_mode"):
                raise NotLowered(f"{call.name} with {call.kwargs}")
            made = self._elementwise(_BINARY[name], call, call.args[:2])
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
        assert at is not None
        out = self._fresh(result.shape, at, result.dtype)
        self._instruct("copy", out, [Constant(torch.zeros(()))])
        return out

    def _on_pow(self, call: Call, overload: str) -> View:
        if overload != "Tensor_Scalar":
            raise NotLowered(call.name)
        return self._elementwise("pow", call, call.args[:1], float(call.args[1]))

    def _on_square(self, call: Call, _: str) -> View:
        return self._elementwise("pow", call, call.args[:1], 2.0)

    def _on_gelu(self, call: Call, _: str) -> View:
        is_tanh = call.kwargs.get("approximate") == "tanh"
        return self._elementwise("gelu_tanh" if is_tanh else "gelu", call, call.args[:1])

    def _reduced(self, op: str, call: Call) -> View:
        view, axes = self._view(call.args[0]), call.args[1] if len(call.args) > 1 else None
        last = len(view.axes) - 1
        if axes is None or [axis % len(view.axes) for axis in axes] != [last]:
            raise NotLowered(f"{call.name} over other axes than the last")
        if view.axes[last].stride == TOKENS:
            raise NotLowered(f"{call.name} over tokens")
        if view.axes[last].stride != 1 and view.axes[last].size > 1:
            view = self._copy(view)
        return self._sum(op, view, call.results[0])

    def _sum(self, op: str, view: View, result: torch.Tensor) -> View:
        at = tokens_at(view.axes)
        assert at is not None
        out = self._fresh((*view.shape[:-1], 1), at, result.dtype)
        outer = [i for i in range(len(view.axes) - 1) if i != at]
        sizes, strides = merged(
            [view.axes[i].size for i in outer],
            [[axes[i].stride for i in outer] for axes in (out.axes, view.axes)],
        )
        if sizes[0] != 1:
            raise NotLowered("a sum over four axes")
        to, of = (three((*one[1:], last)) for one, last in zip(strides, (0, 1), strict=True))
        size = three((*sizes[1:], view.axes[-1].size))
        is_rounded = result.dtype == torch.bfloat16
        a = Placed(view.storage, view.first, of)
        self.nodes.append(Instruct(op, size, Placed(out.storage, 0, to), a, is_rounded=is_rounded))
        if result.dim() < len(out.axes):
            return View(out.storage, out.axes[:-1], 0, out.dtype)
        return out

    def _on_mean(self, call: Call, _: str) -> View:
        return self._reduced("mean", call)

    def _on_sum(self, call: Call, _: str) -> View:
        return self._reduced("sum", call)

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
        at = tokens_at(index.axes)
        assert at is not None
        (result,) = call.results
        out = self._fresh(result.shape, at, result.dtype)
        size = (1, 1, result.shape[-1])
        place = Placed(index.storage, index.first)
        self.nodes.append(
            Instruct("embed", size, Placed(out.storage, 0, (0, 0, 1)), place, table=table.detach())
        )
        return out

    def _on_layer_norm(self, call: Call, _: str) -> View:
        x, shape, weight, bias, eps = filled(call.args, (None, None, None, None, 1e-5))
        view = self._view(x)
        if len(shape) != 1:
            raise NotLowered("a norm over several axes")
        at = tokens_at(view.axes)
        assert at is not None
        wide, one = call.results[0].float(), call.results[0].float()[..., :1]
        centred = self._norm_step("sub", wide, at, view, self._sum("mean", self._dense(view), one))
        square = self._norm_step("mul", wide, at, centred, centred)
        variance = self._norm_step("add", one, at, self._sum("mean", square, one), float(eps))
        factor = self._norm_step("rsqrt", one, at, variance)
        scaled = self._norm_step("mul", wide, at, centred, factor)
        for op, parameter in (("mul", weight), ("add", bias)):
            if parameter is not None:
                scaled = self._norm_step(op, wide, at, scaled, parameter)
        return self._cast(scaled, call.results[0].dtype)

    def _on_rms_norm(self, call: Call, _: str) -> View:
        x, shape, weight, eps = filled(call.args, (None, None, None, None))
        view = self._view(x)
        if len(shape) != 1:
            raise NotLowered("a norm over several axes")
        at = tokens_at(view.axes)
        assert at is not None
        eps = torch.finfo(x.dtype).eps if eps is None else eps
        wide, one = call.results[0].float(), call.results[0].float()[..., :1]
        square = self._norm_step("mul", wide, at, view, view)
        mean = self._norm_step("add", one, at, self._sum("mean", square, one), float(eps))
        scaled = self._norm_step("mul", wide, at, view, self._norm_step("rsqrt", one, at, mean))
        if weight is not None:
            scaled = self._norm_step("mul", wide, at, scaled, weight)
        return self._cast(scaled, call.results[0].dtype)

    def _norm_step(self, op: str, like: torch.Tensor, at: int, *operands: Any) -> View:
        """One step of a norm in float32."""
        out = self._fresh(like.shape, at, torch.float32)
        given = [one if isinstance(one, View) else self._operand(one) for one in operands]
        self._instruct(op, out, given)
        return out

    # Products and attention.

    def _dense(self, view: View) -> View:
        return view if view.is_dense else self._copy(view)

    def _on_linear(self, call: Call, _: str) -> View:
        x, weight, bias = filled(call.args, (None, None, None))
        return self._linear(call, x, weight, bias)

    def _on_addmm(self, call: Call, _: str) -> View:
        bias, x, weight = call.args
        if call.kwargs or id(bias) in self._values:
            raise NotLowered(f"{call.name} of another form")
        return self._linear(call, x, self._transposed(weight), bias)

    def _on_mm(self, call: Call, _: str) -> View:
        return self._linear(call, call.args[0], self._transposed(call.args[1]), None)

    def _transposed(self, weight: torch.Tensor) -> torch.Tensor:
        """A weight `[in, out]` as `[out, in]`."""
        if id(weight) in self._values or weight.dim() != 2:
            raise NotLowered("a product with something that is no weight")
        return weight.t()

    _on_matmul = _on_mm

    def _linear(self, call: Call, x: Any, weight: torch.Tensor, bias: Any) -> View:
        view = self._dense(self._view(x))
        at = tokens_at(view.axes)
        is_product = (
            at is not None
            and len(view.inner) <= 1
            and isinstance(weight, torch.Tensor)
            and id(weight) not in self._values
            and weight.dim() == 2
        )
        if not is_product or at is None or view.dtype != self._dtype:
            raise NotLowered(f"{call.name} on other things than tokens and weights of one dtype")
        together = self._linears.get(id(x))
        if together is None:
            together = Linear(view, Storage(0, self._dtype))
            self._linears[id(x)] = together
            self.nodes.append(together)
        first = together.out.size
        together.weights.append(weight.detach())
        together.biases.append(None if bias is None else bias.detach())
        together.out.size += len(weight)
        axes = dense_axes(call.results[0].shape, at)
        return View(together.out, axes, first, self._dtype)

    def _attention(self, call: Call) -> None:
        query, key, value = (self._dense_heads(self._view(one)) for one in call.args)
        (result,) = call.results
        out = self._fresh(result.shape, 1, result.dtype)
        _, heads, _, key_dim = query.shape
        _, kv_heads, _, value_dim = value.shape
        place = {**call.kwargs, "heads": heads, "kv_heads": kv_heads}
        place |= {"key_dim": key_dim, "value_dim": value_dim}
        self.nodes.append(Attend(query, key, value, out.storage, place))
        self._values[id(result)] = out

    def _dense_heads(self, view: View) -> View:
        if view.dtype != self._dtype or tokens_at(view.axes) != 2:
            raise NotLowered("attention of another form")
        return self._dense(view)
