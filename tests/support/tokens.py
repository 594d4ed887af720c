"""Tiny tokenizers, built in memory."""

from __future__ import annotations

from functools import cache

from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

_MERGES = [("h", "e"), ("l", "l"), ("he", "ll"), ("t", "o"), ("Ġ", "to"), ("a", "b"), ("b", "c")]


@cache
def byte_tokenizer() -> PreTrainedTokenizerFast:
    """256 bytes, some merges, and the special tokens `<eos>` and `<turn>`."""
    symbols = sorted(pre_tokenizers.ByteLevel.alphabet())
    symbols += ["".join(pair) for pair in _MERGES]
    vocab = {symbol: index for index, symbol in enumerate(symbols)}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=_MERGES))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<eos>",
        additional_special_tokens=["<turn>"],
        clean_up_tokenization_spaces=False,
    )


@cache
def fallback_tokenizer() -> PreTrainedTokenizerFast:
    """Tokens that are single bytes, as `llama` falls back to: C3 A9 (an e with an accent), FF, and `a`."""
    vocab = {"<0xC3>": 0, "<0xA9>": 1, "<0xFF>": 2, "a": 3}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[], byte_fallback=True))
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Fuse()])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def byte_ids(text: str) -> list[int]:
    """One id per UTF-8 byte, without merges."""
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    symbols = "".join(piece for piece, _ in byte_level.pre_tokenize_str(text))
    vocab = byte_tokenizer().get_vocab()
    return [vocab[symbol] for symbol in symbols]
