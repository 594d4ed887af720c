"""What is C++: compiled at run time by the compiler that Inductor uses (`torch.ops.draftless_cpu`).

What it saves is not arithmetic but calls: on small models setting up a library's general operator, a
handful of NumPy calls or a page of Python on a cache that the weights have just swept takes longer than
the work.
"""

from __future__ import annotations

import re
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
    "guesses": (),
}
_LOADED: dict[str, Operator] = {}


@cache
def load(name: str, constants: str = "") -> bool:
    """Compile `name.cpp` of this folder (or take it from Inductor's disk cache) and register what it defines.

    Args:
        name: of the file.
        constants: what it includes as `constants.h`.

    Returns:
        Whether it is there; if not, a warning has said why.
    """
    try:
        CppCodeCache.load(_source(f"{name}.cpp", constants))
    except Exception as error:  # noqa: BLE001 - what a compiler may raise is not ours to list
        warnings.warn(f"{name}.cpp does not compile here, torch takes over: {error}", stacklevel=2)
        return False
    for operator in _OPERATORS[name]:
        _LOADED[operator] = getattr(torch.ops.draftless_cpu, operator).default
    return True


def _source(file: str, constants: str) -> str:
    """A file with what it includes of this folder: the compiler is given one text."""
    text = Path(__file__).with_name(file).read_text(encoding="utf-8")
    return re.sub(
        r'^#include "(.+)"$',
        lambda found: constants if found[1] == "constants.h" else _source(found[1], constants),
        text,
        flags=re.MULTILINE,
    )


def operator(name: str) -> Operator | None:
    """An operator of a file that was loaded before; None if none was. Compiles nothing."""
    return _LOADED.get(name)


def has_fast_products() -> bool:
    """Whether torch's brgemm multiplies bfloat16 in hardware here."""
    return torch.cpu._is_avx512_bf16_supported()
