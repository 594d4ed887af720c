"""Models of random weights whose text is known: costs are real, and what comes next is certain.

A random model's largest logits lie close together, so that another width of the forward pass often
turns them round in half precision, and a replayed text would not be followed. Here the output row of
each token's successor is that token's embedding: the weights are as many and the work is the same,
but one token stands out by `MARGIN` everywhere.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedModel

MARGIN = 20.0  # logits by which the successor leads
_NUM_TRIED = 64  # tokens on which the margin is measured


@dataclass(frozen=True)
class Size:
    """Shape of a Llama: 3 or 4 query heads share a head of keys and values."""

    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    vocab_size: int


SIZES = {
    "toy": Size(2, 48, 96, 6, 2, 300),
    "16M": Size(12, 384, 576, 6, 2, 8192),  # the embedded model's
    "88M": Size(12, 768, 2048, 12, 4, 8192),  # of the table in DESIGN 8
    "270M": Size(26, 960, 2560, 15, 5, 8192),
    "1B": Size(16, 2048, 8192, 32, 8, 128_256),
    "7B": Size(32, 4096, 14_336, 32, 8, 32_768),
}


def build_model(size: Size, device: str, dtype: torch.dtype, seed: int = 0) -> PreTrainedModel:
    """A model of this size on `device`, made there.

    Raises:
        RuntimeError: the successors do not lead.
    """
    config = LlamaConfig(
        vocab_size=size.vocab_size,
        hidden_size=size.hidden,
        intermediate_size=size.intermediate,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.kv_heads,
        max_position_embeddings=4096,
        tie_word_embeddings=False,
        bos_token_id=None,
        eos_token_id=None,
    )
    torch.manual_seed(seed)
    with torch.device(device):
        model: PreTrainedModel = AutoModelForCausalLM.from_config(config, dtype=dtype).eval()
    _plant_successors(model)
    return model


@torch.inference_mode()
def _plant_successors(model: PreTrainedModel) -> None:
    """Make the token after `t` certain."""
    embedding = model.get_input_embeddings().weight
    head = model.get_output_embeddings().weight
    embedding.normal_()
    successors = torch.randperm(len(embedding), device=embedding.device)
    head[successors] = embedding
    tried = torch.randint(len(embedding), (1, _NUM_TRIED), device=embedding.device)
    head *= MARGIN / _least_margin(model, tried)
    if not bool((model(tried).logits[0].argmax(-1) == successors[tried[0]]).all()):
        raise RuntimeError("the successors of a random model do not lead; take another seed")


def _least_margin(model: PreTrainedModel, token_ids: torch.Tensor) -> float:
    best = model(token_ids).logits[0].float().topk(2).values
    return max(float((best[:, 0] - best[:, 1]).min()), 1e-3)
