"""`KVCache`: the only owner of key and value memory."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from transformers import Cache, PreTrainedModel
from transformers.cache_utils import CacheLayerMixin

from draftless.engine.cpu.library import moved_slots
from draftless.errors import ConfigError

_BUCKET = 256
"""Capacity grows in multiples of this many slots, and at least by a quarter."""


@dataclass(frozen=True, slots=True)
class CacheShape:
    """What must be known to allocate: layers `Y`, KV heads `H`, head size `D`, dtype, device."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    dtype: torch.dtype
    device: torch.device


class KVCache:
    """Keys and values of `B` rows of unequal length, in one preallocated tensor.

    `data` is `[Y, 2, B, H, C, D]`: one gather then moves the accepted path of all layers at once.
    Row `b` owns slots `0 .. lengths[b]-1`; what lies behind is stale and always masked. The memory
    starts as zeros, because a NaN in a masked slot would leak through the softmax.

    Four verbs: `append` (what a forward writes), `commit`, `truncate`, `scratch`. The first `R`
    rows are the active ones; `drop` moves the last active row into the place of a finished one.
    """

    def __init__(self, shape: CacheShape, num_rows: int, capacity: int) -> None:
        self.shape = shape
        self.lengths = [0] * num_rows
        self.data = self._allocate(num_rows, capacity)
        self._layers = [_Layer(self, index) for index in range(shape.num_layers)]
        self.adapter = Cache(layers=self._layers)
        self._rows = slice(0, num_rows)
        self._width = 0  # of the running forward
        self._views: _Views | None = None

    def _allocate(self, num_rows: int, capacity: int) -> torch.Tensor:
        shape = self.shape
        return torch.zeros(
            (shape.num_layers, 2, num_rows, shape.num_kv_heads, capacity, shape.head_dim),
            dtype=shape.dtype,
            device=shape.device,
        )

    @property
    def num_rows(self) -> int:
        return len(self.lengths)

    @property
    def capacity(self) -> int:
        return self.data.shape[4]

    def reserve(self, num_slots: int) -> None:
        """Make room for `num_slots` slots a row. Between steps only: it moves the memory."""
        if num_slots <= self.capacity:
            return
        wanted = max(num_slots, self.capacity + self.capacity // 4)
        grown = self._allocate(self.num_rows, -(-wanted // _BUCKET) * _BUCKET)
        used = max(self.lengths, default=0)
        grown[:, :, :, :, :used] = self.data[:, :, : self.num_rows, :, :used]
        self.data = grown

    def append(self, rows: slice, width: int) -> int:
        """Prepare a forward that writes `width` slots behind each of `rows`.

        The lengths do not change: only `commit` makes slots permanent, and the next forward
        overwrites the same ones.

        Returns:
            `C`, the number of slots that attention will see.
        """
        self._rows, self._width, self._views = rows, width, None
        context = max(self.lengths[rows]) + width
        if context > self.capacity:
            raise ConfigError(
                f"a forward needs {context} slots, the cache holds {self.capacity}; reserve() first"
            )
        return context

    def _cut(self) -> _Views:
        """One view per layer, cut all at once: in every layer anew they would cost as much as the
        attention over them."""
        starts, width = self.lengths[self._rows], self._width
        context = max(starts) + width
        seen = self.data[:, :, self._rows, :, :context]
        of_layers = seen.flatten(0, 1).unbind(0)
        if min(starts) == max(starts):
            return _Views(of_layers, seen[:, :, :, :, -width:].flatten(0, 1).unbind(0), None)
        device = self.shape.device
        slots = torch.tensor(starts, device=device)[:, None] + torch.arange(width, device=device)
        rows = torch.arange(len(starts), device=device)[:, None]
        return _Views(of_layers, (), (rows, slots))

    def write(
        self,
        layer: int,
        keys: torch.Tensor,  # [R, H, W, D]
        values: torch.Tensor,  # [R, H, W, D]
    ) -> tuple[torch.Tensor, torch.Tensor]:  # [R, H, C, D] each
        """Store one layer's new keys and values and return all that attention may see."""
        if self._views is None:
            self._views = self._cut()
        views = self._views
        for kind, states in enumerate((keys, values)):
            index = 2 * layer + kind
            if views.places is None:
                views.written[index].copy_(states)
            else:
                rows, slots = views.places
                # An index on both sides of the head axis puts that axis behind: [R, W, H, D].
                views.seen[index][rows, :, slots] = states.transpose(1, 2)
        return views.seen[2 * layer], views.seen[2 * layer + 1]

    def commit(self, row: int, path: Sequence[int]) -> None:
        """Keep the slots of an accepted path, in order; the rest of the tree becomes stale.

        Args:
            row: the row.
            path: node indices of the tree that the last forward wrote, ascending from 0.
        """
        start = self.lengths[row]
        in_place = next((i for i, node in enumerate(path) if node != i), len(path))
        if in_place < len(path) and not moved_slots(self.data, row, start, path):
            moved = torch.tensor(path[in_place:], device=self.shape.device) + start
            kept = self.data[:, :, row].index_select(3, moved)
            self.data[:, :, row, :, start + in_place : start + len(path)] = kept
        self.lengths[row] = start + len(path)

    def wipe(self) -> None:
        """Zero what lies behind the committed slots of every row.

        Hidden slots weigh nothing, but nothing times NaN is NaN.
        """
        for row, length in enumerate(self.lengths):
            self.data[:, :, row, :, length:].zero_()

    def truncate(self, row: int, length: int) -> None:
        """Forget everything of a row behind `length` slots."""
        if not 0 <= length <= self.lengths[row]:
            raise ConfigError(f"cannot truncate row {row} of {self.lengths[row]} slots to {length}")
        self.lengths[row] = length

    @contextmanager
    def scratch(self) -> Iterator[None]:
        """Forwards and commits inside vanish on exit, also after an error."""
        lengths = list(self.lengths)
        try:
            yield
        finally:
            self.lengths[:] = lengths

    def drop(self, row: int) -> None:
        """Remove a row; the last row takes its place."""
        last = self.num_rows - 1
        if row != last:
            length = self.lengths[last]
            self.data[:, :, row, :, :length] = self.data[:, :, last, :, :length]
            self.lengths[row] = length
        self.lengths.pop()


@dataclass(frozen=True, slots=True)
class _Views:
    """What the layers of one forward read and write, keys and values of each layer in turn.

    Attributes:
        seen: `[R, H, C, D]` each.
        written: `[R, H, W, D]` each, where all rows are of one length; else empty.
        places: of rows of unequal length, `[R, 1]` rows and `[R, W]` slots to write.
    """

    seen: tuple[torch.Tensor, ...]
    written: tuple[torch.Tensor, ...]
    places: tuple[torch.Tensor, torch.Tensor] | None


class _Layer(CacheLayerMixin):
    """What a `transformers` model sees of one layer of a `KVCache`."""

    def __init__(self, owner: KVCache, index: int) -> None:
        super().__init__()
        self._owner = owner
        self._index = index
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do: the memory is preallocated."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return self._owner.write(self._index, key_states, value_states)

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_seq_length() + query_length, 0

    def get_seq_length(self) -> int:
        return max(self._owner.lengths[self._owner._rows], default=0)

    def get_max_length(self) -> int:
        return -1


def cache_keyword(model: PreTrainedModel) -> str:
    """What a model's `forward` calls its cache: `cache` since transformers 5.24, before that (and in
    models whose code comes from elsewhere) `past_key_values`."""
    names = inspect.signature(type(model).forward).parameters
    return "cache" if "cache" in names else "past_key_values"


class PassThroughCache(Cache):
    """For tracing a model: every layer hands on the new keys and values, and nothing is kept."""

    def __init__(self, num_layers: int) -> None:
        super().__init__(layers=[_PassThroughLayer() for _ in range(num_layers)])


class _PassThroughLayer(CacheLayerMixin):
    def __init__(self) -> None:
        super().__init__()
        self.is_initialized = True

    def lazy_initialization(self, key_states: torch.Tensor, value_states: torch.Tensor) -> None:
        """Nothing to do."""

    def update(
        self, key_states: torch.Tensor, value_states: torch.Tensor, *_: Any, **__: Any
    ) -> tuple[torch.Tensor, torch.Tensor]:
        return key_states, value_states

    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return query_length, 0

    def get_seq_length(self) -> int:
        return 0

    def get_max_length(self) -> int:
        return -1
