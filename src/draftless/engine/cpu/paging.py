"""Memory of weights that were packed: it is read again only by the model's own code. And memory that is free."""

from __future__ import annotations

import contextlib
import ctypes
import os
import sys

import numpy as np
import torch

_DONT_NEED, _POPULATE_READ = 4, 22  # of madvise
_PAGE = 4096
_ENTRY = 8  # bytes of /proc/self/pagemap for a page
_PRESENT_OR_SWAPPED, _OF_FILE = np.uint64(3 << 62), np.uint64(1 << 61)


def page_in(tensor: torch.Tensor) -> None:
    """Map all of a weight that is about to be read, which costs a tenth of one interruption per page."""
    _advise(tensor, _POPULATE_READ)


def page_out(tensor: torch.Tensor) -> None:
    """Give back the memory of a weight that is mapped from a checkpoint; the next reader maps it again.

    The file stays in the system's cache. Pages that were written to are not the file's any more, and stay.
    """
    _advise(tensor, _DONT_NEED)


def _advise(tensor: torch.Tensor, advice: int) -> None:
    """Tell the system about the whole pages of a contiguous tensor; a system without such advice does nothing."""
    if sys.platform != "linux" or not tensor.is_contiguous():
        return
    begin = -(-tensor.data_ptr() // _PAGE) * _PAGE
    length = (tensor.data_ptr() + tensor.nbytes - begin) // _PAGE * _PAGE
    if length > 0 and (advice != _DONT_NEED or _is_of_file(begin, length)):
        ctypes.CDLL(None).madvise(ctypes.c_void_p(begin), ctypes.c_size_t(length), advice)


def _is_of_file(begin: int, length: int) -> bool:
    """Whether every page in memory is one of a file, as it is there."""
    try:
        pages = os.open("/proc/self/pagemap", os.O_RDONLY)
    except OSError:
        return False
    try:
        found = np.frombuffer(
            os.pread(pages, length // _PAGE * _ENTRY, begin // _PAGE * _ENTRY), np.uint64
        )
    finally:
        os.close(pages)
    there = found[(found & _PRESENT_OR_SWAPPED) != 0]
    return len(found) == length // _PAGE and bool(((there & _OF_FILE) != 0).all())


def give_back_free_memory() -> None:
    """Return what was freed to the system, where the C library can (glibc)."""
    if sys.platform == "linux":
        with contextlib.suppress(AttributeError):
            ctypes.CDLL(None).malloc_trim(0)
