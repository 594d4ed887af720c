"""Layer dropout: whole sub-layers left out of a training step, more often the deeper they lie.

Paper: LayerSkip (arXiv 2404.16710), section 3.1, with a linear instead of an exponential growth in
depth, and with attention and MLP dropped independently, because the skip sets of Self-Speculative
Decoding (arXiv 2309.08168) name sub-layers. The computation is really skipped.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import numpy as np
from torch import nn

from draftless.errors import ConfigError
from draftless.noise import hash_ids
from draftless.sublayers import NoAttention, NoMLP, sublayer_names


class LayerDropout:
    """Chooses and skips sub-layers of a stock decoder.

    The choice is a pure function of (seed, step), so all ranks of a data-parallel run agree and a
    resumed run repeats it. The first layer is never dropped.

    Args:
        layers: the decoder layers (`sublayers.decoder_layers`).
        maximum: drop probability of the last layer's sub-layers, in [0, 1).
        seed: of the choices.
    """

    def __init__(self, layers: nn.ModuleList, maximum: float, seed: int = 0) -> None:
        if not 0.0 <= maximum < 1.0:
            raise ConfigError(f"layer dropout is {maximum}; it must lie in [0, 1)")
        self._layers = layers
        self._names = [sublayer_names(layer) for layer in layers]
        depth = max(len(layers) - 1, 1)
        # [layers, 2] probabilities: attention and MLP of a layer share theirs
        self._probabilities = np.repeat(
            np.arange(len(layers))[:, None] * maximum / depth, 2, axis=1
        )
        self._seed = seed
        self._instead = NoAttention(), NoMLP()

    def choose(self, step: int) -> np.ndarray:
        """`[layers, 2]` bool: which attentions and MLPs step number `step` leaves out."""
        generator = np.random.default_rng(hash_ids(self._seed, step))
        chosen: np.ndarray = generator.random(self._probabilities.shape) < self._probabilities
        return chosen

    @contextmanager
    def skipped(self, step: int) -> Iterator[None]:
        """Leave out the sub-layers of `step` until the block ends, also after an error."""
        saved = [dict(layer._modules) for layer in self._layers]
        try:
            for layer, names, chosen in zip(
                self._layers, self._names, self.choose(step), strict=True
            ):
                for name, instead, is_dropped in zip(names, self._instead, chosen, strict=True):
                    if is_dropped:
                        # nn.Module.__setattr__ would keep registering modules; an entry is enough.
                        layer._modules[name] = instead
            yield
        finally:
            for layer, modules in zip(self._layers, saved, strict=True):
                layer._modules.update(modules)
