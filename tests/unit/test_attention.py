"""Our attention against the plain formula: grouped queries, any mask, soft-cap, no mask."""

from __future__ import annotations

import pytest
import torch
from transformers import AttentionInterface

from draftless.engine.attention import ATTENTION_NAME, pack_mask, packed_attention
from support.models import stock_model, target

ROWS, HEADS, WIDTH, CONTEXT, DIM = 2, 4, 3, 7, 8
MODULE = torch.nn.Identity()


def tensors(num_kv_heads: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(num_kv_heads)

    def normal(heads: int, length: int) -> torch.Tensor:
        shape = (ROWS, heads, length, DIM)
        return torch.randn(shape, dtype=torch.float64, generator=generator)

    mask = torch.rand(ROWS, 1, WIDTH, CONTEXT, generator=generator) < 0.6
    mask[..., 0] = True
    return normal(HEADS, WIDTH), normal(num_kv_heads, CONTEXT), normal(num_kv_heads, CONTEXT), mask


def by_the_formula(
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    mask: torch.Tensor,
    scaling: float,
    softcap: float | None,
) -> torch.Tensor:  # [R, W, Hq, D]
    groups = HEADS // key.shape[1]
    key, value = key.repeat_interleave(groups, 1), value.repeat_interleave(groups, 1)
    scores = query @ key.transpose(2, 3) * scaling
    if softcap is not None:
        scores = softcap * torch.tanh(scores / softcap)
    weights = scores.masked_fill(~mask, -torch.inf).softmax(-1)
    return (weights @ value).transpose(1, 2)


@pytest.mark.parametrize("softcap", [None, 2.0])
@pytest.mark.parametrize("scaling", [DIM**-0.5, 0.7])
@pytest.mark.parametrize("num_kv_heads", [1, 2, 4])
@pytest.mark.parametrize("form", ["bool", "additive", "packed"])
def test_any_mask(form: str, num_kv_heads: int, scaling: float, softcap: float | None) -> None:
    query, key, value, mask = tensors(num_kv_heads)
    given = mask
    if form != "bool":
        given = torch.zeros(mask.shape, dtype=torch.float64).masked_fill(~mask, -torch.inf)
    if form == "packed":
        given = pack_mask(given, HEADS // num_kv_heads)
    out, weights = packed_attention(
        MODULE, query, key, value, given, scaling=scaling, softcap=softcap
    )
    wanted = by_the_formula(query, key, value, mask, scaling, softcap)
    assert weights is None
    torch.testing.assert_close(out, wanted)


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_no_mask_is_causal_at_the_end(softcap: float | None) -> None:
    query, key, value, _ = tensors(2)
    causal = torch.ones(WIDTH, CONTEXT, dtype=torch.bool).tril(CONTEXT - WIDTH)
    out, _ = packed_attention(MODULE, query, key, value, None, softcap=softcap)
    wanted = by_the_formula(query, key, value, causal, DIM**-0.5, softcap)
    torch.testing.assert_close(out, wanted)


def test_pack_mask_is_query_head_major() -> None:
    mask = torch.arange(6).view(1, 1, 2, 3)
    assert pack_mask(mask, 2)[0, 0].tolist() == [[0, 1, 2], [3, 4, 5], [0, 1, 2], [3, 4, 5]]
    assert pack_mask(mask, 1) is mask


@pytest.mark.parametrize("family", ["llama", "gemma2", "mistral"])
def test_transformers_still_runs_a_model_that_has_our_attention(family: str) -> None:
    """A batch with left padding through stock `generate`: padded queries see nothing at all."""
    ids = torch.tensor([[0, 0, 5, 6, 7], [1, 2, 3, 4, 5]])
    options = {
        "attention_mask": torch.tensor([[0, 0, 1, 1, 1], [1, 1, 1, 1, 1]]),
        "max_new_tokens": 12,
        "do_sample": False,
        "pad_token_id": 0,
    }
    ours = target(family, "fp32").model.generate(ids, **options)
    assert ATTENTION_NAME in AttentionInterface().valid_keys()
    assert ours.equal(stock_model(family, "fp32").generate(ids, **options))
