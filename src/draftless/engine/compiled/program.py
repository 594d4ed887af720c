"""Compiled pieces in their order: what runs instead of the model's own forward."""

from __future__ import annotations

import operator
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.fx import Node

from draftless.engine.compiled.compiler import Compiled, PieceCompiler
from draftless.engine.compiled.ops import begin, end
from draftless.engine.compiled.pieces import HEAD, cut, make_piece
from draftless.engine.compiled.trace import Traced
from draftless.engine.tree_pass import TreePass


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
        layers, head: see `cut`.
        compiler: of the pieces.
    """

    def __init__(
        self, traced: Traced, layers: str, head: str | None, compiler: PieceCompiler
    ) -> None:
        pieces = cut(traced.graph, layers, head)
        self._linears = traced.linears
        self.has_own_attention = traced.has_own_attention
        nodes = list(pieces.graph.nodes)
        place = {node: index for index, node in enumerate(nodes)}
        self._values: list[Any] = [None] * len(nodes)
        self._calls: list[_Call] = []
        self._body: tuple[int, int] | None = None  # calls before the head, and the head's input
        for node in nodes:
            if node.op == "placeholder":
                self._values[place[node]] = traced.tensors.get(node.name)
            elif node.op == "call_module":
                piece = make_piece(getattr(pieces, str(node.target)))
                inputs = tuple(place[node.args[index]] for index in piece.inputs)
                if node.target == HEAD:
                    (states,) = (index for index in inputs if nodes[index].op != "placeholder")
                    self._body = len(self._calls), states
                self._calls.append(_Call(compiler(piece), inputs, _outputs(node, place)))
        named = {node.name: place[node] for node in nodes if node.op == "placeholder"}
        self._token_ids, self._positions = named["token_ids"], named["positions"]
        (out,) = nodes[-1].args
        self._out = place[out[0] if isinstance(out, tuple | list) else out]

    def __call__(self, tree_pass: TreePass) -> torch.Tensor:  # [M, V]
        """One forward pass over its `M` tokens of all rows. The logits are fresh memory."""
        return self._run(self._calls, self._out, tree_pass)

    def hidden(self, tree_pass: TreePass) -> torch.Tensor | None:  # [1, M, hidden]
        """The same without the head: what it would read. None, and nothing is run, if there is none."""
        if self._body is None:
            return None
        num_calls, out = self._body
        return self._run(self._calls[:num_calls], out, tree_pass)

    def _run(self, calls: Sequence[_Call], out: int, tree_pass: TreePass) -> torch.Tensor:
        values = list(self._values)
        values[self._token_ids], values[self._positions] = begin(
            tree_pass, self._linears, has_own_attention=self.has_own_attention
        )
        try:
            for call in calls:
                found = call.run([values[index] for index in call.inputs])
                for index, place in call.outputs:
                    values[place] = found[index]
        finally:
            end()
        wanted: torch.Tensor = values[out]
        return wanted


def _outputs(node: Node, place: Mapping[Node, int]) -> tuple[tuple[int, int], ...]:
    """Which outputs of a piece are read, and where they go. Numbers among them are not: a piece reads
    its sizes off its tensors (`make_piece`)."""
    parts = [user for user in node.users if user.target is operator.getitem]
    if not parts:
        return ((0, place[node]),)
    return tuple((part.args[1], place[part]) for part in parts)  # type: ignore[misc]
