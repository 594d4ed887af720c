"""The operators that change how a tensor is seen, and nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from draftless.engine.cpu.record import Call
from draftless.engine.cpu.values import (
    TOKENS,
    Axis,
    Node,
    NotLowered,
    Operand,
    View,
    broadcast,
    regrouped,
    tokens_at,
)


class ViewOperators:
    """Views, transposes, slices and parts. `Lowering` has the rest."""

    nodes: list[Node]
    _num_tokens: int
    _values: dict[int, View]

    def _view(self, tensor: Any) -> View:
        raise NotImplementedError

    def _operand(self, value: Any) -> Operand:
        raise NotImplementedError

    def _copy(self, view: View) -> View:
        raise NotImplementedError

    def _cast(self, view: View, dtype: Any) -> View:
        raise NotImplementedError

    def _fresh(self, shape: Sequence[int], at: int, dtype: Any) -> View:
        raise NotImplementedError

    def _instruct(self, op: str, out: View, operands: Any, number: float = 0.0) -> None:
        raise NotImplementedError

    def _dense(self, view: View) -> View:
        """As a product or attention reads it: without gaps, stored in its own dtype."""
        return view if view.is_dense and view.storage.dtype == view.dtype else self._copy(view)

    def _on_view(self, call: Call, overload: str) -> View:
        if overload == "dtype":
            raise NotLowered(call.name)
        view, shape = self._view(call.args[0]), tuple(call.results[0].shape)
        at = tokens_at(view.axes)
        assert at is not None
        before, product = 1, 1
        for axis in view.axes[:at]:
            before *= axis.size
        for index, size in enumerate(shape):  # noqa: B007 - where to cut
            if product == before and size == self._num_tokens:
                break
            product *= size
        else:
            raise NotLowered("a shape without an axis of tokens")
        parts = (view.axes[:at], shape[:index]), (view.axes[at + 1 :], shape[index + 1 :])
        strides = [regrouped(axes, sizes) for axes, sizes in parts]
        if None in strides:
            if view.is_dense:
                raise NotLowered(f"a view of {view.shape} as {shape}")
            self._values[id(call.args[0])] = self._copy(view)
            return self._on_view(call, overload)
        left, right = strides
        assert left is not None
        assert right is not None
        axes = tuple(map(Axis, shape, (*left, TOKENS, *right)))
        return View(view.storage, axes, view.first, view.dtype)

    _on_reshape = _on_flatten = _on_unflatten = _on_view

    def _moved(self, view: View, axes: Sequence[Axis]) -> View:
        return View(view.storage, tuple(axes), view.first, view.dtype)

    def _on_transpose(self, call: Call, _: str) -> View:
        view = self._view(call.args[0])
        axes, (a, b) = list(view.axes), (index % len(view.axes) for index in call.args[1:3])
        axes[a], axes[b] = axes[b], axes[a]
        return self._moved(view, axes)

    def _on_permute(self, call: Call, _: str) -> View:
        view = self._view(call.args[0])
        return self._moved(view, [view.axes[index] for index in call.args[1]])

    def _on_unsqueeze(self, call: Call, _: str) -> View:
        view = self._view(call.args[0])
        axis = call.args[1] % (len(view.axes) + 1)
        return self._moved(view, (*view.axes[:axis], Axis(1, 0), *view.axes[axis:]))

    def _on_squeeze(self, call: Call, _: str) -> View:
        view = self._view(call.args[0])
        wanted = call.args[1] if len(call.args) > 1 else range(len(view.axes))
        gone = {i % len(view.axes) for i in ([wanted] if isinstance(wanted, int) else wanted)}
        kept = [a for i, a in enumerate(view.axes) if i not in gone or a.size != 1]
        return self._moved(view, kept)

    def _on_expand(self, call: Call, _: str) -> View:
        view = self._view(call.args[0])
        return self._moved(view, broadcast(view.axes, tuple(call.results[0].shape)))

    def _on_slice(self, call: Call, _: str) -> View:
        view = self._view(call.args[0])
        _, axis, start, end, step = filled(call.args, (None, 0, None, None, 1))
        axis %= len(view.axes)
        size = view.axes[axis].size
        start, end, step = slice(start, end, step).indices(size)
        if view.axes[axis].stride == TOKENS:
            if (start, end, step) != (0, self._num_tokens, 1):
                raise NotLowered("some of the tokens")
            return view
        return cut(view, axis, start, len(range(start, end, step)), step)

    def _on_select(self, call: Call, _: str) -> View:
        view, axis, index = self._view(call.args[0]), call.args[1], call.args[2]
        axis %= len(view.axes)
        if view.axes[axis].stride == TOKENS:
            raise NotLowered("one of the tokens")
        one = cut(view, axis, index % view.axes[axis].size, 1)
        return self._moved(one, (*one.axes[:axis], *one.axes[axis + 1 :]))

    def _parts(self, call: Call, axis: int) -> list[View]:
        view = self._view(call.args[0])
        axis %= len(view.axes)
        if view.axes[axis].stride == TOKENS:
            raise NotLowered("parts of the tokens")
        found, start = [], 0
        for result in call.results:
            found.append(cut(view, axis, start, result.shape[axis]))
            start += result.shape[axis]
        return found

    def _on_split(self, call: Call, _: str) -> list[View]:
        return self._parts(call, call.args[2] if len(call.args) > 2 else call.kwargs.get("dim", 0))

    _on_chunk = _on_split_with_sizes = _on_split

    def _on_repeat_interleave(self, call: Call, overload: str) -> View:
        view, (result,) = self._view(call.args[0]), call.results
        axis = call.args[2] if len(call.args) > 2 else call.kwargs.get("dim")
        at = tokens_at(view.axes)
        if overload != "self_int" or axis is None or at is None or axis % result.dim() == at:
            raise NotLowered(call.name)
        axis, times = axis % result.dim(), call.args[1]
        out = self._fresh(result.shape, at, result.dtype)
        stride = out.axes[axis].stride
        pairs = Axis(view.axes[axis].size, stride * times), Axis(times, stride)
        to = self._moved(out, (*out.axes[:axis], *pairs, *out.axes[axis + 1 :]))
        of = self._moved(view, (*view.axes[: axis + 1], Axis(1, 0), *view.axes[axis + 1 :]))
        self._instruct("copy", to, [of])
        return out

    def _on_stack(self, call: Call, _: str) -> View:
        parts = [self._view(part) for part in call.args[0]]
        (result,) = call.results
        axis = (call.args[1] if len(call.args) > 1 else 0) % result.dim()
        shape = list(result.shape)
        at = tokens_at(parts[0].axes)
        assert at is not None
        out = self._fresh(shape, at + (axis <= at), result.dtype)
        for index, part in enumerate(parts):
            axes = (*part.axes[:axis], Axis(1, 0), *part.axes[axis:])
            one = View(part.storage, axes, part.first, part.dtype)
            self._instruct("copy", cut(out, axis, index, 1), [one])
        return out


def filled(args: Sequence[Any], defaults: Sequence[Any]) -> tuple[Any, ...]:
    """Arguments of an operator, the missing ones by default."""
    return (*args, *defaults[len(args) :])[: len(defaults)]


def three(numbers: Sequence[int]) -> tuple[int, int, int]:
    first, second, third = numbers
    return first, second, third


def cut(view: View, axis: int, start: int, size: int, step: int = 1) -> View:
    axes = list(view.axes)
    stride = axes[axis].stride
    axes[axis] = Axis(size, stride * step)
    return View(view.storage, tuple(axes), view.first + start * stride, view.dtype)
