"""What every target costs: clean, noise and adaptive, by label or by the model's own word; KL."""

from __future__ import annotations

import copy
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from peft import LoraConfig, get_peft_model
from transformers import TrainingArguments

import draftless.training.trainer as training
from draftless.training.adaptive import AdaptivePlanner, AdaptiveSettings
from draftless.training.config import TrainConfig
from draftless.training.draft_collator import DraftCollator
from draftless.training.draft_trainer import DraftTrainer, LossSettings
from draftless.training.losses import own_losses
from draftless.training.noise_runs import NoisePlanner, NoiseSettings
from draftless.training.packing import PaddingCollator
from support.small_model import training_model
from support.training import write_model, write_records


def test_own_losses_compare_with_the_clean_twin_and_teach_the_noise_alone() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 6, 5, requires_grad=True)
    targets = torch.tensor([[1, 2, 3, -100, 2, -100], [4, -100, 1, -100, -100, -100]])
    # Row 0: the noise tokens at 4 and 5 stand for places 1 and 2, the second without a target.
    twins = torch.tensor([[-1, -1, -1, -1, 1, 2], [-1] * 6])
    places, losses = own_losses(logits, targets, twins)
    assert places.tolist() == [4]
    teacher = logits.detach()[0, 1].softmax(-1)
    expected = -(teacher * logits[0, 4].log_softmax(-1)).sum()
    torch.testing.assert_close(losses, expected[None])
    losses.sum().backward()
    assert logits.grad is not None
    touched = logits.grad.abs().sum(-1).nonzero().tolist()
    assert touched == [[0, 4]], "no gradient flows into the clean side"


ADAPTIVE_IDS = (298, 299)  # the last ones, so that dropping their columns shifts no id


def make_batch() -> dict[str, torch.Tensor]:
    """Three documents, one a row, with noise and adaptive blocks."""
    generator = torch.Generator().manual_seed(1)
    features = []
    for length in (20, 14, 17):
        ids = torch.randint(3, 290, (length,), generator=generator).tolist()
        features.append({"input_ids": ids, "labels": [-100] * 4 + ids[4:]})
    collator = DraftCollator(
        PaddingCollator(2),
        NoisePlanner(NoiseSettings(mode="branch", length=2, spacing=4)),
        2,
        AdaptivePlanner(AdaptiveSettings(ADAPTIVE_IDS, block_length=2, spacing=5)),
        adds_places=True,
    )
    return collator(features)


def make_trainer(
    folder: Path, model: Any, settings: LossSettings, original: Any = None, **options: Any
) -> DraftTrainer:
    arguments = TrainingArguments(str(folder), use_cpu=True, report_to="none", **options)
    trainer = DraftTrainer(model=model, args=arguments, settings=settings, original=original)
    trainer.state.max_steps = 10
    return trainer


def loss_of(trainer: DraftTrainer, num_items: int | None = None) -> torch.Tensor:
    batch = make_batch()
    count = int((batch["shift_labels"] >= 0).sum()) if num_items is None else num_items
    return trainer.compute_loss(trainer.model, batch, num_items_in_batch=torch.tensor(count))


def log_probabilities(model: Any, batch: dict[str, torch.Tensor]) -> torch.Tensor:  # [B, N, V - 2]
    names = ("input_ids", "position_ids", "attention_mask")
    logits = model(**{name: batch[name] for name in names}).logits
    return logits[..., : ADAPTIVE_IDS[0]].log_softmax(-1)


