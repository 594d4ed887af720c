"""Compiled pieces in their order: what runs instead of the model's own forward."""

from __future__ import annotations

import operator
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch._inductor import standalone_compile
from torch.fx import Node

from draftless.engine.compiled.ops import Step, begin
from draftless.engine.compiled.pieces import Piece, cut, make_piece
from draftless.engine.compiled.trace import Traced

Compiled = Callable[..., Any]

# Checks of every tensor in every call: as long as a small product, and nothing here changes shape.
_OPTIONS = {"size_asserts": False, "alignment_asserts": False}
# On a CPU what calls a piece's kernels is C++, too: in Python it took a fifth of a small model's pass.
_ON_CPU = {"cpp_wrapper": True}


class PieceCompiler:
    """Compiles each kind of piece once, for all layers, skip sets and widths of a model.

    Attributes:
        num_compiled: kinds so far.
    """

    def __init__(self) -> None:
        self._compiled: dict[str, Compiled] = {}

    @property
    def num_compiled(self) -> int:
        return len(self._compiled)

    def __call__(self, piece: Piece) -> Compiled:
        key = piece.key()
        if key not in self._compiled:
            inputs = [n.meta["val"] for n in piece.graph.graph.nodes if n.op == "placeholder"]
            is_on_cpu = all(value.device.type == "cpu" for value in inputs)
            patches = {**_OPTIONS, **(_ON_CPU if is_on_cpu else {})}
            with torch.no_grad():
                # "from_graph": a width that is symbolic in the trace stays one.
                self._compiled[key] = standalone_compile(
                    piece.graph,
                    inputs,
                    dynamic_shapes="from_graph",
                    options={"config_patches": patches},
                )
        return self._compiled[key]


@dataclass(frozen=True, slots=True)
class _Call:
    """One line of a program: `values[out] = run(*values[inputs])`."""

    run: Compiled
    inputs: tuple[int, ...]
    out: int


class Program:
    """A graph that was cut into pieces, compiled and bound to its weights."""

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
                self._calls.append(_Call(compiler(piece), inputs, place[node]))
            elif node.op == "call_function":
                self._calls.append(_plain_call(node, place))
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
            values[call.out] = call.run(*[values[index] for index in call.inputs])
        logits: torch.Tensor = _only(values[self._out])
        return logits


def _plain_call(node: Node, place: Mapping[Node, int]) -> _Call:
    """What is left between the pieces: a piece's second output, or a size of the input."""
    if node.target is operator.getitem:
        source, index = node.args
        return _Call(operator.itemgetter(index), (place[source],), place[node])  # type: ignore[index]
    if node.target is torch.ops.aten.sym_size.int:
        source, axis = node.args
        return _Call(lambda x: x.shape[axis], (place[source],), place[node])  # type: ignore[index]
    raise ValueError(f"{node.target} lies between the pieces of the graph")


def _only(value: Any) -> Any:
    return value[0] if isinstance(value, tuple | list) else value
