"""Memory on pages of 2 MiB for weights that every forward pass reads from end to end.

On pages of 4 KiB a small model's weights push the addresses of everything else, the interpreter's
included, out of the processor in every pass; what runs between two passes then takes half as long again.
"""

from __future__ import annotations

import contextlib
import mmap

import torch

_PAGE = 2 << 20
_CHUNK = 16 << 20
_ALIGNED = 64  # bytes, a cache line


class HugePages:
    """Hands out memory from large pieces, so that small tensors share a page."""

    def __init__(self) -> None:
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._used = 0

    def place(self, tensor: torch.Tensor) -> torch.Tensor:
        """A copy of a CPU tensor, contiguous; the tensor itself where the system has no such pages."""
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            return tensor
        copy = self.empty(tensor.nbytes).view(tensor.dtype).view(tensor.shape)
        return copy.copy_(tensor)

    def empty(self, num_bytes: int) -> torch.Tensor:  # [num_bytes] uint8
        """Memory that is not written yet."""
        if not hasattr(mmap, "MADV_HUGEPAGE"):
            room = torch.empty(num_bytes + _ALIGNED, dtype=torch.uint8)
            return room[-room.data_ptr() % _ALIGNED :][:num_bytes]
        begin = -(-self._used // _ALIGNED) * _ALIGNED
        if begin + num_bytes > self._chunk.numel():
            self._chunk, begin = _mapped(max(num_bytes, _CHUNK)), 0
        self._used = begin + num_bytes
        return self._chunk[begin : self._used]


def _mapped(num_bytes: int) -> torch.Tensor:  # uint8
    """Fresh memory that begins on a page of 2 MiB; what is not written takes no memory."""
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS  # shared memory has other rules for large pages
    area = mmap.mmap(-1, num_bytes + _PAGE, flags=flags)
    with contextlib.suppress(OSError):  # a kernel without them has the constant all the same
        area.madvise(mmap.MADV_HUGEPAGE)
    found = torch.frombuffer(area, dtype=torch.uint8)
    offset = -found.data_ptr() % _PAGE
    return found[offset : offset + num_bytes]
