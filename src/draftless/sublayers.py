"""The sub-layers of a stock decoder, and what stands in for one that is left out."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from draftless.errors import CapabilityError

_ATTENTION_NAMES = ("self_attn", "attention")
_MLP_NAMES = ("mlp",)


class NoAttention(nn.Module):
    """Stands in for an attention that adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(hidden_states), None


class NoMLP(nn.Module):
    """Stands in for an MLP that adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


class NoLayer(nn.Module):
    """Stands in for a layer whose sub-layers are both left out."""

    def forward(self, hidden_states: torch.Tensor, *_: Any, **__: Any) -> torch.Tensor:
        return hidden_states


def decoder_layers(model: Any) -> tuple[str, nn.ModuleList]:
    """The decoder layers of a causal language model and their place in it (`model.layers`).

    Raises:
        CapabilityError: there is no such list, or its layers have no attention and MLP that we
            know how to leave out.
    """
    decoder = model.get_decoder()
    layers = getattr(decoder, "layers", None)
    if not isinstance(layers, nn.ModuleList):
        raise CapabilityError(
            f"{type(decoder).__name__} has no list of layers; none can be skipped"
        )
    for layer in layers:
        sublayer_names(layer)
    place = next(name for name, module in model.named_modules() if module is layers)
    return place, layers


def sublayer_names(layer: nn.Module) -> tuple[str, str]:
    """What a decoder layer calls its attention and its MLP.

    Raises:
        CapabilityError: it has none that we know.
    """
    found = []
    for kind, names in (("attention", _ATTENTION_NAMES), ("MLP", _MLP_NAMES)):
        name = next((name for name in names if name in layer._modules), None)
        if name is None:
            raise CapabilityError(
                f"{type(layer).__name__} has no {kind} called {' or '.join(names)}; "
                "its sub-layers cannot be skipped"
            )
        found.append(name)
    return found[0], found[1]
