"""SDSAT with `transformers.Trainer`: adaptive blocks beside the text, which never sees them.

    python examples/trainer_sdsat.py MODEL DATA.jsonl OUTPUT

DATA has `prompt` and `response`, or chat `messages` (then use PromptFormat("chat")).
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from draftless.manifest import Manifest, write_manifest
from draftless.prompts import PromptFormat
from draftless.training.adaptive import AdaptiveSettings
from draftless.training.adaptive_tokens import add_adaptive_tokens, suppress_in_generation
from draftless.training.data import encode_records, read_records
from draftless.training.draft_collator import CollatorEpochs, DraftCollator


def main(model_path: str, data: str, output: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, attn_implementation="sdpa")
    ids = add_adaptive_tokens(model, 1, tokenizer)
    suppress_in_generation(model, ids)  # they are fed, never said
    prompt_format = PromptFormat()
    documents = encode_records(read_records(data), tokenizer, prompt_format, max_len=512)
    blocks = AdaptiveSettings(ids, block_length=5)
    collator = DraftCollator.from_tokenizer(tokenizer, None, adaptive=blocks)
    trainer = Trainer(
        model=model,
        args=TrainingArguments(output, num_train_epochs=1, per_device_train_batch_size=2),
        train_dataset=documents,
        data_collator=collator,
        callbacks=[CollatorEpochs(collator)],
    )
    trainer.train()
    trainer.save_model(output)
    tokenizer.save_pretrained(output)
    methods = {"sdsat": {"adaptive_ids": list(ids), "block_length": 5}}
    write_manifest(output, Manifest(methods, "sdsat", prompt_format))


if __name__ == "__main__":
    main(*sys.argv[1:])
