"""Compiled pieces in their order: what runs instead of the model's own forward."""

from __future__ import annotations

import operator
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from draftless.engine.compiled.compiler import Compiled, PieceCompiler
from draftless.engine.compiled.ops import Step, begin
from draftless.engine.compiled.pieces import cut, make_piece
from draftless.engine.compiled.trace import Traced


@dataclass(frozen=True, slots=True)
class _Call:
    """One piece: it reads the values at `inputs`; its output `index` goes to `place`, for each of `outputs`."""

    run: Compiled
    inputs: tuple[int, ...]
    outputs: tuple[tuple[int, int], ...]


class Program:
    """A graph, cut into pieces, compiled and bound to its weights.

    Args:
        traced: the graph; its linear layers may be packed.
        place_of_layers: where the decoder layers are (`model.layers`).
        compiler: of the pieces.
    """

    def __init__(self, traced: Traced, place_of_layers: str, compiler: PieceCompiler) -> None:
        pieces = cut(traced.graph, place_of_layers)
        self._linears = traced.linears
        nodes = list(pieces.graph.nodes)
        place = {node: index for index, node in enumerate(nodes)}
        self._values: list[Any] = [None] * len(nodes)
        self._calls: list[_Call] = []
        for node in nodes:
            if node.op == "placeholder":
                self._values[place[node]] = traced.tensors.get(node.name)
            elif node.op == "call_module":
                piece = make_piece(getattr(pieces, str(node.target)))
                inputs = tuple(place[node.args[index]] for index in piece.inputs)
                self._calls.append(_Call(compiler(piece), inputs, _outputs(node, place)))
        named = {node.name: place[node] for node in nodes if node.op == "placeholder"}
        self._token_ids, self._positions = named["token_ids"], named["positions"]
        (out,) = nodes[-1].args
        self._out = place[out[0] if isinstance(out, tuple | list) else out]

    def __call__(
        self,
        token_ids: torch.Tensor,  # [1, M] int64
        positions: torch.Tensor,  # [1, M] int64
        step: Step,
    ) -> torch.Tensor:  # [1, M, V]
        """One forward pass. The logits are fresh memory."""
        values = list(self._values)
        values[self._token_ids], values[self._positions] = token_ids, positions
        begin(step, self._linears)
        for call in self._calls:
            found = call.run([values[index] for index in call.inputs])
            for index, out in call.outputs:
                values[out] = found[index]
        logits: torch.Tensor = values[self._out]
        return logits


def _outputs(node: Node, place: Mapping[Node, int]) -> tuple[tuple[int, int], ...]:
    """Which outputs of a piece are read, and where they go. Numbers among them are not: a piece reads
    its sizes off its tensors (`make_piece`)."""
    parts = [user for user in node.users if user.target is operator.getitem]
    if not parts:
        return ((0, place[node]),)
    return tuple((part.args[1], place[part]) for part in parts)  # type: ignore[misc]
