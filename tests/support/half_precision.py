"""A tiny model in bfloat16, large enough for our own operators, compiled and strict."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from draftless.engine import native
from draftless.engine.target import TargetModel
from draftless.errors import CapabilityError

STRICT_WAYS = ("as the machine can", "one by one")
"""On our own operators where the machine has them, or as where there are none."""

NUM_TOKENS, HIDDEN = 64, 128


def half_precision_model(num_layers: int = 2) -> TargetModel:
    config = LlamaConfig(
        vocab_size=NUM_TOKENS, hidden_size=HIDDEN, intermediate_size=256, num_hidden_layers=num_layers,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    return TargetModel(model.to(torch.bfloat16), compile=True)


@cache
def strict_target(way: str) -> TargetModel:
    """Skips the test where the machine cannot have it."""
    model = half_precision_model(3)
    with pytest.MonkeyPatch.context() as patch:
        if way == "one by one":
            use_torchs_attention(patch)
        try:
            return TargetModel(model.model, compile=True, strict=True)
        except CapabilityError as error:
            pytest.skip(str(error))


def use_torchs_attention(patch: pytest.MonkeyPatch) -> None:
    """In what is compiled from now on."""
    patch.delitem(native._LOADED, "attention", raising=False)
