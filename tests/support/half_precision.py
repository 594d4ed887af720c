"""A tiny model in bfloat16, large enough for the operators that Inductor's pieces call."""

from __future__ import annotations

from functools import cache

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig

from draftless.engine import native
from draftless.engine.load import Compile
from draftless.engine.target import TargetModel
from draftless.errors import CapabilityError

STRICT_WAYS = ("native", "as the machine can", "one by one")
"""The native pass; Inductor's pieces on our operators, where the machine has them; and with torch's attention."""

NUM_TOKENS, HIDDEN = 64, 128


def half_precision_model(num_layers: int = 2, compile: Compile = "inductor") -> TargetModel:
    config = LlamaConfig(
        vocab_size=NUM_TOKENS, hidden_size=HIDDEN, intermediate_size=256, num_hidden_layers=num_layers,
        num_attention_heads=4, num_key_value_heads=2, initializer_range=0.1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(config)
    return TargetModel(model.to(torch.bfloat16), compile=compile)


@cache
def strict_target(way: str) -> TargetModel:
    """Skips the test where the machine cannot have it."""
    how: Compile = True if way == "native" else "inductor"
    model = half_precision_model(3, compile=False)
    with pytest.MonkeyPatch.context() as patch:
        if way == "one by one":
            use_torchs_attention(patch)
        try:
            return TargetModel(model.model, compile=how, strict=True)
        except CapabilityError as error:
            pytest.skip(str(error))


def use_torchs_attention(patch: pytest.MonkeyPatch) -> None:
    """In what is compiled from now on."""
    patch.delitem(native._LOADED, "attention", raising=False)
