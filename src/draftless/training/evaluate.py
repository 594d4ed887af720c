"""What a trained model is judged by: clean loss, and the accuracy of blocks per depth.

Blocks are measured as decoding meets them, whatever the training mode: behind a clean prefix stands
a run of noise or of adaptive tokens, and its d-th token must predict the token after its own place.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from draftless.prompts import IGNORED_LABEL
from draftless.training.losses import without_ids


@dataclass
class Scores:
    """Sums over targets.

    Attributes:
        clean_loss, num_clean: summed cross-entropy and number of clean response targets.
        hits, totals: by metric and depth, right predictions and targets.
    """

    clean_loss: float = 0.0
    num_clean: int = 0
    hits: dict[str, int] = field(default_factory=dict)
    totals: dict[str, int] = field(default_factory=dict)

    def metrics(self) -> dict[str, float]:
        """`clean_loss` per token; `denoising_accuracy_D` and `adaptive_accuracy_D` per depth D."""
        accuracy = {name: self.hits[name] / total for name, total in self.totals.items() if total}
        return {"clean_loss": self.clean_loss / max(1, self.num_clean), **accuracy}


@torch.no_grad()
def evaluate_model(
    model: Any, batches: Iterable[Mapping[str, torch.Tensor]], adaptive_ids: Sequence[int] = ()
) -> dict[str, float]:
    """Evaluate on branch batches.

    Args:
        model: a causal model with the attention that the batches' masks are for.
        batches: as `DraftCollator` makes them for blocks with `adds_places`.
        adaptive_ids: ids that the model never says.
    """
    scores = Scores()
    was_training, device = model.training, next(model.parameters()).device
    model.eval()
    for batch in batches:
        _add(scores, model, {key: value.to(device) for key, value in batch.items()}, adaptive_ids)
    model.train(was_training)
    return scores.metrics()


def _add(
    scores: Scores,
    model: Any,
    batch: Mapping[str, torch.Tensor],
    adaptive_ids: Sequence[int],
) -> None:
    logits = model(
        input_ids=batch["input_ids"],
        position_ids=batch["position_ids"],
        attention_mask=batch["attention_mask"],
        use_cache=False,
    ).logits
    logits = without_ids(logits, adaptive_ids)
    targets, depths = batch["shift_labels"], batch["block_depths"]
    is_target = targets != IGNORED_LABEL
    clean = is_target & (depths == 0)
    losses = F.cross_entropy(logits[clean].float(), targets[clean], reduction="sum")
    scores.clean_loss += float(losses)
    scores.num_clean += int(clean.sum())
    is_adaptive = torch.isin(
        batch["input_ids"], torch.tensor(list(adaptive_ids), device=depths.device)
    )
    for kind, of_kind in (("denoising", ~is_adaptive), ("adaptive", is_adaptive)):
        for depth in range(1, int(depths.max()) + 1):
            here = is_target & (depths == depth) & of_kind
            hits = int((logits[here].argmax(-1) == targets[here]).sum())
            name = f"{kind}_accuracy_{depth}"
            scores.hits[name] = scores.hits.get(name, 0) + hits
            scores.totals[name] = scores.totals.get(name, 0) + int(here.sum())
