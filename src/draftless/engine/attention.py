"""Our attention: any mask, soft-cap, and queries packed on their KV head.

The stock masked path of a grouped-query model copies the whole cache (`repeat_kv`) in every layer
of every forward. Packing the `G` query heads of a KV head into the query axis instead reads the
cache once (measured in `benchmarks/results/attention-*.json`; DESIGN 8).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.masking_utils import sdpa_mask

ATTENTION_NAME = "draftless"

_stand_in: ContextVar[Callable[..., torch.Tensor] | None] = ContextVar("stand_in", default=None)


@contextmanager
def attention_replaced_by(emit: Callable[..., torch.Tensor]) -> Iterator[None]:
    """Inside, our attention calls `emit(module, query, key, value, mask, scaling, softcap)`.

    For tracing: what `emit` puts into the graph stands for the attention of one layer.
    """
    token = _stand_in.set(emit)
    try:
        yield
    finally:
        _stand_in.reset(token)


def packed_attention(  # noqa: PLR0913 - the signature is that of AttentionInterface
    module: torch.nn.Module,
    query: torch.Tensor,  # [R, Hq, W, D]
    key: torch.Tensor,  # [R, Hkv, C, D]
    value: torch.Tensor,  # [R, Hkv, C, D]
    attention_mask: torch.Tensor | None,  # [R, 1, W or G*W, C], additive float or bool
    scaling: float | None = None,
    dropout: float = 0.0,
    softcap: float | None = None,
    **_: Any,
) -> tuple[torch.Tensor, None]:
    """Attention with the signature of `transformers.AttentionInterface`.

    A mask of `G * W` rows is taken as packed already (query-head major, as `pack_mask` makes it).
    Without a mask the queries are the last `W` of `C` causal positions.

    Returns:
        `[R, W, Hq, D]`, and None for the attention weights.
    """
    if (emit := _stand_in.get()) is not None:
        return emit(module, query, key, value, attention_mask, scaling, softcap), None
    width, context = query.shape[2], key.shape[2]
    groups = query.shape[1] // key.shape[1]
    if attention_mask is None:
        attention_mask = torch.ones(width, context, dtype=torch.bool, device=query.device)
        attention_mask = attention_mask.tril(context - width)[None, None]
    if attention_mask.shape[2] != groups * width:
        attention_mask = pack_mask(attention_mask, groups)
    dropout = dropout if module.training else 0.0
    out = attend(query, key, value, attention_mask, scaling, softcap, dropout)
    return out.transpose(1, 2).contiguous(), None


def attend(
    query: torch.Tensor,  # [R, Hq, W, D]
    key: torch.Tensor,  # [R, Hkv, C, D]
    value: torch.Tensor,  # [R, Hkv, C, D]
    mask: torch.Tensor | None,  # [R or 1, 1, G*W, C]; None: everything is seen
    scaling: float | None,
    softcap: float | None,
    dropout: float = 0.0,
) -> torch.Tensor:  # [R, Hq, W, D]
    """Attention with the query heads of a KV head packed into the query axis."""
    num_rows, num_heads, width, head_dim = query.shape
    num_kv_heads = key.shape[1]
    groups = num_heads // num_kv_heads
    packed = query.reshape(num_rows, num_kv_heads, groups * width, head_dim)
    if softcap is None:
        out = F.scaled_dot_product_attention(
            packed, key, value, attn_mask=mask, dropout_p=dropout, scale=scaling
        )
    else:
        scale = head_dim**-0.5 if scaling is None else scaling
        scores = packed @ key.transpose(2, 3) * scale
        scores = torch.tanh(scores / softcap) * softcap
        if mask is not None and mask.dtype == torch.bool:
            # Not -inf: a padded query of `transformers`' own batches sees nothing and must stay finite.
            scores = scores.masked_fill(~mask, torch.finfo(scores.dtype).min)
        elif mask is not None:
            scores = scores + mask
        # In fp32 (or wider), as the stock eager path does.
        wide = torch.promote_types(scores.dtype, torch.float32)
        weights = torch.softmax(scores, dim=-1, dtype=wide).to(value.dtype)
        out = F.dropout(weights, p=dropout) @ value
    return out.reshape(num_rows, num_heads, width, head_dim)


def pack_mask(mask: torch.Tensor, groups: int) -> torch.Tensor:
    """Repeat a mask `[R, 1, W, C]` for the `groups` query heads that share a KV head."""
    return mask if groups == 1 else mask.repeat(1, 1, groups, 1)


def register_attention() -> None:
    """Add our attention to the names that `transformers` knows (idempotent; stock ones stay).

    Its ordinary 2-D masks are prepared as for sdpa, so a model that was switched to our attention
    keeps working in `transformers.generate` and in training.
    """
    AttentionInterface.register(ATTENTION_NAME, packed_attention)
    AttentionMaskInterface.register(ATTENTION_NAME, sdpa_mask)
