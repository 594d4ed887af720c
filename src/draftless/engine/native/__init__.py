"""What is C++: compiled at run time (`build.py`).

What it saves is not arithmetic but calls: on small models setting up a library's general operator, a
handful of NumPy calls or a page of Python on a cache that the weights have just swept takes longer than
the work. So what Python calls is bound by pybind11 (a call of a torch operator or class costs 20 us there,
most of it waiting for the machinery), and operators (`torch.ops.draftless_cpu`) are only what compiled code calls.
"""

from __future__ import annotations

import sysconfig
import threading
import warnings
from collections.abc import Callable
from functools import cache
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path
from typing import Any

import torch

from draftless.engine.build import built

Operator = Callable[..., Any]

_OPERATORS = {"attention": ("attention",), "linear": ("linear",)}
_MODULES = ("attention", "draws", "guesses")  # files that bind something for Python
_LOADED: dict[str, Operator] = {}


@cache
def load(name: str, constants: str = "") -> bool:
    """Compile `name.cpp` of this folder (or take it from Inductor's disk cache) and keep what it defines.

    Args:
        name: of the file.
        constants: what it includes as `constants.h`.

    Returns:
        Whether it is there; if not, a warning has said why.
    """
    try:
        path = built(f"{name}.cpp", _torch_flags(), {"constants.h": constants})
        torch.ops.load_library(path)  # type: ignore[no-untyped-call]
        bound = _bound(name, str(path)) if name in _MODULES else {}
    except Exception as error:  # noqa: BLE001 - what a compiler may raise is not ours to list
        warnings.warn(f"{name}.cpp does not compile here, torch takes over: {error}", stacklevel=2)
        return False
    for operator in _OPERATORS.get(name, ()):
        _LOADED[operator] = getattr(torch.ops.draftless_cpu, operator).default
    _LOADED.update(bound)
    return True


_LOADING: dict[tuple[str, str], threading.Thread] = {}
_WAIT_S = 0.5  # enough to take a file from the disk, not to compile it


def begin_loading(name: str, constants: str = "") -> threading.Thread:
    """Load a file in the background."""
    key = (name, constants)
    if key not in _LOADING:
        thread = threading.Thread(target=load, args=key, daemon=True, name=f"load {name}.cpp")
        _LOADING[key] = thread
        thread.start()
    return _LOADING[key]


def is_loaded(name: str, constants: str = "") -> bool:
    """Whether a file is there; it begins to load when somebody asks first. Who asks waits for what the disk
    has, and not for the compiler."""
    thread = begin_loading(name, constants)
    thread.join(_WAIT_S)
    return not thread.is_alive() and load(name, constants)


def _bound(name: str, path: str) -> dict[str, Operator]:
    """What a compiled file binds for Python, by name."""
    spec = spec_from_file_location(name, path)
    assert spec is not None
    assert spec.loader is not None
    module = module_from_spec(spec)
    spec.loader.exec_module(module)
    return {key: value for key, value in vars(module).items() if not key.startswith("_")}


def _torch_flags() -> list[str]:
    """What a file that includes torch's headers needs."""
    root = Path(torch.__file__).parent
    include = root / "include"
    folders = [
        include,
        include / "torch" / "csrc" / "api" / "include",
        sysconfig.get_path("include"),
    ]
    abi = int(torch._C._GLIBCXX_USE_CXX11_ABI)
    return [
        *(f"-I{folder}" for folder in folders),
        f"-D_GLIBCXX_USE_CXX11_ABI={abi}",
        "-DTORCH_API_INCLUDE_EXTENSION_H",
        "-fopenmp",
        f"-L{root / 'lib'}",
        "-ltorch", "-ltorch_cpu", "-lc10", "-ltorch_python",
    ]  # fmt: skip


def operator(name: str) -> Operator | None:
    """What a file defines that was loaded before, an operator, a function or a class; None if none was.
    Compiles nothing."""
    return _LOADED.get(name)


def has_fast_products() -> bool:
    """Whether torch's brgemm multiplies bfloat16 in hardware here."""
    return torch.cpu._is_avx512_bf16_supported()
