"""What a trained model is judged by: clean loss, and denoising accuracy per depth.

Denoising is measured as decoding meets it, whatever the training mode: behind a clean prefix
stands a run of noise, and the d-th noise token must predict the token after its own place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from draftless.prompts import IGNORED_LABEL


@dataclass
class Scores:
    """Sums over targets.

    Attributes:
        clean_loss, num_clean: summed cross-entropy and number of clean response targets.
        hits, totals: right predictions and targets at the first, second, ... noise token.
    """

    clean_loss: float = 0.0
    num_clean: int = 0
    hits: list[int] = field(default_factory=list)
    totals: list[int] = field(default_factory=list)

    def metrics(self) -> dict[str, float]:
        """`clean_loss` per token, and `denoising_accuracy_D` for each depth D."""
        accuracy = {
            f"denoising_accuracy_{depth}": hits / total
            for depth, (hits, total) in enumerate(zip(self.hits, self.totals, strict=True), start=1)
            if total
        }
        return {"clean_loss": self.clean_loss / max(1, self.num_clean), **accuracy}


@torch.no_grad()
def evaluate_model(model: Any, batches: Iterable[Mapping[str, torch.Tensor]]) -> dict[str, float]:
    """Evaluate on branch batches.

    Args:
        model: a causal model with sdpa or eager attention.
        batches: as `NoiseCollator` makes them in branch mode with `adds_places`.
    """
    scores = Scores()
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    for batch in batches:
        _add(scores, model, {key: value.to(device) for key, value in batch.items()})
    model.train(was_training)
    return scores.metrics()


def _add(scores: Scores, model: Any, batch: Mapping[str, torch.Tensor]) -> None:
    logits = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=batch["attention_mask"],
        use_cache=False,
    ).logits
    targets, depths = batch["shift_labels"], batch["noise_depths"]
    is_target = targets != IGNORED_LABEL
    clean = is_target & (depths == 0)
    losses = F.cross_entropy(logits[clean].float(), targets[clean], reduction="sum")
    scores.clean_loss += float(losses)
    scores.num_clean += int(clean.sum())
    for depth in range(1, int(depths.max()) + 1):
        here = is_target & (depths == depth)
        if len(scores.hits) < depth:
            scores.hits.append(0)
            scores.totals.append(0)
        scores.hits[depth - 1] += int((logits[here].argmax(-1) == targets[here]).sum())
        scores.totals[depth - 1] += int(here.sum())
