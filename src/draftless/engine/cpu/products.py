"""The operators that stay whole: products with weights, and attention."""

from __future__ import annotations

from typing import Any

import torch

from draftless.engine.cpu.record import Call
from draftless.engine.cpu.shapes import ViewOperators, filled
from draftless.engine.cpu.values import (
    Attend,
    Linear,
    NotLowered,
    Storage,
    View,
    dense_axes,
    tokens_at,
)


class ProductOperators(ViewOperators):
    """Products with weights, and attention. `Lowering` has the rest."""

    _dtype: torch.dtype
    _linears: dict[int, Linear]

    def _on_linear(self, call: Call, _: str) -> View:
        x, weight, bias = filled(call.args, (None, None, None))
        return self._linear(call, x, weight, bias)

    def _on_addmm(self, call: Call, _: str) -> View:
        bias, x, weight = call.args
        if call.kwargs:
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
        others = [axis for index, axis in enumerate(view.axes[:-1]) if index != at]
        is_product = (
            at != len(view.axes) - 1
            and all(axis.size == 1 for axis in others)
            and id(weight) not in self._values
            and weight.dim() == 2
            and (bias is None or (id(bias) not in self._values and bias.shape == weight.shape[:1]))
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
