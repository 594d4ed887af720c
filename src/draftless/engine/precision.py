"""A half-precision model computed in float32, without a second copy of its weights."""

from __future__ import annotations

from typing import Any

import torch
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_map

_HALVES = (torch.bfloat16, torch.float16)
_ROWS = 8192  # of a weight that are widened at once


class InFloat32(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, every operator reads half-precision tensors as float32 and gives float32.

    Weights are widened one operator at a time, so the most that is needed at once is a part of one.
    """

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.linear.default and args[1].dtype in _HALVES:
            x, weight, *bias = args
            parts = [functional.linear(_wide(x), part.float()) for part in weight.split(_ROWS)]
            out = torch.cat(parts, dim=-1)
            return out if not bias or bias[0] is None else out + bias[0].float()
        if func is torch.ops.aten.embedding.default:  # its rows alone, not the whole table
            return _wide(func(*args, **kwargs or {}))
        if func.is_view:  # of a weight: stays half precision until something is computed
            return func(*tree_map(_wide_dtype, args), **tree_map(_wide_dtype, kwargs or {}))
        return func(*tree_map(_wide, args), **tree_map(_wide, kwargs or {}))


def _wide(value: Any) -> Any:
    if isinstance(value, torch.Tensor) and value.dtype in _HALVES:
        return value.float()
    return _wide_dtype(value)


def _wide_dtype(value: Any) -> Any:
    return torch.float32 if isinstance(value, torch.dtype) and value in _HALVES else value
