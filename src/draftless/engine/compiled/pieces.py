"""From one graph to pieces: linear layers that share an input become one, and each layer a piece."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch.fx import Graph, GraphModule, Node
from torch.fx.passes.split_module import split_module

from draftless.engine.compiled.linears import PackedLinear
from draftless.engine.compiled.trace import Traced

Packs = Callable[[list[torch.Tensor], list[torch.Tensor | None]], PackedLinear]


@dataclass(slots=True)
class Piece:
    """A part of the graph, as code that other layers may share.

    Attributes:
        graph: its inputs are tensors alone.
        inputs: which of the arguments it was cut with it takes.
    """

    graph: GraphModule
    inputs: list[int]

    def key(self) -> str:
        """Equal for pieces that compile to the same code."""
        inputs = [node for node in self.graph.graph.nodes if node.op == "placeholder"]
        shapes = [(str(n.meta["val"].shape), str(n.meta["val"].dtype)) for n in inputs]
        strides = [str(n.meta["val"].stride()) for n in inputs]
        return f"{self.graph.code} {shapes} {strides} {[n.meta['val'].device for n in inputs]}"


def merge_linears(traced: Traced, pack: Packs) -> None:
    """Put the linear layers of each input side by side, on packed weights."""
    graph, tensors = traced.graph.graph, traced.tensors
    together: dict[Node, list[Node]] = {}
    for node in graph.nodes:
        if node.target is torch.ops.aten.linear.default and node.args[1].name in tensors:
            together.setdefault(node.args[0], []).append(node)
    for source, nodes in together.items():
        weights = [tensors[node.args[1].name] for node in nodes]  # type: ignore[union-attr]
        biases = [_bias(node, tensors) for node in nodes]
        packed = pack(weights, biases)
        with graph.inserting_before(nodes[0]):
            whole = packed.put(traced, source)
            value = nodes[0].meta["val"]
            shape = (*value.shape[:-1], packed.width)
            whole.meta = {**nodes[0].meta, "val": value.new_empty(shape)}
            parts, start = [whole], 0
            if len(nodes) > 1:
                parts = []
                for weight in weights:
                    end = start + len(weight)
                    bounds = (whole, -1, start, end)
                    parts.append(graph.call_function(torch.ops.aten.slice.Tensor, bounds))
                    parts[-1].meta = {**whole.meta, "val": whole.meta["val"][..., start:end]}
                    start = end
        for node, part in zip(nodes, parts, strict=True):
            node.replace_all_uses_with(part)
            graph.erase_node(node)


def _bias(node: Node, tensors: Mapping[str, torch.Tensor]) -> torch.Tensor | None:
    bias = node.args[2] if len(node.args) > 2 else node.kwargs.get("bias")
    return None if bias is None else tensors[bias.name]  # type: ignore[union-attr,index]


def tidy(graph: Graph) -> None:
    """Drop what only checks, and what nobody reads."""
    for node in list(graph.nodes):
        if node.op == "call_function" and "_assert" in str(node.target) and not node.users:
            graph.erase_node(node)
    graph.eliminate_dead_code()
    for node in list(graph.nodes):
        if node.op == "placeholder" and not node.users and node.name not in _INPUTS:
            graph.erase_node(node)


_INPUTS = ("token_ids", "positions")


HEAD = "submod_head"
"""Name of the piece that is the language-model head; there is none where the model names no head."""


def cut(module: GraphModule, layers: str, head: str | None) -> GraphModule:
    """Cut a graph where it enters or leaves a decoder layer or the head.

    Args:
        module: the graph.
        layers: path of the layers (`model.layers`).
        head: path of the language-model head (`lm_head`), if there is one.
    """
    names = rf"\b{re.escape(layers)}\.(\d+)\b" + (rf"|\b({re.escape(head)})$" if head else "")
    pattern = re.compile(names)
    part_of: dict[Node, int | str] = {}
    part, current = 0, None
    for node in module.graph.nodes:
        if node.op in ("placeholder", "output"):
            continue
        stack = node.meta.get("nn_module_stack") or {}
        paths = [path for path, _ in stack.values() if path]
        if paths:  # what is of our own making, in no module of the model, stays where it is
            match = next(filter(None, map(pattern.search, paths)), None)
            layer = match and match.group()
            if layer != current:
                part, current = part + 1, layer
        part_of[node] = "head" if current == head is not None else part
    return split_module(module, None, lambda node: part_of[node], keep_original_order=True)  # type: ignore[arg-type, return-value]


def make_piece(module: GraphModule) -> Piece:
    """Bring a part into the form that equal parts share: names, and no number among the inputs."""
    graph = module.graph
    inputs = [node for node in graph.nodes if node.op == "placeholder"]
    kept = []
    for index, node in enumerate(inputs):
        if isinstance(node.meta["val"], torch.Tensor):
            kept.append(index)
        else:
            _read_off_a_shape(graph, node, inputs)
    piece = Piece(module, kept)
    names = {"placeholder": 0, "call_function": 0}
    for node in graph.nodes:
        if "val" in node.meta:  # where the compiler looks for the widths that are symbols
            node.meta["example_value"] = node.meta["val"]
        if node.op in names:
            node.name = f"{node.op}_{names[node.op]}"
            if node.op == "placeholder":
                node.target = node.name
            names[node.op] += 1
    module.recompile()
    return piece


def _read_off_a_shape(graph: Graph, number: Node, inputs: list[Node]) -> None:
    """A number of tokens that a part was given is a size of one of its tensors as well."""
    wanted = number.meta["val"].node.expr
    for node in inputs:
        value = node.meta["val"]
        for axis, size in enumerate(value.shape if isinstance(value, torch.Tensor) else ()):
            if isinstance(size, torch.SymInt) and size.node.expr == wanted:
                with graph.inserting_after(inputs[-1]):
                    same = graph.call_function(torch.ops.aten.sym_size.int, (node, axis))
                    same.meta["val"] = number.meta["val"]
                number.replace_all_uses_with(same)
                graph.erase_node(number)
                return
    raise ValueError(f"no tensor of this part has a size of {wanted}")
