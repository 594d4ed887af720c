"""MSN with `transformers.Trainer`: noise blocks beside the clean text, which never sees them.

    python examples/trainer_msn.py MODEL DATA.jsonl OUTPUT

DATA has `prompt` and `response`, or chat `messages` (then use PromptFormat("chat")).
"""

import sys

from transformers import AutoModelForCausalLM, AutoTokenizer, Trainer, TrainingArguments

from draftless.manifest import Manifest, write_manifest
from draftless.prompts import PromptFormat
from draftless.training.data import encode_records, read_records
from draftless.training.draft_collator import CollatorEpochs, DraftCollator
from draftless.training.noise_runs import NoiseSettings


def main(model_path: str, data: str, output: str) -> None:
    tokenizer = AutoTokenizer.from_pretrained(model_path)
    model = AutoModelForCausalLM.from_pretrained(model_path, attn_implementation="sdpa")
    prompt_format = PromptFormat()
    documents = encode_records(read_records(data), tokenizer, prompt_format, max_len=512)
    collator = DraftCollator.from_tokenizer(tokenizer, NoiseSettings(mode="branch", length=5))
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
    methods = {"tr-jacobi": {"noise_length": 5, "noise_source": "prefix"}}
    write_manifest(output, Manifest(methods, "tr-jacobi", prompt_format))


if __name__ == "__main__":
    main(*sys.argv[1:])
