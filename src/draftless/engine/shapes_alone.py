"""A pass of a model of which only the shapes count."""

from __future__ import annotations

from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode


class ShapesAlone(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Inside, linear layers give zeros: they are most of what a pass costs, and no shape depends on them."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is torch.ops.aten.linear.default:
            x, weight = args[:2]
            return x.new_zeros((*x.shape[:-1], len(weight)))
        return func(*args, **kwargs or {})
