"""Weights that int8 holds exactly: each row whole multiples, -127 to 127, of a power of two.

Rounded so, a weight is the same number in int8 and in bfloat16. The rounded model is therefore an
ordinary one, the target of everything that runs on it, compiled or not; only what the compiled pass
keeps in memory differs.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

_LARGEST = 127


def round_to_int8(model: Any) -> None:
    """Round the weights of all linear layers but the language-model head, in place."""
    head = model.get_output_embeddings()
    for module in model.modules():
        if isinstance(module, nn.Linear) and module is not head:
            integers, scale = split_int8(module.weight.data)
            module.weight.data = (integers.float() * scale[:, None]).to(module.weight.dtype)


def split_int8(weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """`[out, in]` as int8 `[out, in]` and scales `[out]` float32; exact for a rounded weight."""
    largest = weight.abs().amax(1).float().clamp_min(torch.finfo(torch.float32).tiny)
    scale = torch.exp2(torch.ceil(torch.log2(largest / _LARGEST)))
    return (weight.float() / scale[:, None]).round().to(torch.int8), scale


def is_int8(weight: torch.Tensor) -> bool:
    """Whether int8 holds a weight exactly."""
    integers, scale = split_int8(weight)
    return torch.equal(integers.float() * scale[:, None], weight.float())