def expected_loss(
    settings: LossSettings, model: Any, original: Any = None, clean_weight: float = 1.0
) -> torch.Tensor:
    """Target by target, as the documentation says it."""
    batch = make_batch()
    ours = log_probabilities(model, batch)
    theirs = log_probabilities(original, batch) if settings.kl_weight else None
    kinds = {"clean": 0, "noise": 0, "adaptive": 0}
    total = torch.zeros(())
    for row, place in (batch["shift_labels"] >= 0).nonzero().tolist():
        target, said = batch["shift_labels"][row, place], ours[row, place]
        loss = -said[target]
        if batch["block_depths"][row, place] == 0:
            kind, weight = "clean", clean_weight
            if theirs is not None:
                other = theirs[row, place]
                total = total + settings.kl_weight * (other.exp() * (other - said)).sum()
        else:
            is_adaptive = int(batch["input_ids"][row, place]) in ADAPTIVE_IDS
            kind = "adaptive" if is_adaptive else "noise"
            weight = settings.adaptive_weight if is_adaptive else settings.noise_weight
            if settings.block_targets == "model":
                # A row holds one document, so a position is the place of the clean token.
                teacher = ours[row, batch["position_ids"][row, place]].detach().exp()
                loss = -(teacher * said).sum()
        kinds[kind] += 1
        total = total + weight * loss
    assert min(kinds.values()) >= 5
    return total / sum(kinds.values())


def moved(model: Any) -> Any:
    """A copy that says something else."""
    other = copy.deepcopy(model)
    torch.manual_seed(5)
    with torch.no_grad():
        for parameter in other.parameters():
            parameter += 0.05 * torch.randn_like(parameter)
    return other


@pytest.mark.parametrize(
    "settings",
    [
        LossSettings(adaptive_ids=ADAPTIVE_IDS),
        LossSettings(noise_weight=0.3, adaptive_weight=2.5, adaptive_ids=ADAPTIVE_IDS),
        LossSettings(block_targets="model", adaptive_weight=0.5, adaptive_ids=ADAPTIVE_IDS),
        LossSettings(kl_weight=0.7, noise_weight=0.5, adaptive_ids=ADAPTIVE_IDS),
    ],
    ids=["plain", "weights", "model targets", "kl"],
)
def test_the_loss_is_what_the_options_say(tmp_path: Path, settings: LossSettings) -> None:
    model = training_model()
    original = moved(model).requires_grad_(False) if settings.kl_weight else None
    found = loss_of(make_trainer(tmp_path, model, settings, original))
    expected = expected_loss(settings, model, original)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=0)
    gradients = [
        torch.autograd.grad(loss, list(model.parameters()), allow_unused=True)
        for loss in (found, expected)
    ]
    for one, other in zip(*gradients, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-7)


def test_half_the_items_double_the_loss(tmp_path: Path) -> None:
    """The count is of the whole step: all batches and all processes."""
    trainer = make_trainer(tmp_path, training_model(), LossSettings(adaptive_ids=ADAPTIVE_IDS))
    torch.testing.assert_close(loss_of(trainer, 30), 2 * loss_of(trainer, 60))


def test_in_the_first_stage_clean_targets_do_not_count(tmp_path: Path) -> None:
    settings = LossSettings(adaptive_first=0.4, adaptive_weight=2.0, adaptive_ids=ADAPTIVE_IDS)
    model = training_model()
    trainer = make_trainer(tmp_path, model, settings)
    for step, clean_weight in ((0, 0.0), (3, 0.0), (4, 1.0), (9, 1.0)):
        trainer.state.global_step = step
        expected = expected_loss(settings, model, clean_weight=clean_weight)
        torch.testing.assert_close(loss_of(trainer), expected, rtol=1e-5, atol=0)


def test_what_the_head_says_of_adaptive_ids_does_not_count(tmp_path: Path) -> None:
    settings = LossSettings(block_targets="model", kl_weight=1.0, adaptive_ids=ADAPTIVE_IDS)
    model, loud = training_model(), training_model()
    with torch.no_grad():
        loud.lm_head.weight[list(ADAPTIVE_IDS)] += 100.0
    one, other = (
        loss_of(make_trainer(tmp_path, m, settings, original=training_model()))
        for m in (model, loud)
    )
    torch.testing.assert_close(one, other)
    other.backward()
    assert loud.lm_head.weight.grad is not None
    assert not loud.lm_head.weight.grad[list(ADAPTIVE_IDS)].any()


