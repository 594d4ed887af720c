"""`native/forward.cpp`: compiled by the system's C++ compiler once for a machine, then taken from the disk."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import subprocess
import tempfile
from collections.abc import Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch

from draftless.caches import cache_folder
from draftless.engine.cpu.structures import Request, Step

_FOLDER = Path(__file__).parents[1] / "native"
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-ffp-contract=off", "-pthread", "-fPIC", "-shared")
_WITHOUT_AMX = "-mno-amx-bf16"

_P, _I, _L = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "is_usable": (_I, []),
    "set_threads": (None, [_I]),
    "bytes_of_packed": (_L, [_L, _L, _I]),
    "pack_weight": (None, [_P, _L, _L, _L, _I, _L, _P]),
    "new_program": (_P, [_I, _L, ctypes.POINTER(Step), _L]),
    "delete_program": (None, [_P]),
    "run_program": (_I, [_P, ctypes.POINTER(Request)]),
    "move_slots": (None, [_P, _L, _L, _L, _L, _L, _L, _L, _P, _L]),
}


class NoCompiler(Exception):  # noqa: N818 - a fact about the machine
    """There is no C++ compiler, or it refuses the kernels."""


@cache
def library() -> ctypes.CDLL:
    """The kernels.

    Raises:
        NoCompiler: they cannot be compiled here.
    """
    found = _load(())
    if not found.is_usable():  # the CPU has AMX, the system does not allow it
        found = _load((_WITHOUT_AMX,))
    return found


def moved_slots(data: torch.Tensor, row: int, start: int, path: Sequence[int]) -> bool:
    """Bring the slots of an accepted path, nodes `path` (ascending) behind `start`, into its order.

    Args:
        data: the cache, `[Y, 2, B, H, C, D]`.
        row: of the cache.
        start: slots that the row holds.
        path: nodes.

    Returns:
        Whether it was done here; where the kernels are not in use, nothing is.
    """
    if not data.is_cpu or library.cache_info().currsize == 0:
        return False
    nodes = (ctypes.c_int64 * len(path))(*path)
    layers, two, rows, heads, capacity, slot = data.shape
    library().move_slots(
        data.data_ptr(), layers * two, rows, heads, capacity, slot * data.itemsize,
        row, start, ctypes.addressof(nodes), len(path),
    )  # fmt: skip
    return True


_threads = 1


def use_threads(count: int) -> None:
    """The number of threads of the passes that follow, of all models."""
    global _threads
    if count != _threads:
        library().set_threads(count)
        _threads = count


def _load(more_flags: tuple[str, ...]) -> ctypes.CDLL:
    found = ctypes.CDLL(str(_compiled(more_flags)))
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def compiler() -> str | None:
    """The C++ compiler, or None: `$CXX`, else `g++`, else `clang++`."""
    names = [os.environ.get("CXX"), "g++", "clang++"]
    return next((path for path in map(shutil.which, filter(None, names)) if path), None)


def _compiled(more_flags: tuple[str, ...]) -> Path:
    path = compiler()
    if path is None:
        raise NoCompiler("there is no C++ compiler (g++ or clang++)")
    source = _source("forward.cpp", set())
    key = hashlib.sha256(
        "\n".join((source, path, *_FLAGS, *more_flags, _processor())).encode()
    ).hexdigest()[:16]
    for folder in (cache_folder() / "native", Path(tempfile.gettempdir()) / "draftless-native"):
        file = folder / f"forward-{key}.so"
        if file.is_file():
            return file
        try:
            folder.mkdir(parents=True, exist_ok=True)
            return _compile(path, source, more_flags, file)
        except OSError:
            continue
    raise NoCompiler(f"the compiled kernels cannot be written to {folder}")


def _compile(path: str, source: str, more_flags: tuple[str, ...], file: Path) -> Path:
    """Compile beside the wanted place and rename, so that no process meets half of a file."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        text, out = Path(folder, "forward.cpp"), Path(folder, "forward.so")
        text.write_text(source, encoding="utf-8")
        done = subprocess.run(
            [path, *_FLAGS, *more_flags, str(text), "-o", str(out)],
            capture_output=True, text=True, check=False,
        )  # fmt: skip
        if done.returncode:
            raise NoCompiler(f"{path} refuses the kernels: {done.stderr.strip()[:400]}")
        out.replace(file)
    return file


def _source(file: str, seen: set[str]) -> str:
    """A file with what it includes of this folder, as one text."""
    if file in seen:
        return ""
    seen.add(file)
    text = (_FOLDER / file).read_text(encoding="utf-8").replace("#pragma once\n", "")
    return re.sub(
        r'^#include "(.+)"$', lambda found: _source(found[1], seen), text, flags=re.MULTILINE
    )


def _processor() -> str:
    """What `-march=native` stands for."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        import platform

        return platform.processor()
    return "\n".join(sorted(set(re.findall(r"^(?:flags|Features|model name)\s*:.*$", text, re.M))))
