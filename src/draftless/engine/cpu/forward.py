"""The native forward pass of a model on a CPU, and of its views without some sub-layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from draftless.engine.compiled.huge_pages import HugePages
from draftless.engine.cpu.library import library
from draftless.engine.cpu.lower import Lowering
from draftless.engine.cpu.program import DTYPES, PackedWeight, Program
from draftless.engine.cpu.record import record
from draftless.engine.cpu.values import Linear, NotLowered, View
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

    has_own_attention = True

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
        self._sources: list[torch.Tensor] = []  # kept, so that no other tensor gets their addresses
        self._programs: dict[SkipSet | None, _Programs] = {}

    @property
    def packed_bytes(self) -> int:
        """Memory of the packed weights, which exist once for all skip sets."""
        return sum(packed.data.nbytes for packed in self._packed.values())

    def prepare(self, skip_set: SkipSet | None = None) -> None:
        """Record and lower the passes that leave out `skip_set`; a second time costs nothing.

        Raises:
            NotLowered: the model computes something that the native pass does not know.
        """
        if skip_set in self._programs:
            return
        model = self._view_of(skip_set)
        recording = record(model, self._kinds, self._num_layers, self._dtype)
        lowering = Lowering(recording, self._dtype)
        whole = Program(lowering, self._dtype, self._pack, lowering.logits)
        body = None
        states = _read_by_head(lowering, model)
        if states is not None and skip_set is None:
            body = Program(lowering, self._dtype, self._pack, states)
        self._programs[skip_set] = _Programs(whole, body)

    def handles(self, skip_set: SkipSet | None, num_tokens: int) -> bool:  # noqa: ARG002 - any number
        """Whether a pass runs natively."""
        return skip_set in self._programs

    def __call__(self, skip_set: SkipSet | None, tree_pass: TreePass) -> torch.Tensor:  # [R*W, V]
        """One pass."""
        return self._programs[skip_set].whole(tree_pass)

    def hidden(self, tree_pass: TreePass) -> torch.Tensor | None:  # [1, W, hidden]
        """What the head of the whole model would read of one row; None if the head is not known."""
        body = self._programs[None].body
        return None if body is None else body(tree_pass)[None]

    def _pack(
        self, weights: Sequence[torch.Tensor], biases: Sequence[torch.Tensor | None]
    ) -> PackedWeight:
        key = tuple(
            None if one is None else (one.data_ptr(), one.shape, one.stride())
            for one in (*weights, *biases)
        )
        if key not in self._packed:
            self._packed[key] = PackedWeight(weights, biases, self._memory.empty)
            self._sources += weights
        return self._packed[key]


def _read_by_head(lowering: Lowering, model: Any) -> View | None:
    weight = model.get_output_embeddings().weight
    for node in lowering.nodes:
        if isinstance(node, Linear) and node.weights[0].data_ptr() == weight.data_ptr():
            return node.x
    return None
