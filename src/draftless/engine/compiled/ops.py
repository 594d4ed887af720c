"""Operators of the traced graph whose work the compiler does not see: attention, and oneDNN's products.

What they work on must not show in the code, since all layers share it: which layer is meant, or which
product, is a number in a tensor that the piece is given; the cache, the masks and oneDNN's weights,
whose layout the compiler cannot describe, lie beside the graph in `CURRENT`.
Where `native/` has the operators they are called directly, and these stand in for them elsewhere.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Sequence

import torch

from draftless.engine import native
from draftless.engine.attention import attend
from draftless.engine.compiled.strict import attend_one_by_one
from draftless.engine.tree_pass import TreePass


class _Current(threading.local):
    """What the running pass works on; per thread, so that requests may run side by side.

    Attributes:
        tree_pass: the pass; not longer than it runs, since it holds the cache.
        linears: layers by number.
    """

    tree_pass: TreePass
    linears: Sequence[Callable[[torch.Tensor], torch.Tensor]] = ()


CURRENT = _Current()


def begin(
    tree_pass: TreePass,
    linears: Sequence[Callable[[torch.Tensor], torch.Tensor]],
    *,
    has_own_attention: bool,
) -> tuple[torch.Tensor, torch.Tensor]:  # [1, R*W] int64 each
    """Say what the pass that follows in this thread works on; its tokens and positions, all rows behind
    one another."""
    CURRENT.tree_pass, CURRENT.linears = tree_pass, linears
    if has_own_attention:
        begin_pass = native.operator("begin_pass")
        assert begin_pass is not None
        both: tuple[torch.Tensor, torch.Tensor] = begin_pass(
            tree_pass.cache.data,
            tree_pass.rows.start,
            tree_pass.lengths,
            tree_pass.token_ids,
            [layout.parents for layout in tree_pass.layouts],
            tree_pass.width,
            [window or 0 for window in tree_pass.windows],
        )
        return both
    token_ids, positions = tree_pass.tensors
    return token_ids.view(1, -1), positions.view(1, -1)


def end() -> None:
    """The pass is over."""
    del CURRENT.tree_pass


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
    tree_pass = CURRENT.tree_pass
    num_rows = len(tree_pass.lengths)
    if num_rows > 1:
        query, key, value = (_by_row(states, num_rows) for states in (query, key, value))
    keys, values = tree_pass.cache.write(layer, key, value)
    if tree_pass.is_strict:
        (layout,), window = tree_pass.layouts, tree_pass.windows[kind]
        out = attend_one_by_one(query, keys, values, layout, window, scaling, softcap)
    else:
        mask = list(tree_pass.masks.values())[kind]
        out = attend(query, keys, values, mask, scaling, softcap)
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
