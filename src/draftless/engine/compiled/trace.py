"""From a stock model to one graph: tokens and positions in, logits out, attention opaque."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import nn
from torch.fx import GraphModule, Node

from draftless.engine import native
from draftless.engine.attention import attention_replaced_by
from draftless.engine.cache import PassThroughCache, cache_keyword
from draftless.engine.compiled.ops import attention, is_attention
from draftless.errors import CapabilityError

LONGEST = 4096
"""Most tokens of a compiled pass, all rows together."""


class Traced:
    """A graph and what it reads.

    Attributes:
        graph: inputs are weights, `token_ids [1, M]` and `positions [1, M]`; the output is the logits
            `[M, V]`.
        tensors: weights, buffers and constants by the name of their input.
        linears: those that the graph knows by their number.
        has_own_attention: whether all of its attention is `native/attention.cpp`.
    """

    def __init__(self, exported: torch.export.ExportedProgram) -> None:
        self.graph: GraphModule = exported.graph_module
        signature = exported.graph_signature
        stored = {**exported.constants, **dict(exported.state_dict)}
        names = {
            **signature.inputs_to_parameters,
            **signature.inputs_to_buffers,
            **signature.inputs_to_lifted_tensor_constants,
        }
        self.tensors = {name: stored[place].detach() for name, place in names.items()}
        self.linears: list[Any] = []
        self.has_own_attention = False

    def add_input(self, tensor: torch.Tensor) -> Node:
        """One more tensor that the graph reads."""
        graph = self.graph.graph
        first = next(iter(graph.nodes))
        with graph.inserting_before(first):
            node = graph.placeholder(f"added_{len(self.tensors)}")
        node.meta["val"] = first.meta["val"].fake_mode.from_tensor(tensor, static_shapes=True)
        self.tensors[node.name] = tensor
        return node


class _TokensOnly(nn.Module):
    """A model as a function of tokens and positions; masks are stand-ins that tell the layer's type."""

    def __init__(
        self, model: Any, kinds: Sequence[str], num_layers: int, dtype: torch.dtype
    ) -> None:
        super().__init__()
        self.model = model
        self._kinds = kinds
        self._num_layers = num_layers
        self._dtype = dtype

    def forward(self, token_ids: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        width = token_ids.shape[1]
        masks = {
            # The number of columns names the type: nothing else survives the way to the attention.
            kind: torch.zeros((1, 1, width, 1 + index), dtype=self._dtype, device=token_ids.device)
            for index, kind in enumerate(self._kinds)
        }
        logits: torch.Tensor = self.model(
            input_ids=token_ids,
            position_ids=positions,
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            use_cache=True,
            **{cache_keyword(self.model): PassThroughCache(self._num_layers)},
        ).logits
        return logits[0]


def trace(
    model: Any, kinds: Sequence[str], num_layers: int, dtype: torch.dtype, *, is_single: bool
) -> Traced:
    """Trace a pass over one token, or one over any number of tokens from two on.

    Args:
        model: a `transformers` model (or a view of one) with our attention.
        kinds: types of its layers.
        num_layers: of the whole model.
        dtype: of the masks.
        is_single: one token.

    Raises:
        Exception: whatever `torch.export` raises where a model cannot be traced.
    """
    places: list[tuple[int, int]] = []

    def emit(
        module: Any,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor,
        scaling: float | None,
        softcap: float | None,
    ) -> torch.Tensor:
        places.append((module.layer_idx, mask.shape[-1] - 1))
        # A stand-in for the place, which has to be an input (`_name_places`).
        place = torch.zeros(2, dtype=torch.long, device="cpu")
        return attention(query, key, value, place, scaling, softcap)

    width = 1 if is_single else 8
    device = next(model.parameters()).device
    token_ids = torch.zeros((1, width), dtype=torch.long, device=device)
    positions = torch.arange(width, device=device)[None]
    dynamic = None
    if not is_single:
        num_tokens = torch.export.Dim("num_tokens", min=2, max=LONGEST)
        dynamic = {"token_ids": {1: num_tokens}, "positions": {1: num_tokens}}
    tokens_only = _TokensOnly(model, kinds, num_layers, dtype)
    with attention_replaced_by(emit), torch.no_grad():
        exported = torch.export.export(
            tokens_only, (token_ids, positions), dynamic_shapes=dynamic, strict=False
        )
    traced = Traced(exported)
    _name_places(traced, places)
    return traced


def _name_places(traced: Traced, places: Sequence[tuple[int, int]]) -> None:
    """Tell every attention its layer and the number of the layer's type, by a tensor of its own."""
    nodes = [node for node in traced.graph.graph.nodes if is_attention(node.target)]
    is_own = {node.target is native.operator("attention") for node in nodes}
    if len(is_own) > 1:
        raise CapabilityError("some layers attend in a way that our operator has, and some do not")
    traced.has_own_attention = True in is_own
    # Exporting runs the model once or more; the last run is the graph's.
    for node, place in zip(nodes, places[-len(nodes) :] if nodes else (), strict=True):
        node.args = (*node.args[:3], traced.add_input(torch.tensor(place)), *node.args[4:])
