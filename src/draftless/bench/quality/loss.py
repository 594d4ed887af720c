"""Clean loss: how surprised the model is by the response that the data set gives."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention

from draftless.engine.target import TargetModel


@torch.inference_mode()
def token_losses(
    target: TargetModel, token_ids: Sequence[int], num_context: int
) -> tuple[torch.Tensor, torch.Tensor]:  # [n] float32, [n] bool
    """Cross-entropy of each token behind the context, in one plain forward pass.

    The model is judged as it decodes: it never says an id that is input only.

    Args:
        target: its model runs as `transformers` runs it: no cache, no tree.
        token_ids: the whole text; its last token is only predicted, so one more than the model's
            context fits.
        num_context: how many of them, at least one, are given and not judged.

    Returns:
        Losses in nats, and whether each token is the one that greedy decoding takes.
    """
    ids = torch.tensor([list(token_ids)], device=target.device)  # [1, len]
    num_judged = len(token_ids) - num_context
    output = target.model(input_ids=ids[:, :-1], use_cache=False, logits_to_keep=num_judged)
    logits = output.logits[0].float()  # [n, V]
    logits[:, list(target.input_only_ids)] = -torch.inf
    wanted = ids[0, num_context:]
    return F.cross_entropy(logits, wanted, reduction="none"), logits.argmax(-1) == wanted


def clean_loss(
    target: TargetModel, token_ids: Sequence[int], num_context: int
) -> tuple[float, int]:
    """Summed loss and number of tokens of a response, cut where the model's context ends.

    Args:
        target: the model.
        token_ids: prompt and response.
        num_context: length of the prompt, at least 1.
    """
    ids = list(token_ids)
    if target.max_positions is not None:
        ids = ids[: target.max_positions + 1]
    if len(ids) <= num_context:
        return 0.0, 0
    losses, _ = token_losses(target, ids, num_context)
    return float(losses.sum()), len(losses)
