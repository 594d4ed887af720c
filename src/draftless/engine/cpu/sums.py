"""The operators that add up the last axis of a tensor: sums, means and norms."""

from __future__ import annotations

from typing import Any

import torch

from draftless.engine.cpu.record import Call
from draftless.engine.cpu.shapes import ViewOperators, filled, three
from draftless.engine.cpu.values import (
    TOKENS,
    Instruct,
    NotLowered,
    Placed,
    View,
    merged,
    tokens_at,
)


class SumOperators(ViewOperators):
    """Sums, means and norms. `Lowering` has the rest."""

    def _reduced(self, op: str, call: Call) -> View:
        view, axes = self._view(call.args[0]), call.args[1] if len(call.args) > 1 else None
        last = len(view.axes) - 1
        if axes is None or [axis % len(view.axes) for axis in axes] != [last]:
            raise NotLowered(f"{call.name} over other axes than the last")
        if view.axes[last].size > 1 and view.axes[last].stride not in (1, TOKENS):
            view = self._copy(view)
        return self._sum(op, view, call.results[0])

    def _sum(self, op: str, view: View, result: torch.Tensor) -> View:
        """Of the last axis, whose stride is one."""
        at = tokens_at(view.axes)
        assert at is not None
        if at == len(view.axes) - 1:
            raise NotLowered(f"a {op} over tokens")
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
        eps = torch.finfo(torch.float32).eps if eps is None else eps  # of bfloat16, too
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
