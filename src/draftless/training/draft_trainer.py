"""`Trainer` that weighs blocks, keeps to the original model, and marks complete checkpoints."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from transformers import Trainer, TrainerControl
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from draftless.prompts import IGNORED_LABEL
from draftless.training.checkpoint import mark_complete
from draftless.training.config import BlockTargets
from draftless.training.evaluate import evaluate_model
from draftless.training.layer_dropout import LayerDropout
from draftless.training.losses import divergences, own_losses, without_ids

_ADAPTER_ROWS = "trainable_tokens_delta"  # peft's name for rows of an embedding that train alone


@dataclass(frozen=True)
class LossSettings:
    """What counts how much; a clean target counts 1.

    Attributes:
        noise_weight, adaptive_weight: of a target in a noise run, in an adaptive block.
        block_targets: `labels`, or what the `model` says itself on clean input.
        adaptive_first: share of the steps, at the beginning, in which clean targets do not count.
        kl_weight: of the divergence from the original model at a clean target.
        adaptive_ids: ids that the model never says.
    """

    noise_weight: float = 1.0
    adaptive_weight: float = 1.0
    block_targets: BlockTargets = "labels"
    adaptive_first: float = 0.0
    kl_weight: float = 0.0
    adaptive_ids: tuple[int, ...] = ()


class DraftTrainer(Trainer):
    """`Trainer` for batches of `DraftCollator`.

    Args:
        settings: of the loss.
        original: where `kl_weight` is not 0: the model as it was, or None if `model` has adapters
            that can be switched off.
        dropout: of layers; None trains all of them in every step.
        *args, **more: of `Trainer`.
    """

    def __init__(
        self,
        *args: Any,
        settings: LossSettings,
        original: Any = None,
        dropout: LayerDropout | None = None,
        **more: Any,
    ) -> None:
        super().__init__(*args, **more)
        self._settings = settings
        self._original = original
        self._dropout = dropout

    def get_decay_parameter_names(self, model: Any) -> list[str]:
        """Rows of adaptive tokens are not decayed: they stand for nothing that could overfit."""
        names: list[str] = super().get_decay_parameter_names(model)
        return [name for name in names if _ADAPTER_ROWS not in name]

    def training_step(self, *args: Any, **more: Any) -> torch.Tensor:
        """Forward and backward of one batch, without the sub-layers that this step drops.

        All batches and processes of an optimizer step drop the same ones. The backward pass must
        too: checkpointed layers are computed again in it. What is dropped has no gradient (None),
        so the optimizer leaves it and its moments alone; DDP finds it as an unused parameter.
        """
        dropout = self._dropout
        with dropout.skipped(self.state.global_step) if dropout else nullcontext():
            loss: torch.Tensor = super().training_step(*args, **more)
        return loss

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Weighted cross-entropy per target of the global batch, and the KL term."""
        depths, twins = inputs.pop("block_depths", None), inputs.pop("clean_twins", None)
        if depths is None or num_items_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        settings = self._settings
        targets = inputs.pop("shift_labels")
        inputs.pop("labels")
        outputs = model(**inputs)
        logits = without_ids(outputs.logits.float(), settings.adaptive_ids)
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        if settings.block_targets == "model":
            losses = losses.index_copy(0, *own_losses(logits, targets, twins))
        loss = (losses * self._weights(inputs["input_ids"], depths).flatten()).sum()
        if settings.kl_weight:
            is_clean = (targets != IGNORED_LABEL) & (depths == 0)
            original = self._original_logits(model, inputs)[is_clean]
            loss = loss + settings.kl_weight * divergences(logits[is_clean], original).sum()
        loss = loss / num_items_in_batch
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over processes
        return (loss, outputs) if return_outputs else loss

    def _weights(self, input_ids: torch.Tensor, depths: torch.Tensor) -> torch.Tensor:  # [B, N]
        settings = self._settings
        is_first = self.state.global_step < settings.adaptive_first * self.state.max_steps
        adaptive_ids = torch.tensor(settings.adaptive_ids, device=input_ids.device)
        block = torch.where(
            torch.isin(input_ids, adaptive_ids), settings.adaptive_weight, settings.noise_weight
        )
        return torch.where(depths > 0, block, 0.0 if is_first else 1.0)

    @torch.no_grad()
    def _original_logits(self, model: Any, inputs: dict[str, Any]) -> torch.Tensor:  # [B, N, V]
        """What the model said before training; it sees the same rows, blocks included."""
        if self._original is None:
            original = self.accelerator.unwrap_model(model)
            switched_off = original.disable_adapter()
        else:
            original, switched_off = self._original.to(inputs["input_ids"].device), nullcontext()
        # The copy was never prepared for mixed precision; rounding would be a divergence.
        with switched_off, self.accelerator.autocast():
            logits = original(**inputs).logits
        return without_ids(logits.float(), self._settings.adaptive_ids)

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Clean loss and accuracy of blocks per depth, on the held-back documents."""
        model = self.accelerator.unwrap_model(self.model)
        scores = evaluate_model(model, self.eval_dataset, self._settings.adaptive_ids)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        # Callbacks may act on it, and without this the last step is evaluated twice.
        self.control: TrainerControl = self.callback_handler.on_evaluate(
            self.args, self.state, self.control, metrics
        )
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # every rank saves its random state
        if self.args.should_save:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            mark_complete(Path(self.args.output_dir) / name)
