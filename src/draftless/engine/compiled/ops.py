"""Operators of the traced graph whose work the compiler does not see: attention, and oneDNN's products.

What they work on must not show in the code, since all layers share it: which layer is meant, or which
product, is a number in a tensor that the piece is given; the cache, the masks and oneDNN's weights,
whose layout the compiler cannot describe, lie beside the graph in `CURRENT`.
Where `native/` has the operators they are called directly, and these stand in for them elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from draftless.engine import native
from draftless.engine.attention import attend
from draftless.engine.cache import KVCache
from draftless.engine.compiled.strict import OneByOne, attend_one_by_one


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward pass attends to.

    Attributes:
        cache: made ready by `append`.
        rows: of the cache, those of the pass.
        masks: per type of layer the additive mask `[R, 1, G*W, C]`.
        one_by_one: strict attention of the only row where attention is torch's, which then reads
            no masks.
    """

    cache: KVCache
    rows: slice
    masks: Mapping[str, torch.Tensor]
    one_by_one: OneByOne | None = None


class _Current(threading.local):
    """What the running pass works on; per thread, so that requests may run side by side.

    Attributes:
        linears: layers by number.
    """

    linears: Sequence[Callable[[torch.Tensor], torch.Tensor]] = ()
    step: Step


CURRENT = _Current()


def begin(step: Step, linears: Sequence[Callable[[torch.Tensor], torch.Tensor]]) -> None:
    """Say what the pass that follows in this thread works on."""
    CURRENT.step, CURRENT.linears = step, linears
    cache, rows = step.cache, step.rows
    begin_pass = native.operator("begin_pass")
    if begin_pass is not None and cache.shape.device.type == "cpu":
        begin_pass(cache.data, rows.start, cache.lengths[rows], list(step.masks.values()))


_LIBRARY = torch.library.Library("draftless", "DEF")  # type: ignore[no-untyped-call]
_SIGNATURES = (
    "linear(Tensor x, Tensor number, int width) -> Tensor",
    "attention(Tensor query, Tensor key, Tensor value, Tensor place, float? scaling, float? softcap) -> Tensor",
)
for _signature in _SIGNATURES:
    _LIBRARY.define(_signature)  # type: ignore[no-untyped-call]


def attention(
    query: torch.Tensor,  # [1, Hq, R*W, D]
    key: torch.Tensor,  # [1, Hkv, R*W, D]
    value: torch.Tensor,  # [1, Hkv, R*W, D]
    place: torch.Tensor,  # [2] int64 on the CPU: layer, and its type's number
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:  # [1, R*W, Hq, D]
    """Attention of the running pass: through `native/attention.cpp`, or as the model would by itself."""
    head_dim = query.shape[3]
    is_native = query.dtype == torch.bfloat16 and head_dim % 32 == 0 and softcap is None
    out: torch.Tensor
    if is_native and query.device.type == "cpu" and native.operator("attention") is not None:
        scale = head_dim**-0.5 if scaling is None else scaling
        out = torch.ops.draftless_cpu.attention(query, key, value, place, scale)
    else:
        out = torch.ops.draftless.attention(query, key, value, place, scaling, softcap)
    return out


def is_attention(operator: object) -> bool:
    """Whether an operator of a graph is one of the two."""
    native_one = native.operator("attention")
    return operator is torch.ops.draftless.attention.default or (
        native_one is not None and operator is native_one
    )


def _linear(x: torch.Tensor, number: torch.Tensor, _: int) -> torch.Tensor:
    return CURRENT.linears[int(number)](x)


def _attention(
    query: torch.Tensor,  # [1, Hq, R*W, D]
    key: torch.Tensor,  # [1, Hkv, R*W, D]
    value: torch.Tensor,  # [1, Hkv, R*W, D]
    place: torch.Tensor,  # [2] int64
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:  # [1, R*W, Hq, D]
    layer, kind = place.tolist()
    step = CURRENT.step
    num_rows = step.rows.stop - step.rows.start
    if num_rows > 1:
        query, key, value = (_by_row(states, num_rows) for states in (query, key, value))
    keys, values = step.cache.write(layer, key, value)
    name = list(step.masks)[kind]
    if step.one_by_one is not None:
        out = attend_one_by_one(query, keys, values, step.one_by_one, name, scaling, softcap)
    else:
        out = attend(query, keys, values, step.masks[name], scaling, softcap)
    out = out.transpose(1, 2).contiguous()
    return out.view(1, -1, out.shape[2], out.shape[3])


def _by_row(states: torch.Tensor, num_rows: int) -> torch.Tensor:  # [R, H, W, D]
    """Rows that the graph sees behind one another, apart again."""
    _, num_heads, _, head_dim = states.shape
    return states.reshape(num_heads, num_rows, -1, head_dim).transpose(0, 1)


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("linear", _linear, _device)  # type: ignore[no-untyped-call]
    _LIBRARY.impl("attention", _attention, _device)  # type: ignore[no-untyped-call]


def _linear_shape(x: torch.Tensor, _: torch.Tensor, width: int) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], width))


def _attention_shape(
    query: torch.Tensor, _: torch.Tensor, value: torch.Tensor, *__: object
) -> torch.Tensor:
    num_rows, num_heads, width, _head_dim = query.shape
    return query.new_empty((num_rows, width, num_heads, value.shape[3]))


torch.library.register_fake("draftless::linear", _linear_shape, lib=_LIBRARY)
torch.library.register_fake("draftless::attention", _attention_shape, lib=_LIBRARY)
