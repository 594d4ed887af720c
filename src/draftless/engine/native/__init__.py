"""Operators in C++, compiled at run time by the compiler that Inductor uses (`torch.ops.draftless_cpu`).

What they save is not arithmetic but calls: on small models setting up a library's general operator,
or a handful of NumPy calls on a cache that the weights have just swept, takes longer than the work.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch._inductor.codecache import CppCodeCache

Operator = Callable[..., Any]

_OPERATORS = {
    "attention": ("attention", "begin_pass"),
    "linear": ("linear",),
    "likeliest": ("likeliest", "largest"),
    "noisy": ("likeliest_under_noise", "draw_under_noise", "ranked_under_noise"),
}
_LOADED: dict[str, Operator] = {}


@cache
def load(name: str) -> bool:
    """Compile `name.cpp` of this folder (or take it from Inductor's disk cache) and register its operators.

    Returns:
        Whether they are there; if not, a warning has said why.
    """
    try:
        CppCodeCache.load(Path(__file__).with_name(f"{name}.cpp").read_text(encoding="utf-8"))
    except Exception as error:  # noqa: BLE001 - what a compiler may raise is not ours to list
        warnings.warn(f"{name}.cpp does not compile here, torch takes over: {error}", stacklevel=2)
        return False
    for operator in _OPERATORS[name]:
        _LOADED[operator] = getattr(torch.ops.draftless_cpu, operator).default
    return True


def operator(name: str) -> Operator | None:
    """An operator of a file that was loaded before; None if none was. Compiles nothing."""
    return _LOADED.get(name)


def has_fast_products() -> bool:
    """Whether torch's brgemm multiplies bfloat16 in hardware here."""
    return torch.cpu._is_avx512_bf16_supported()
