"""The kernels of `engine/native/*.h`, compiled for what this machine can run."""

from __future__ import annotations

import ctypes
import platform
import shutil
import subprocess
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import torch

import draftless

Parents = tuple[int, ...]

HEADERS = Path(draftless.__file__).parent / "engine" / "native"
SOURCE = Path(__file__).with_suffix(".cpp")
DTYPES = {torch.float32: 0, torch.bfloat16: 1}

VARIANTS = {
    "native": ("-march=native",),
    "avx512-bf16": ("-march=native", "-mno-amx-bf16"),
    "avx512": ("-march=native", "-mno-amx-bf16", "-mno-avx512bf16"),
    "avx2": ("-march=native", "-mno-avx512f", "-mno-amx-bf16"),
    "sse": ("-march=x86-64", "-msse4.2"),
}
"""Flags of the compiler. Where a CPU lacks what a name says, the variant is a smaller one twice."""


def variants() -> list[str]:
    return list(VARIANTS) if platform.machine() == "x86_64" else ["native"]


class Sizes(ctypes.Structure):
    _fields_ = [
        *((name, ctypes.c_int64) for name in (
            "rows", "width", "window", "heads", "kv_heads", "key_dim", "value_dim", "query_stride",
            "capacity", "slot", "threads",
        )),
        ("scaling", ctypes.c_float),
        ("softcap", ctypes.c_float),
    ]  # fmt: skip


@cache
def compiled(variant: str, folder: Path) -> Kernels | None:
    """None without a compiler."""
    compiler = shutil.which("g++")
    if compiler is None:
        return None
    library = folder / f"{variant}.so"
    command = [compiler, "-O2", "-std=c++17", "-ffp-contract=off", "-Wall", "-Wextra", "-Werror", "-Wno-maybe-uninitialized", "-fPIC"]  # fmt: skip
    command += ["-shared", "-pthread", f"-I{HEADERS}", *VARIANTS[variant], str(SOURCE), "-o", str(library)]  # fmt: skip
    subprocess.run(command, check=True)
    return Kernels(ctypes.CDLL(str(library)))


def integers(*values: int) -> ctypes.Array[ctypes.c_int64]:
    return (ctypes.c_int64 * len(values))(*values)


def address(tensor: torch.Tensor | None) -> ctypes.c_void_p:
    return ctypes.c_void_p(None if tensor is None else tensor.data_ptr())


@dataclass
class Case:
    """Attention of a pass over a tree per row.

    Attributes:
        query: `[R, W, Hq, Dk]`.
        keys, values: `[R, Hkv, C, D]`, those of the tree behind `lengths[row]` cached ones.
        lengths, trees: per row its cached tokens and its tree.
        window: of sliding attention; 0: none.
        softcap: of the scores; 0: none.
    """

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    lengths: list[int]
    trees: list[Parents]
    window: int = 0
    softcap: float = 0.0
    scaling: float = 0.125
    threads: int = 2

    def path(self, row: int, node: int) -> list[int]:
        """The slots that a node sees, in order."""
        path = [node]
        while self.trees[row][path[0]] >= 0:
            path.insert(0, self.trees[row][path[0]])
        length = self.lengths[row]
        slots = [*range(length), *(length + one for one in path)]
        return slots[-self.window :] if self.window else slots

    def alone(self, row: int, node: int) -> Case:
        """A node as plain decoding meets it: behind its own path, and by itself."""
        slots = replace(self, window=0).path(row, node)
        keys, values = (one[row : row + 1, :, slots] for one in (self.keys, self.values))
        query = self.query[row : row + 1, node : node + 1]
        return replace(
            self, query=query, keys=keys, values=values, lengths=[len(slots) - 1], trees=[(-1,)]
        )

    def truth(self, row: int, node: int) -> torch.Tensor:  # [Hq, Dv] in double precision
        slots = self.path(row, node)
        groups = self.query.shape[2] // self.keys.shape[1]
        keys, values = (
            one[row, :, slots].double().repeat_interleave(groups, 0)
            for one in (self.keys, self.values)
        )
        scores = (keys @ self.query[row, node].double()[:, :, None])[:, :, 0] * self.scaling
        if self.softcap:
            scores = torch.tanh(scores / self.softcap) * self.softcap
        return (scores.softmax(-1)[:, None] @ values)[:, 0]


