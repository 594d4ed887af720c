"""Adaptive tokens of a model: new rows of its embedding, or ids that its tokenizer never uses."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from transformers import PreTrainedModel

from draftless.errors import ConfigError


def highest_id(tokenizer: Any) -> int:
    """The highest id of a tokenizer; with gaps in the ids it is more than their number."""
    return int(max(tokenizer.get_vocab().values()))


def add_adaptive_tokens(
    model: PreTrainedModel, count: int, tokenizer: Any = None
) -> tuple[int, ...]:
    """Grow the vocabulary by `count` ids that start at the mean of all others; returns the ids.

    The tokenizer is not told. It may have more ids than the embedding has rows (give it then): the new
    ids lie above both, so that no text can ever hold one. An untied head grows, too: its new rows only keep both
    sizes equal.
    """
    num_rows = model.get_input_embeddings().weight.shape[0]
    first = num_rows if tokenizer is None else max(num_rows, highest_id(tokenizer) + 1)
    model.resize_token_embeddings(first + count, mean_resizing=False)
    for table in (model.get_input_embeddings(), model.get_output_embeddings()):
        start_at_mean(table.weight, range(num_rows, first + count))
    return tuple(range(first, first + count))


@torch.no_grad()
def start_at_mean(
    weight: torch.Tensor,  # [V, H]
    adaptive_ids: Sequence[int],
) -> None:
    """Set the rows of `adaptive_ids` to the mean of the other rows."""
    others = torch.ones(len(weight), dtype=torch.bool, device=weight.device)
    others[list(adaptive_ids)] = False
    weight[list(adaptive_ids)] = weight[others].float().mean(0).to(weight.dtype)


def unassigned_ids(model: PreTrainedModel, tokenizer: Any) -> list[int]:
    """Ids with a row in the embedding that stand for no token of the tokenizer."""
    num_rows = model.get_input_embeddings().weight.shape[0]
    assigned = set(tokenizer.get_vocab().values())
    return [i for i in range(num_rows) if i not in assigned]


def take_unassigned(
    model: PreTrainedModel, tokenizer: Any, adaptive_ids: Sequence[int]
) -> tuple[int, ...]:
    """Check that `adaptive_ids` are free and start them at the mean; an untied head stays as it is.

    Raises:
        ConfigError: the tokenizer uses one of them, or the embedding has no row for it.
    """
    free = unassigned_ids(model, tokenizer)
    for token_id in adaptive_ids:
        if token_id not in free:
            some = f"free are {', '.join(map(str, free[:8]))}" if free else "none is free"
            raise ConfigError(
                f"id {token_id} cannot be an adaptive token: the tokenizer uses it or the "
                f"embedding has no row for it; {some}; leave --adaptive-ids out to add new ones"
            )
    start_at_mean(model.get_input_embeddings().weight, adaptive_ids)
    return tuple(adaptive_ids)


def suppress_in_generation(model: PreTrainedModel, adaptive_ids: Sequence[int]) -> None:
    """Let `transformers`' own `generate`, too, never say an adaptive token."""
    generation = model.generation_config
    assert generation is not None
    suppressed = set(generation.suppress_tokens or ())
    generation.suppress_tokens = sorted(suppressed | set(adaptive_ids))
