"""The collator inside TRL's `SFTTrainer`, padded and packed: noise and blocks in, labels untouched."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from trl import SFTConfig, SFTTrainer

from draftless.training.adaptive import AdaptiveSettings
from draftless.training.draft_collator import CollatorEpochs, DraftCollator
from draftless.training.noise_runs import NoiseMode, NoiseSettings
from support.small_model import PHRASES, training_model, training_tokenizer

pytestmark = pytest.mark.slow


def records() -> Dataset:
    rows = [
        {"prompt": f"{PHRASES[i % 5]} {i}\n", "completion": " ".join(PHRASES[: 3 + i % 4])}
        for i in range(12)
    ]
    return Dataset.from_list(rows)


def trainer_with_noise(
    folder: Path, mode: NoiseMode, is_packed: bool, adaptive: AdaptiveSettings | None = None
) -> tuple[SFTTrainer, DraftCollator]:
    tokenizer = training_tokenizer()
    trainer = SFTTrainer(
        model=training_model(),
        args=SFTConfig(
            output_dir=str(folder),
            packing=is_packed,
            max_length=64,
            max_steps=2,
            per_device_train_batch_size=2,
            report_to=[],
            save_strategy="no",
            logging_steps=1,
            use_cpu=True,
            bf16=False,
            disable_tqdm=True,
        ),
        train_dataset=records(),
        processing_class=tokenizer,
    )
    settings = NoiseSettings(mode=mode, length=3)
    collator = DraftCollator.from_tokenizer(
        tokenizer, settings, inner=trainer.data_collator, adaptive=adaptive
    )
    trainer.data_collator = collator
    trainer.add_callback(CollatorEpochs(collator))
    return trainer, collator


@pytest.mark.parametrize("is_packed", [False, True], ids=["padded", "packed"])
@pytest.mark.parametrize("mode", ["inline", "branch"])
def test_sft_trainer_trains_on_noise(tmp_path: Path, mode: NoiseMode, is_packed: bool) -> None:
    trainer, collator = trainer_with_noise(tmp_path, mode, is_packed)
    num_noised = 0
    for batch in trainer.get_train_dataloader():
        num_noised += check_batch(batch, collator, mode, is_packed)
    assert num_noised >= 12
    log = trainer.train()
    assert 0 < log.training_loss < 10


@pytest.mark.parametrize(
    "is_packed", [pytest.param(False, marks=pytest.mark.full), True], ids=["padded", "packed"]
)
def test_sft_trainer_trains_on_noise_and_adaptive_blocks(tmp_path: Path, is_packed: bool) -> None:
    adaptive = AdaptiveSettings((299,), block_length=3)
    trainer, collator = trainer_with_noise(tmp_path, "branch", is_packed, adaptive)
    num_adaptive = 0
    for batch in trainer.get_train_dataloader():
        is_slot = batch["input_ids"] == 299
        num_adaptive += int(is_slot.sum())
        assert (batch["shift_labels"][is_slot] >= 0).all(), "every slot has something to learn"
        assert check_batch(batch, collator, "branch", is_packed) > 0
    assert num_adaptive >= 24
    row = trainer.model.get_input_embeddings().weight[299]
    before = row.detach().clone()
    assert 0 < trainer.train().training_loss < 10
    assert (row - before).abs().max() > 0


def check_batch(
    batch: dict[str, Any], collator: DraftCollator, mode: NoiseMode, is_packed: bool
) -> int:
    """Check one batch; returns how many noise tokens (inline) or blocks (branch) it has."""
    ids, labels = batch["input_ids"], batch["labels"]
    if mode == "branch":
        assert batch["attention_mask"].shape == (len(ids), 1, ids.shape[1], ids.shape[1])
        positions = batch["position_ids"]
        # A block begins where the position jumps back, but not to a document's first place.
        is_jump = (positions[:, 1:] != positions[:, :-1] + 1) & (positions[:, 1:] > 0)
        return int(is_jump.sum())
    assert ("position_ids" in batch) == is_packed
    changed = (ids != labels) & (labels >= 0)
    special = torch.tensor(sorted(collator.noise.special_ids))
    assert not torch.isin(ids[changed], special).any()
    assert not torch.isin(labels[changed], special).any()
    return int(changed.sum())
