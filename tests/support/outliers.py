"""Outlier activations in a tiny model, as pretrained models have them.

A few channels of a pretrained model's residual stream are a thousand times larger than the others.
What sub-layers add there is rounded to the large value's precision, and whoever reads the channels
takes the difference of large numbers. In bfloat16 the logits of such a model depend visibly on the
order of summation, although every order is right; in float32 they do not.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel

FACTOR = 1000.0
PAIR = (3, 17)
_READERS = ("q_proj", "k_proj", "v_proj", "qkv_proj", "gate_proj", "up_proj", "gate_up_proj")


@torch.no_grad()
def plant_outliers(
    model: PreTrainedModel, factor: float = FACTOR, pair: tuple[int, int] = PAIR
) -> PreTrainedModel:
    """Make two channels of the residual stream `factor` times larger, in place; returns `model`.

    The embedding writes the same large value into both channels, and all that read the stream take
    their difference: what is left is what the sub-layers have added, as far as the dtype holds it.
    Norms that read the stream are scaled so that the other channels keep their size. A tied head is
    untied. For decoders whose layers read the stream through an RMSNorm (Llama, Qwen, Mistral,
    Phi-3, Gemma 2 and 3).
    """
    first, second = pair
    head, embedding = model.get_output_embeddings(), model.get_input_embeddings()
    if head.weight is embedding.weight:
        head.weight = nn.Parameter(embedding.weight.clone())
        model.config.tie_word_embeddings = False
    before = embedding.weight.square().mean().sqrt()
    embedding.weight[:, first] *= factor
    embedding.weight[:, second] = embedding.weight[:, first]
    growth = embedding.weight.square().mean().sqrt() / before
    readers = [m for name, m in model.named_modules() if name.endswith(_READERS)]
    for reader in (*readers, head):
        reader.weight[:, second] = -reader.weight[:, first]
    norms = _norms_of_stream(model)
    assert readers and len(norms) == 2 * model.config.num_hidden_layers + 1
    for norm in norms:
        offset = 1.0 if "Gemma" in type(norm).__name__ else 0.0  # Gemma's weights are off by one
        scaled = (norm.weight + offset) * growth
        scaled[second] = scaled[first]
        norm.weight.copy_(scaled - offset)
    return model


def _norms_of_stream(model: PreTrainedModel) -> list[nn.Module]:
    norms = [model.base_model.norm]
    for layer in model.base_model.layers:
        has_four = hasattr(layer, "pre_feedforward_layernorm")
        second = "pre_feedforward_layernorm" if has_four else "post_attention_layernorm"
        norms += [layer.input_layernorm, getattr(layer, second)]
    return norms