@pytest.mark.parametrize("lora", [False, True], ids=["copy", "adapter"])
@pytest.mark.parametrize("bf16", [False, True], ids=["fp32", "bf16"])
def test_the_divergence_from_the_original_is_zero_first_and_grows(
    tmp_path: Path, lora: bool, bf16: bool
) -> None:
    """In bf16, too: both are computed in the same way, or rounding would be taught."""
    model: Any = training_model()
    original = None if lora else copy.deepcopy(model).requires_grad_(False)
    before = training_model()
    if lora:
        torch.manual_seed(0)
        model = get_peft_model(
            model, LoraConfig(target_modules="all-linear", task_type="CAUSAL_LM")
        )
    plain = LossSettings(adaptive_ids=ADAPTIVE_IDS)
    without, with_kl, strict = (
        make_trainer(tmp_path, model, replace(plain, kl_weight=weight), original, bf16=bf16)
        for weight in (0.0, 1.0, 1e8)
    )
    prepared = with_kl.accelerator.prepare_model(model)
    for trainer in (without, with_kl, strict):
        trainer.model = prepared
    assert torch.equal(loss_of(strict), loss_of(without))
    with torch.no_grad():
        torch.manual_seed(1)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter += 0.3 * torch.randn_like(parameter)
    assert loss_of(with_kl) > loss_of(without) + 1e-3
    if not bf16:
        expected = expected_loss(with_kl._settings, prepared, before)
        torch.testing.assert_close(loss_of(with_kl), expected, rtol=1e-5, atol=0)


def test_a_run_hands_every_option_to_its_loss(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class CaughtError(Exception):
        pass

    def catch(*_: Any, settings: LossSettings, original: Any, **__: Any) -> None:
        raise CaughtError(settings, original)

    monkeypatch.setattr(training, "DraftTrainer", catch)
    model = write_model(tmp_path / "model")
    config = TrainConfig(
        str(model), str(write_records(tmp_path / "d.jsonl")), str(tmp_path / "out"), adaptive=True,
        max_length=128, row_length=0, noise_weight=0.1, adaptive_weight=0.2, adaptive_first=0.3,
        kl_weight=0.4, block_targets="model", dtype="float32",
    )  # fmt: skip
    run = training.prepare(config)
    with pytest.raises(CaughtError) as caught:
        training.train(run)
    settings, original = caught.value.args
    assert settings == LossSettings(0.1, 0.2, "model", 0.3, 0.4, run.adaptive_ids)
    assert run.adaptive_ids == (run.model.config.vocab_size - 1,)
    assert original is not None and original is not run.model
    assert not any(parameter.requires_grad for parameter in original.parameters())


def run_losses(folder: Path, name: str, **options: Any) -> list[float]:
    config = TrainConfig(
        model=str(folder / "model"), data=str(folder / "data.jsonl"), output=str(folder / name),
        adaptive=True, max_length=128, row_length=128, batch_size=4, max_steps=3, lr=1e-2,
        dtype="float32", adaptive_first=0.4, kl_weight=0.5, log_every=1, save_every=100,
        eval_share=0.0,
    )  # fmt: skip
    training.train(training.prepare(replace(config, **options)))
    log = json.loads((folder / name / training.LOG_NAME).read_text())
    return [entry["loss"] for entry in log if "loss" in entry]


def test_eager_and_accumulated_batches_train_like_sdpa_and_whole_ones(tmp_path: Path) -> None:
    write_model(tmp_path / "model")
    write_records(tmp_path / "data.jsonl", 120)
    one = run_losses(tmp_path, "one")
    assert len(one) == 3 and len(set(one)) == 3
    eager = run_losses(tmp_path, "eager", attention="eager")
    assert eager == pytest.approx(one, rel=1e-4)
    halves = run_losses(tmp_path, "halves", batch_size=2, accumulate=2)
    assert halves == pytest.approx(one, rel=1e-4)
