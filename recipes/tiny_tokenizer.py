"""Train the byte-level BPE of the embedded model: 8192 ids, a few named specials, some reserved."""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path

from tiny_data import DOMAINS, read_domain
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

VOCAB_SIZE = 8192
NUM_RESERVED = 16  # room for adaptive tokens (SDSAT) without resizing the embedding
CHARS_PER_DOMAIN = 4_000_000
BOS, EOS, PAD = "<|bos|>", "<|eos|>", "<|pad|>"


def corpus(data: Path) -> Iterator[str]:
    """About as many characters of every domain, so that none rules the vocabulary."""
    for domain in DOMAINS:
        texts = [f"{r['prompt']}\n{r['response']}" for r in read_domain(data, domain, "train")]
        budget = CHARS_PER_DOMAIN
        while budget > 0:
            for text in texts:
                if budget <= 0:
                    break
                budget -= len(text)
                yield text


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    args = parser.parse_args()

    tokenizer = Tokenizer(models.BPE())
    # Single digits keep arithmetic regular.
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    tokenizer.decoder = decoders.ByteLevel()
    reserved = [f"<|reserved_{i}|>" for i in range(NUM_RESERVED)]
    trainer = trainers.BpeTrainer(
        vocab_size=VOCAB_SIZE,
        special_tokens=[BOS, EOS, PAD, *reserved],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
    )
    tokenizer.train_from_iterator(corpus(args.data), trainer)
    fast = PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token=BOS,
        eos_token=EOS,
        pad_token=PAD,
        additional_special_tokens=reserved,
        clean_up_tokenization_spaces=False,
        model_max_length=2048,
    )
    fast.save_pretrained(args.output)


if __name__ == "__main__":
    main()
