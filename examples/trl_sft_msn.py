"""MSN with TRL: one collator makes supervised fine-tuning teach drafting, too.

    python examples/trl_sft_msn.py MODEL DATA.jsonl OUTPUT [--packing]

DATA has `prompt` and `completion`, or chat `messages`: whatever `SFTTrainer` takes.
"""

import sys

import torch
from datasets import load_dataset
from transformers import AutoModelForCausalLM, AutoTokenizer
from trl import SFTConfig, SFTTrainer

from draftless.manifest import Manifest, write_manifest
from draftless.training.draft_collator import CollatorEpochs, DraftCollator
from draftless.training.noise_runs import NoiseSettings


def main(model_path: str, data: str, output: str, *flags: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, attn_implementation="sdpa")
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
    collator = DraftCollator.from_tokenizer(
        tokenizer, NoiseSettings(mode="inline", length=5), inner=trainer.data_collator
    )
    trainer.data_collator = collator
    trainer.add_callback(CollatorEpochs(collator))
    trainer.train()
    trainer.save_model(output)
    methods = {"tr-jacobi": {"noise_length": 5, "noise_source": "prefix"}}
    write_manifest(output, Manifest(methods=methods, default_drafter="tr-jacobi"))


if __name__ == "__main__":
    main(*sys.argv[1:])
