"""A tiny model and tokenizer for tests that train in memory."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from support.tokenizer import small_tokenizer

PHRASES = ["the cat sat", "on the mat", "and the dog", "print(a[0])", "äöü", "the log", "x"]


def training_tokenizer() -> PreTrainedTokenizerFast:
    """The small tokenizer of the other tests; EOS pads."""
    tokenizer = copy.deepcopy(small_tokenizer())
    tokenizer.pad_token = tokenizer.eos_token
    return tokenizer


def training_model(seed: int = 0) -> LlamaForCausalLM:
    """A Llama of 2 layers in fp32."""
    config = LlamaConfig(
        vocab_size=300, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=512,
        bos_token_id=0, eos_token_id=1,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return LlamaForCausalLM(config)


def save_training_model(folder: Path) -> Path:
    """Model and tokenizer as a checkpoint folder."""
    training_model().save_pretrained(folder)
    training_tokenizer().save_pretrained(folder)
    return folder
