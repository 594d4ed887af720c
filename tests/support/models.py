"""Tiny random models of every family that we support.

Weights are drawn wide (0.3): at the usual 0.02 the logits hardly depend on the positions, and a
shift of all of them would go unseen.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import torch
import transformers as hf
from transformers import PreTrainedConfig, PreTrainedModel

from draftless.engine.cpu.forward import NativeForward
from draftless.engine.target import Attention, TargetModel

VOCAB_SIZE = 61  # odd, so that nothing is aligned by chance
HIDDEN_SIZE = 32
CONTEXT = 512
WINDOW = 8

_COMMON = {
    "vocab_size": VOCAB_SIZE,
    "hidden_size": HIDDEN_SIZE,
    "intermediate_size": 48,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "max_position_embeddings": CONTEXT,
    "initializer_range": 0.3,
    "bos_token_id": None,
    "eos_token_id": None,
    "pad_token_id": None,
}
_GROUPED = {**_COMMON, "num_key_value_heads": 2}


@dataclass(frozen=True)
class Family:
    """How to build one family's tiny model, and what it allows."""

    config: Callable[[], PreTrainedConfig]
    has_window: bool = False
    attentions: tuple[Attention, ...] = ("draftless", "sdpa", "eager")


FAMILIES = {
    "llama": Family(lambda: hf.LlamaConfig(**_GROUPED)),
    "qwen2": Family(lambda: hf.Qwen2Config(**_GROUPED)),
    "qwen3": Family(lambda: hf.Qwen3Config(**_GROUPED, head_dim=8)),
    "mistral": Family(lambda: hf.MistralConfig(**_GROUPED, sliding_window=WINDOW), has_window=True),
    "gemma2": Family(
        lambda: hf.Gemma2Config(
            **_GROUPED,
            head_dim=8,
            tie_word_embeddings=False,  # tied, a random Gemma repeats its input
            sliding_window=WINDOW,
            attn_logit_softcapping=5.0,
            final_logit_softcapping=30.0,
        ),
        has_window=True,
        attentions=("draftless", "eager"),
    ),
    "gemma3": Family(
        lambda: hf.Gemma3TextConfig(
            **{**_GROUPED, "num_hidden_layers": 6},  # the sixth is the first global one
            head_dim=8,
            tie_word_embeddings=False,
            sliding_window=WINDOW,
        ),
        has_window=True,
    ),
    "gpt_neox": Family(lambda: hf.GPTNeoXConfig(**_COMMON, use_parallel_residual=True)),
    "phi3": Family(lambda: hf.Phi3Config(**_GROUPED)),
    "olmo2": Family(lambda: hf.Olmo2Config(**_GROUPED)),
}
NATIVE, INDUCTOR = "native", "inductor"
"""Stand for our attention in the native pass or in pieces of Inductor's, wherever an attention is asked for."""

FAMILIES_OF_INDUCTOR = ("llama", "gemma2")  # in the quick tests; `--full` compiles them all

WINDOWED = tuple(name for name, family in FAMILIES.items() if family.has_window)
DTYPES = {"fp64": torch.float64, "fp32": torch.float32, "bf16": torch.bfloat16}


@cache
def stock_model(family: str, dtype: str = "fp64") -> PreTrainedModel:
    """The model as `transformers` runs it, with its own eager attention."""
    return build_model(FAMILIES[family].config(), dtype)


def build_model(config: PreTrainedConfig, dtype: str = "fp64", seed: int = 0) -> PreTrainedModel:
    """A random model of this configuration; touches no global random state."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
        for name, parameter in model.named_parameters():
            if parameter.dim() == 1:  # norms and biases start as ones and zeros: nothing to see
                parameter.data += 0.1 * torch.randn_like(parameter)
            assert parameter.std() > 0.05, name
    return model.to(DTYPES[dtype]).eval()


@cache
def target(family: str, dtype: str = "fp64", attention: str = "draftless") -> TargetModel:
    """Our view of a copy of `stock_model`."""
    model = copy.deepcopy(stock_model(family, dtype))
    if attention == NATIVE:
        native = TargetModel(model, compile=True)
        assert isinstance(native._compiled, NativeForward)
        assert native.is_reproducible
        return native
    if attention == INDUCTOR:
        compiled = TargetModel(model, compile="inductor")
        assert compiled.is_compiled
        return compiled
    return TargetModel(model, attention)  # type: ignore[arg-type]


def prompt_ids(length: int, seed: int = 0) -> list[int]:
    """A prompt in which some runs of tokens come back, so that retrieval finds something."""
    generator = torch.Generator().manual_seed(1000 * seed + length)
    ids = torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist()
    for begin in range(12, length - 6, 9):
        ids[begin : begin + 6] = ids[begin - 12 : begin - 6]
    return ids
