"""SDSAT with TRL: one collator makes supervised fine-tuning teach adaptive tokens, too.

    python examples/trl_sft_sdsat.py MODEL DATA.jsonl OUTPUT [--packing]

DATA has `prompt` and `completion`, or chat `messages`: whatever `SFTTrainer` takes.
"""

import sys

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from draftless.manifest import Manifest, write_manifest
from draftless.training.adaptive import AdaptiveSettings
from draftless.training.adaptive_tokens import add_adaptive_tokens, suppress_in_generation
from draftless.training.draft_collator import CollatorEpochs, DraftCollator


def main(model_path: str, data: str, output: str, *flags: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, attn_implementation="sdpa")
    ids = add_adaptive_tokens(model, 1, tokenizer)
    suppress_in_generation(model, ids)  # they are fed, never said
    trainer = SFTTrainer(
        model=model,
        args=SFTConfig(
            output_dir=output,
            packing="--packing" in flags,
            max_length=512,
            num_train_epochs=1,
            per_device_train_batch_size=2,
            bf16=torch.cuda.is_available(),
            report_to=[],
        ),
        train_dataset=load_dataset("json", data_files=data, split="train"),
        processing_class=tokenizer,
    )
    # After construction, because TRL refuses a collator of one's own together with packing.
    blocks = AdaptiveSettings(ids, block_length=5)
    collator = DraftCollator.from_tokenizer(
        tokenizer, None, inner=trainer.data_collator, adaptive=blocks
    )
    trainer.data_collator = collator
    trainer.add_callback(CollatorEpochs(collator))
    trainer.train()
    trainer.save_model(output)
    methods = {"sdsat": {"adaptive_ids": list(ids), "block_length": 5}}
    write_manifest(output, Manifest(methods=methods, default_drafter="sdsat"))


if __name__ == "__main__":
    main(*sys.argv[1:])
