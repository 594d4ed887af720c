"""What noise tokens learn: the labels, or what the model itself says on clean input."""

from __future__ import annotations

import torch

from draftless.training.losses import own_losses


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
