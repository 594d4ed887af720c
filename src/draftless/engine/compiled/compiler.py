"""From a piece of the graph to code."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch._inductor import standalone_compile
from torch._inductor.output_code import CompiledFxGraph

from draftless.engine.compiled.pieces import Piece

Compiled = Callable[[list[torch.Tensor]], Sequence[torch.Tensor]]
"""Takes its inputs as a list, which it empties, and gives all outputs."""

# Checks of every tensor in every call: as long as a small product, and nothing here changes shape.
# CUDA graphs would hold on to what attention reads beside the graph.
_OPTIONS = {"size_asserts": False, "alignment_asserts": False, "triton.cudagraphs": False}
# On a CPU what calls a piece's kernels is C++, too: in Python it took a fifth of a small model's pass.
_ON_CPU = {"cpp_wrapper": True}

_ONE_AT_A_TIME = threading.Lock()


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
            self._compiled[key] = _compile(piece)
        return self._compiled[key]


def _compile(piece: Piece) -> Compiled:
    inputs = [n.meta["val"] for n in piece.graph.graph.nodes if n.op == "placeholder"]
    is_on_cpu = all(value.device.type == "cpu" for value in inputs)
    patches = {**_OPTIONS, **(_ON_CPU if is_on_cpu else {})}
    with _ONE_AT_A_TIME, torch.no_grad(), _code_of_inductor() as codes:
        # "from_graph": a width that is symbolic in the trace stays one.
        whole = standalone_compile(
            piece.graph,
            inputs,
            dynamic_shapes="from_graph",
            options={"config_patches": patches},
        )
    if len(codes) == 1 and codes[0][1] == len(inputs):
        return codes[0][0]

    def run(values: list[torch.Tensor]) -> Sequence[torch.Tensor]:
        found = whole(*values)
        return found if isinstance(found, tuple | list) else (found,)

    return run


@contextmanager
def _code_of_inductor() -> Iterator[list[tuple[Compiled, int]]]:
    """What Inductor makes meanwhile, with its number of inputs.

    The function that `standalone_compile` returns wraps it in nine others, which for a graph without
    gradients and mutations do nothing, and in every layer of every pass. Whether it says the same is
    seen when the model is loaded, as with everything that is compiled. Not for two threads at once.
    """
    found: list[tuple[Compiled, int]] = []
    finish = CompiledFxGraph.post_compile

    def note(self: CompiledFxGraph, inputs: Sequence[Any], *more: Any) -> None:
        finish(self, inputs, *more)
        assert self.current_callable is not None
        found.append((self.current_callable, len(inputs)))

    CompiledFxGraph.post_compile = note  # type: ignore[method-assign, assignment]
    try:
        yield found
    finally:
        CompiledFxGraph.post_compile = finish  # type: ignore[method-assign]
