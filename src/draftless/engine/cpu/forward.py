"""The native forward pass of a model on a CPU, and of its views without some sub-layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from draftless.engine.compiled.huge_pages import HugePages
from draftless.engine.cpu.lengths import refuse_other_passes
from draftless.engine.cpu.library import library
from draftless.engine.cpu.lower import Lowering
from draftless.engine.cpu.program import DTYPES, PackedWeight, Program
from draftless.engine.cpu.record import record
from draftless.engine.cpu.values import NotLowered
from draftless.engine.precision import InFloat32
from draftless.engine.tree_pass import TreePass
from draftless.skip_set import SkipSet


@dataclass(frozen=True, slots=True)
class _Programs:
    whole: Program
    body: Program | None  # without the language-model head


class NativeForward:
    """Records, lowers and packs a model once; then runs trees of any width, length and number of rows.

    Its passes are batch-invariant: the bits of a node depend on its path alone.

    Args:
        view_of: the model without a skip set's sub-layers; of None the model itself.
        kinds: types of its layers.
        num_layers: of the whole model.
        dtype: of its weights.

    Raises:
        NotLowered: this model cannot run so.
        NoCompiler: this machine has no compiler for the kernels.
    """

    has_own_operators = True

    def __init__(
        self,
        view_of: Callable[[SkipSet | None], Any],
        kinds: Sequence[str],
        num_layers: int,
        dtype: torch.dtype,
    ) -> None:
        if dtype not in DTYPES:
            raise NotLowered(f"weights of {dtype}")
        library()
        self._view_of = view_of
        self._kinds = tuple(kinds)
        self._num_layers = num_layers
        self._dtype = dtype
        self._memory = HugePages()
        self._packed: dict[tuple[Any, ...], PackedWeight] = {}
        self._kept: list[torch.Tensor] = []
        self._programs: dict[SkipSet | None, _Programs] = {}

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights, which exist once for all skip sets."""
        return sum(packed.data.nbytes for packed in self._packed.values())

    def prepare(self, skip_set: SkipSet | None = None, *, is_proved: bool = False) -> None:
        """Record and lower the passes that leave out `skip_set`; a second time costs nothing.

        Args:
            skip_set: None is the whole model.
            is_proved: that its passes do not depend on the number of tokens was shown before.

        Raises:
            NotLowered: the model computes something that the native pass does not know.
        """
        if skip_set in self._programs:
            return
        model = self._view_of(skip_set)
        recording = record(model, self._kinds, self._num_layers, self._dtype)
        lowering = Lowering(recording, self._dtype)
        if skip_set is None and not is_proved:
            other = record(model, self._kinds, self._num_layers, self._dtype, is_other=True)
            refuse_other_passes(lowering, Lowering(other, self._dtype))
        whole = Program(lowering, self._dtype, self._pack, lowering.logits)
        body = None
        if lowering.states is not None:
            body = Program(lowering, self._dtype, self._pack, lowering.states)
        self._programs[skip_set] = _Programs(whole, body)

    def handles(self, skip_set: SkipSet | None, num_tokens: int) -> bool:  # noqa: ARG002 - any number
        """Whether a pass runs natively."""
        return skip_set in self._programs

    def __call__(self, skip_set: SkipSet | None, tree_pass: TreePass) -> torch.Tensor:  # [R*W, V]
        """One pass."""
        return self._programs[skip_set].whole(tree_pass)

    @property
    def skip_sets(self) -> list[SkipSet]:
        """What was prepared, but for the whole model."""
        return [one for one in self._programs if one is not None]

    def hidden(self, tree_pass: TreePass) -> torch.Tensor | None:  # [1, W, hidden]
        """What comes before the head, of one row of the whole model; None if the pass has no such result."""
        body = self._programs[None].body
        return None if body is None else body(tree_pass)[None]

    def _pack(
        self,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
        dtype: torch.dtype,
    ) -> PackedWeight:
        parts = [one for one in (*weights, *biases) if one is not None]
        # An address alone is shared by a weight, its transpose and its first rows.
        key = tuple((one.data_ptr(), one.shape, one.stride()) for one in parts)
        if key not in self._packed:
            self._packed[key] = PackedWeight(weights, biases, dtype, self._memory.empty)
            self._kept += parts  # an address of memory that was given back may come again
        return self._packed[key]


def states_in_float32(model: Any, kinds: Sequence[str], num_layers: int) -> Program:
    """A pass of a model of any precision as a float32 one, up to what comes before its head.

    Raises:
        NotLowered: the model cannot run so.
    """
    with InFloat32():
        recording = record(model, kinds, num_layers, torch.float32)
    lowering = Lowering(recording, torch.float32)
    if lowering.states is None:
        raise NotLowered("hidden states that depend on no token")

    def pack(
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
        dtype: torch.dtype,
    ) -> PackedWeight:
        return PackedWeight(weights, biases, dtype, HugePages().empty)

    return Program(lowering, torch.float32, pack, lowering.states)
