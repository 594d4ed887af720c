"""The embedded model's shape, and what makes it train fast on a CPU with AMX bf16."""

from __future__ import annotations

from typing import Any

import torch
from tiny_tokenizer import VOCAB_SIZE
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.masking_utils import AttentionMaskInterface

FAST_ATTENTION = "tiny_bmm"


@torch.compiler.disable  # inductor's softmax is slower here than the eager bf16 kernel
def bmm_attention(
    module: torch.nn.Module,  # noqa: ARG001 - the interface of transformers
    query: torch.Tensor,  # [B, heads, T, D]
    key: torch.Tensor,  # [B, kv_heads, T, D]
    value: torch.Tensor,  # [B, kv_heads, T, D]
    attention_mask: torch.Tensor | None,  # [B, 1, T, T] float, added; or None for causal
    scaling: float,
    **_: Any,
) -> tuple[torch.Tensor, None]:  # [B, T, heads, D]
    """Two batched products around one softmax, queries packed on their KV head.

    On a CPU the backward pass of the fused sdpa kernel costs 2 to 4 times all of this for short
    rows (29 ms against 9 to 15 ms a layer at 2,048 tokens).
    """
    batch, heads, length, dim = query.shape
    groups = key.shape[1]
    packed = (query * scaling).reshape(batch, groups, heads // groups * length, dim)
    scores = torch.matmul(packed, key.transpose(-1, -2)).view(batch, groups, -1, length, length)
    if attention_mask is None:
        scores += torch.full((length, length), float("-inf"), dtype=scores.dtype).triu(1)
    else:
        scores += attention_mask[:, :, None]
    weights = torch.softmax(scores, dim=-1)
    output = torch.matmul(weights.view(batch, groups, -1, length), value)
    return output.view(batch, heads, length, dim).transpose(1, 2).contiguous(), None


AttentionInterface.register(FAST_ATTENTION, bmm_attention)
# Masks reach the attention as the batch gives them: None (causal) or a 4-D float tensor.
AttentionMaskInterface.register(
    FAST_ATTENTION, lambda *_, attention_mask=None, **__: attention_mask
)


HEAD_DIM = 64


def new_model(seed: int, num_layers: int = 12, hidden_size: int = 384) -> LlamaForCausalLM:
    """A Llama, fp32, freshly initialised; by default the embedded model's 15.8M parameters."""
    torch.manual_seed(seed)
    num_heads = hidden_size // HEAD_DIM
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=hidden_size,
        intermediate_size=hidden_size * 3 // 2,
        num_hidden_layers=num_layers,
        num_attention_heads=num_heads,
        num_key_value_heads=num_heads // 3 or 1,
        max_position_embeddings=2048,
        tie_word_embeddings=True,
        bos_token_id=0,
        eos_token_id=1,
        pad_token_id=2,
    )
    return LlamaForCausalLM(config)


def compile_for_training(model: LlamaForCausalLM) -> None:
    """Compile sub-layers one by one: layer dropout swaps them, and all layers share the code."""
    model.set_attn_implementation(FAST_ATTENTION)
    torch._dynamo.config.cache_size_limit = 64
    for layer in model.model.layers:
        for block in (
            layer.self_attn,
            layer.mlp,
            layer.input_layernorm,
            layer.post_attention_layernorm,
        ):
            block.compile(dynamic=False)
    model.model.norm.compile(dynamic=False)


def _token_losses(
    hidden: torch.Tensor,  # [N, hidden] bf16
    head: torch.Tensor,  # [V, hidden] bf16
    labels: torch.Tensor,  # [N] int64
) -> torch.Tensor:  # [N] fp32, zero where the label is -100
    logits = (hidden @ head.t()).float()
    return torch.nn.functional.cross_entropy(logits, labels, reduction="none")


def _label_losses(
    logits: torch.Tensor,  # [N, V] bf16
    labels: torch.Tensor,  # [N] int64
) -> torch.Tensor:  # [N] fp32, zero where the label is -100
    return torch.nn.functional.cross_entropy(logits.float(), labels, reduction="none")


def _distribution_losses(
    logits: torch.Tensor,  # [N, V] bf16
    teacher: torch.Tensor,  # [N, V] bf16 logits, without gradient
) -> torch.Tensor:  # [N] fp32: cross-entropy against the teacher's distribution
    probs = teacher.float().softmax(-1)
    return -(probs * logits.float().log_softmax(-1)).sum(-1)


token_losses = torch.compile(_token_losses, dynamic=False)
label_losses = torch.compile(_label_losses, dynamic=False)
distribution_losses = torch.compile(_distribution_losses, dynamic=False)
