"""What caching a prompt gives."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True, slots=True)
class Prefill:
    """What caching a prompt (all but its last token) gave.

    Attributes:
        num_passes: forward passes.
        vector: `[hidden]` float32, the mean of the final-norm hidden states; None if nothing was
            cached.
    """

    num_passes: int
    vector: torch.Tensor | None
