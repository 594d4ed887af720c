"""Layer dropout: whole sub-layers left out of a training step, more often the deeper they lie.

Paper: LayerSkip (arXiv 2404.16710), section 3.1, with a linear instead of an exponential growth in
depth, and with attention and MLP dropped independently, because the skip sets of Self-Speculative
Decoding (arXiv 2309.08168) name sub-layers. The computation is really skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch import nn

from draftless.errors import CapabilityError, ConfigError
from draftless.noise import hash_ids


class _NoAttention(nn.Module):
    """Stands in for an attention that adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor, **_: Any) -> tuple[torch.Tensor, None]:
        return torch.zeros_like(hidden_states), None


class _NoMLP(nn.Module):
    """Stands in for an MLP that adds nothing to the residual stream."""

    def forward(self, hidden_states: torch.Tensor) -> torch.Tensor:
        return torch.zeros_like(hidden_states)


class LayerDropout:
    """Chooses and skips sub-layers of a stock decoder.

    The choice is a pure function of (seed, step), so all ranks of a data-parallel run agree and a
    resumed run repeats it. The first layer is never dropped.

    Args:
        layers: the decoder layers; each has `self_attn` and `mlp` with a residual around each.
        maximum: drop probability of the last layer's sub-layers, in [0, 1).
        seed: of the choices.
    """

    def __init__(self, layers: nn.ModuleList, maximum: float, seed: int = 0) -> None:
        if not 0.0 <= maximum < 1.0:
            raise ConfigError(f"layer dropout is {maximum}; it must lie in [0, 1)")
        for layer in layers:
            if not hasattr(layer, "self_attn") or not hasattr(layer, "mlp"):
                raise CapabilityError(
                    f"layer dropout needs layers with self_attn and mlp, not {type(layer).__name__}"
                )
        self._layers = layers
        depth = max(len(layers) - 1, 1)
        # [layers, 2] probabilities: attention and MLP of a layer share theirs
        self._probabilities = np.repeat(
            np.arange(len(layers))[:, None] * maximum / depth, 2, axis=1
        )
        self._seed = seed
        self._no_attention, self._no_mlp = _NoAttention(), _NoMLP()

    def choose(self, step: int) -> np.ndarray:
        """`[layers, 2]` bool: which attentions and MLPs step number `step` leaves out."""
        generator = np.random.default_rng(hash_ids(self._seed, step))
        chosen: np.ndarray = generator.random(self._probabilities.shape) < self._probabilities
        return chosen

    @contextmanager
    def skipped(self, step: int) -> Iterator[None]:
        """Leave out the sub-layers of `step` until the block ends, also after an error."""
        saved = [(layer._modules["self_attn"], layer._modules["mlp"]) for layer in self._layers]
        try:
            for layer, (attention, mlp) in zip(self._layers, self.choose(step), strict=True):
                # nn.Module.__setattr__ would keep registering modules; a dict entry is enough.
                if attention:
                    layer._modules["self_attn"] = self._no_attention
                if mlp:
                    layer._modules["mlp"] = self._no_mlp
            yield
        finally:
            for layer, (self_attn, mlp_module) in zip(self._layers, saved, strict=True):
                layer._modules["self_attn"] = self_attn
                layer._modules["mlp"] = mlp_module
