"""`native/forward.cpp` and its functions."""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from functools import cache
from typing import Any

import torch

from draftless.engine.build import NoCompiler, built
from draftless.engine.cpu.structures import Request, Step

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
    file = built("forward.cpp", more_flags)
    try:
        found = ctypes.CDLL(str(file))
    except OSError as error:  # a file system that runs nothing, or a file that is damaged
        raise NoCompiler(f"{file} cannot be loaded: {error}") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found