class Kernels:
    def __init__(self, library: ctypes.CDLL) -> None:
        self.library = library
        for name in ("lanes_of_kernels", "has_tiles", "bytes_of_packed", "count_items"):
            getattr(library, name).restype = ctypes.c_int64
        library.new_pool.restype = ctypes.c_void_p

    def runs_here(self) -> bool:
        return bool(self.library.lanes_of_kernels())

    def pack(self, weights: Sequence[torch.Tensor], fill: int = 0xFF) -> torch.Tensor:
        """Weights `[N, K]` as one, in memory that held something else."""
        dtype, width, size = DTYPES[weights[0].dtype], sum(map(len, weights)), weights[0].shape[1]
        num_bytes = self.library.bytes_of_packed(
            ctypes.c_int64(width), ctypes.c_int64(size), ctypes.c_int32(dtype)
        )
        room = torch.full((num_bytes + 128,), fill, dtype=torch.uint8)
        packed = room[-room.data_ptr() % 64 :][: num_bytes + 64]
        first = 0
        for weight in weights:
            sizes = integers(len(weight), size, weight.stride(0), first)
            self.library.pack_weight(address(weight), sizes, dtype, address(packed))
            first += len(weight)
        assert packed[num_bytes:].eq(fill).all(), "no more than `packed_bytes`"
        return packed

    def multiply(
        self,
        x: torch.Tensor,  # [M, K]
        packed: torch.Tensor,
        width: int,
        bias: torch.Tensor | None = None,
        *,
        threads: int = 1,
        grain: int = 1,
    ) -> torch.Tensor:  # [M, N]
        """Into rows that stand further apart than they are wide."""
        out = torch.full((len(x), width + 3), 7.0, dtype=x.dtype)
        sizes = integers(*x.shape, width, x.stride(0), out.stride(0), threads, grain)
        self.library.multiply(
            DTYPES[x.dtype], address(x), address(packed), address(bias), address(out), sizes
        )
        assert out[:, width:].eq(7.0).all(), "nothing behind a row"
        return out[:, :width]

    def attend(self, case: Case, slack: int = 9, fill: float = 7.0) -> torch.Tensor:
        """`[R, W, Hq, Dv]`; the cache holds `fill` wherever nothing was written."""
        rows, width, heads, key_dim = case.query.shape
        kv_heads, value_dim = case.keys.shape[1], case.values.shape[3]
        capacity, slot = max(case.lengths) + width + slack, max(key_dim, value_dim)
        cache = torch.full((2, rows, kv_heads, capacity, slot), fill, dtype=case.query.dtype)
        new = []
        for kind, states in enumerate((case.keys, case.values)):
            one = torch.zeros(rows, width, kv_heads, states.shape[3], dtype=states.dtype)
            for row, length in enumerate(case.lengths):
                cache[kind, row, :, :length, : states.shape[3]] = states[row, :, :length]
                num = len(case.trees[row])
                one[row, :num] = states[row, :, length : length + num].transpose(0, 1)
            new.append(one)
        query = torch.full((rows, width, heads * key_dim + 5), 3.0, dtype=case.query.dtype)
        query[:, :, :-5] = case.query.flatten(2)
        out = torch.full((rows, width, heads, value_dim), torch.nan, dtype=case.query.dtype)
        sizes = Sizes(
            rows, width, case.window, heads, kv_heads, key_dim, value_dim, query.stride(1),
            capacity, slot, case.threads, case.scaling, case.softcap,
        )  # fmt: skip
        padded = [one for tree in case.trees for one in (*tree, *[-1] * (width - len(tree)))]
        is_tree = self.library.attend(
            DTYPES[query.dtype], ctypes.byref(sizes), integers(*case.lengths), integers(*padded),
            address(query), address(new[0]), address(new[1]), address(cache[0]), address(cache[1]),
            address(out),
        )  # fmt: skip
        if not is_tree:
            raise ValueError("no tree")
        return out
