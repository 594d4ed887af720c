"""Losses per target: of clean tokens, of blocks, and against the original model."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from draftless.prompts import IGNORED_LABEL

_NEVER = -1e4
"""A logit whose probability is 0; -inf would give 0 * inf = NaN in a soft target's cross-entropy."""


def without_ids(
    logits: torch.Tensor,  # [..., V] float
    input_only_ids: Sequence[int],
) -> torch.Tensor:
    """The logits of a model that never says `input_only_ids`, which is how it decodes."""
    if not input_only_ids:
        return logits
    index = torch.tensor(list(input_only_ids), device=logits.device)
    return logits.index_fill(-1, index, _NEVER)


def own_losses(
    logits: torch.Tensor,  # [B, N, V] fp32
    targets: torch.Tensor,  # [B, N] int64
    twins: torch.Tensor,  # [B, N] int64, of `branches.clean_twins`
) -> tuple[torch.Tensor, torch.Tensor]:  # [M] int64 places in the flattened batch, [M] fp32
    """Cross-entropy of blocks against what the model itself says at their clean twins.

    A draft has to hit the model's own next token, and a whole distribution teaches more than one
    token that was drawn from the data. No gradient flows into the clean side.
    """
    rows, places = ((twins >= 0) & (targets != IGNORED_LABEL)).nonzero(as_tuple=True)
    teacher = logits.detach()[rows, twins[rows, places]].softmax(-1)
    losses = F.cross_entropy(logits[rows, places], teacher, reduction="none")
    return rows * logits.shape[1] + places, losses


def divergences(
    logits: torch.Tensor,  # [M, V] fp32
    original: torch.Tensor,  # [M, V] fp32, without gradient
) -> torch.Tensor:  # [M] fp32
    """KL(original || trained) at each target, in nats."""
    reference = original.log_softmax(-1)
    return F.kl_div(logits.log_softmax(-1), reference, reduction="none", log_target=True).sum(-1)
