"""Operators that compiled pieces call: linear layers on prepacked weights, and attention.

To the compiler both are opaque. What they work on (the weights of the piece that runs, the cache, the
masks) lies beside the graph in `CURRENT`, not in its arguments: so all layers share one piece of code,
and no code depends on how much is cached.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from draftless.engine import native
from draftless.engine.attention import attend
from draftless.engine.cache import KVCache
from draftless.engine.compiled.linears import PackedLinear
from draftless.engine.compiled.strict import OneByOne, attend_one_by_one


@dataclass(frozen=True, slots=True)
class Step:
    """What one forward pass attends to.

    Attributes:
        cache: made ready by `append`.
        masks: per type of layer the additive mask `[R, 1, G*W, C]`.
        num_rows: rows `R` of the batch.
        one_by_one: strict attention of the only row; the masks are not read then.
    """

    cache: KVCache
    masks: Mapping[str, torch.Tensor]
    num_rows: int
    one_by_one: OneByOne | None = None


class _Current(threading.local):
    """What the running piece works on; per thread, so that requests may run side by side.

    Attributes:
        linears: the packed weights of the piece, by slot.
        attentions: layer and type of each attention of the piece, by slot.
        step: of the running pass.
    """

    linears: Sequence[PackedLinear] = ()
    attentions: Sequence[tuple[int, str]] = ()
    step: Step


CURRENT = _Current()

_LIBRARY = torch.library.Library("draftless", "DEF")  # type: ignore[no-untyped-call]
_SIGNATURES = (
    "linear(Tensor x, int slot, int width) -> Tensor",
    "attention(Tensor query, Tensor key, Tensor value, int slot, float? scaling, float? softcap) -> Tensor",
)
for _signature in _SIGNATURES:
    _LIBRARY.define(_signature)  # type: ignore[no-untyped-call]


def _linear(x: torch.Tensor, slot: int, _: int) -> torch.Tensor:
    return CURRENT.linears[slot](x)


def _attention(
    query: torch.Tensor,  # [1, Hq, R*W, D]
    key: torch.Tensor,  # [1, Hkv, R*W, D]
    value: torch.Tensor,  # [1, Hkv, R*W, D]
    slot: int,
    scaling: float | None,
    softcap: float | None,
) -> torch.Tensor:  # [1, R*W, Hq, D]
    layer, kind = CURRENT.attentions[slot]
    step = CURRENT.step
    if step.num_rows > 1:
        query, key, value = (_by_row(states, step.num_rows) for states in (query, key, value))
    keys, values = step.cache.write(layer, key, value)
    operator = native.operator("attention")
    head_dim = query.shape[3]
    if step.one_by_one is not None:
        out = attend_one_by_one(query, keys, values, step.one_by_one, kind, scaling, softcap)
    elif operator is None or softcap is not None or keys.dtype != torch.bfloat16 or head_dim % 32:
        out = attend(query, keys, values, step.masks[kind], scaling, softcap)
    else:
        scale = head_dim**-0.5 if scaling is None else scaling
        out = operator(query, keys, values, step.masks[kind], scale).transpose(1, 2)
    out = out.transpose(1, 2).contiguous()
    return out.view(1, -1, out.shape[2], head_dim)


def _by_row(states: torch.Tensor, num_rows: int) -> torch.Tensor:  # [R, H, W, D]
    """Rows that the graph sees behind one another, apart again."""
    _, num_heads, _, head_dim = states.shape
    return states.reshape(num_heads, num_rows, -1, head_dim).transpose(0, 1)


for _device in ("CPU", "CUDA"):
    _LIBRARY.impl("linear", _linear, _device)  # type: ignore[no-untyped-call]
    _LIBRARY.impl("attention", _attention, _device)  # type: ignore[no-untyped-call]


def _linear_shape(x: torch.Tensor, _: int, width: int) -> torch.Tensor:
    return x.new_empty((*x.shape[:-1], width))


def _attention_shape(
    query: torch.Tensor, _: torch.Tensor, value: torch.Tensor, *__: object
) -> torch.Tensor:
    num_rows, num_heads, width, _head_dim = query.shape
    return query.new_empty((num_rows, width, num_heads, value.shape[3]))


torch.library.register_fake("draftless::linear", _linear_shape, lib=_LIBRARY)
torch.library.register_fake("draftless::attention", _attention_shape, lib=_LIBRARY)
