"""Memory of weights that were packed: it is read again only by the model's own code. And memory that is free."""

from __future__ import annotations

import contextlib
import ctypes
import sys

import torch

_PAGE_OUT = 21  # MADV_PAGEOUT: the system may drop pages that a file holds; nothing is lost
_PAGE = 4096


def page_out(tensor: torch.Tensor) -> None:
    """Give back the memory of a weight that is mapped from a checkpoint; the next reader maps it again."""
    if sys.platform != "linux":
        return
    begin = -(-tensor.data_ptr() // _PAGE) * _PAGE
    length = (tensor.data_ptr() + tensor.nbytes - begin) // _PAGE * _PAGE
    if length > 0 and tensor.is_contiguous():
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), _PAGE_OUT)


def give_back_free_memory() -> None:
    """Return what was freed to the system, where the C library can (glibc)."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
