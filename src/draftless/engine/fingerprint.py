"""Which weights these are."""

from __future__ import annotations

import hashlib
from typing import Any

import torch

from draftless.engine.cpu.paging import page_out

_VALUES = 16  # of every parameter


def fingerprint(model: Any) -> str:
    """A hash of the weights' names, shapes and some values; the same in any floating dtype."""
    digest = hashlib.sha256()
    for name, weight in sorted(model.named_parameters()):
        values = weight.detach().flatten()
        values = values[:: max(1, len(values) // _VALUES)][:_VALUES]
        # Through bf16: a checkpoint loaded in a narrower or wider dtype is still itself.
        rounded = values.to(torch.bfloat16).float().cpu().numpy()
        digest.update(f"{name} {tuple(weight.shape)}".encode() + rounded.tobytes())
        page_out(weight.detach())  # the system maps 16 pages around each value that is read
    return digest.hexdigest()[:16]
