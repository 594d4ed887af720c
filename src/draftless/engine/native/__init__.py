"""Operators in C++, compiled at run time by the compiler that Inductor uses (`torch.ops.draftless_cpu`).

What they save is not arithmetic but calls: on small models setting up a library's general operator,
or a handful of NumPy calls on a cache that the weights have just swept, takes longer than the work.
"""

from __future__ import annotations

import warnings
from functools import cache
from pathlib import Path

import torch
from torch._inductor.codecache import CppCodeCache

_LOADED: set[str] = set()


@cache
def load(name: str) -> bool:
    """Compile `name.cpp` of this folder (or take it from Inductor's disk cache) and register its operator.

    Returns:
        Whether the operator is there; if not, a warning has said why.
    """
    try:
        CppCodeCache.load(Path(__file__).with_name(f"{name}.cpp").read_text(encoding="utf-8"))
    except Exception as error:  # noqa: BLE001 - what a compiler may raise is not ours to list
        warnings.warn(f"{name}.cpp does not compile here, torch takes over: {error}", stacklevel=2)
        return False
    _LOADED.add(name)
    return True


def is_loaded(name: str) -> bool:
    """Whether `load` was called before and succeeded; compiles nothing."""
    return name in _LOADED


def has_fast_products() -> bool:
    """Whether torch's brgemm multiplies bfloat16 in hardware here."""
    return torch.cpu._is_avx512_bf16_supported()
