"""The compiled counterpart of a model's forward pass, and of its views without some sub-layers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from draftless.engine.compiled import linears
from draftless.engine.compiled.compiler import PieceCompiler
from draftless.engine.compiled.huge_pages import HugePages
from draftless.engine.compiled.linears import PackedLinear, can_pack, pack
from draftless.engine.compiled.pieces import merge_linears, tidy
from draftless.engine.compiled.program import Program
from draftless.engine.compiled.trace import LONGEST, trace
from draftless.engine.tree_pass import TreePass
from draftless.skip_set import SkipSet


@dataclass(frozen=True, slots=True)
class _Programs:
    """A pass over one token, which needs code of its own, and one over more."""

    single: Program
    several: Program


class CompiledForward:
    """Compiles a model once; no width, length or number of rows is compiled for again.

    Args:
        view_of: the model without a skip set's sub-layers; of None the model itself.
        place: where its decoder layers are (`model.layers`).
        kinds: types of its layers.
        num_layers: of the whole model.
        dtype: of its weights.
    """

    def __init__(
        self,
        view_of: Callable[[SkipSet | None], Any],
        place: str,
        kinds: Sequence[str],
        num_layers: int,
        dtype: torch.dtype,
    ) -> None:
        self._view_of = view_of
        self._place = place
        self._kinds = tuple(kinds)
        self._num_layers = num_layers
        self._dtype = dtype
        self._compiler = PieceCompiler()
        self._memory = HugePages()
        self._packed: dict[tuple[int, ...], PackedLinear] = {}
        self._programs: dict[SkipSet | None, _Programs] = {}

    @property
    def num_compiled(self) -> int:
        """Pieces of code so far: it stays what it is once everything was prepared."""
        return self._compiler.num_compiled

    @property
    def has_own_operators(self) -> bool:
        """Whether all attention and all products are our own, whose bits do not depend on what else is in
        a pass; with AMX, products of many rows are torch's, which differ seldom enough to pass a test."""
        is_own = linears.has_blocked() and not torch.cpu._is_amx_tile_supported()
        return is_own and all(one.several.has_own_attention for one in self._programs.values())

    @property
    def packed_bytes(self) -> int:
        """Memory of the prepacked weights, which exist once for all widths and skip sets."""
        return sum(packed.num_bytes for packed in self._packed.values())

    @property
    def skip_sets(self) -> list[SkipSet]:
        """What was prepared, but for the whole model."""
        return [one for one in self._programs if one is not None]

    def prepare(self, skip_set: SkipSet | None = None) -> None:
        """Trace and compile the passes that leave out `skip_set`; a second time costs nothing.

        Raises:
            Exception: whatever tracing or compiling raises.
        """
        if skip_set not in self._programs:
            single, several = (self._build(skip_set, is_single=one) for one in (True, False))
            self._programs[skip_set] = _Programs(single, several)

    def handles(self, skip_set: SkipSet | None, num_tokens: int) -> bool:
        """Whether a pass of so many tokens in all runs compiled."""
        return skip_set in self._programs and num_tokens <= LONGEST

    def __call__(self, skip_set: SkipSet | None, tree_pass: TreePass) -> torch.Tensor:  # [R*W, V]
        """One pass. To all but attention the rows are one row of `R * W` tokens."""
        return self._program(skip_set, tree_pass)(tree_pass)

    def hidden(self, tree_pass: TreePass) -> torch.Tensor | None:  # [1, W, hidden]
        """What the head of the whole model would read of one row; None if the head is not known."""
        return self._program(None, tree_pass).hidden(tree_pass)

    def _program(self, skip_set: SkipSet | None, tree_pass: TreePass) -> Program:
        programs = self._programs[skip_set]
        return programs.single if tree_pass.num_tokens == 1 else programs.several

    def _build(self, skip_set: SkipSet | None, *, is_single: bool) -> Program:
        model = self._view_of(skip_set)
        traced = trace(model, self._kinds, self._num_layers, self._dtype, is_single=is_single)
        if can_pack(self._dtype, model.device):
            merge_linears(traced, self._pack)
        tidy(traced.graph.graph)
        return Program(traced, self._place, _name_of_head(model), self._compiler)

    def _pack(self, weights: list[torch.Tensor], biases: list[torch.Tensor | None]) -> PackedLinear:
        key = tuple(0 if one is None else one.data_ptr() for one in (*weights, *biases))
        if key not in self._packed:
            self._packed[key] = pack(weights, biases, self._memory)
        return self._packed[key]


def _name_of_head(model: Any) -> str | None:
    head = model.get_output_embeddings()
    return next((name for name, module in model.named_modules() if module is head), None)
