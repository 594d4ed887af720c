"""Our attention operator against attention in double precision, and against torch's own in bfloat16."""

from __future__ import annotations

import pytest
import torch

from draftless.engine import native
from draftless.engine.attention import attend, pack_mask

pytestmark = pytest.mark.skipif(
    not (native.has_fast_products() and native.load("attention")),
    reason="this CPU has no products of bfloat16",
)

Tensors = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def case(
    rows: int, heads: int, kv_heads: int, width: int, context: int, dim: int, hidden: float = 0.4
) -> Tensors:
    """Queries behind one another in memory as in a compiled pass, a cache with stale slots, a tree's mask."""
    draw = torch.Generator().manual_seed(context + width)
    query = 2 * torch.randn(rows, width, heads, dim, generator=draw).transpose(1, 2)
    cache = torch.randn(2, rows, kv_heads, context + 7, dim, generator=draw)
    keys, values = cache.bfloat16()[..., :context, :].unbind(0)
    is_hidden = torch.rand(rows, 1, width, context, generator=draw) < hidden
    for node in range(width):
        is_hidden[:, :, node, context - width + node] = False
    mask = torch.zeros(is_hidden.shape).masked_fill(is_hidden, -torch.inf).bfloat16()
    return query.bfloat16(), keys, values, pack_mask(mask, heads // kv_heads)


def run(given: Tensors, scaling: float) -> torch.Tensor:  # [R, W, Hq, D]
    """As the second of three layers, and as the last rows of a larger cache, which holds the keys and
    values but those of the pass itself; it has to write them."""
    query, keys, values, mask = given
    rows, heads, width, dim = query.shape
    context = keys.shape[2]
    cached = torch.stack([keys, values])
    cache = torch.full((3, 2, rows + 2, keys.shape[1], context + 9, dim), 7.0).bfloat16()
    cache[1, :, 2:, :, : context - width] = cached[..., : context - width, :]
    wanted = cache.clone()
    wanted[1, :, 2:, :, :context] = cached
    flat = [states.transpose(1, 2).reshape(1, rows * width, -1, dim).transpose(1, 2) for states in
            (query, *cached[..., -width:, :])]  # fmt: skip
    begin_pass, attention = native.operator("begin_pass"), native.operator("attention")
    assert begin_pass is not None
    assert attention is not None
    other = torch.zeros(1, 1, 1, 1).bfloat16()
    begin_pass(cache, 2, [context - width] * rows, [other, mask])
    out: torch.Tensor = attention(*flat, torch.tensor([1, 1]), scaling)
    assert cache.equal(wanted), "the new keys and values, and nothing else"
    assert out.is_contiguous()
    return out.view(rows, width, heads, dim)


SHAPES = [
    (1, 6, 2, 1, 300, 64), (1, 6, 2, 7, 300, 64), (1, 8, 8, 5, 77, 128), (2, 8, 2, 9, 256, 32),
    (3, 4, 1, 33, 257, 96), (1, 4, 2, 40, 700, 256), (1, 2, 1, 1, 1, 64),
]  # fmt: skip


@pytest.mark.parametrize("scaling", [0.125, 1.0])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_as_close_to_the_truth_as_torchs_own(shape: tuple[int, ...], scaling: float) -> None:
    given = case(*shape)
    query, keys, values, mask = (tensor.double() for tensor in given)
    truth = attend(query, keys, values, mask, scaling, None).transpose(1, 2)
    stock = attend(*given, scaling, None).transpose(1, 2)
    ours = run(given, scaling)
    assert ours.shape == truth.shape
    error, of_stock = ((found.double() - truth).abs().mean() for found in (ours, stock))
    assert error <= 1.05 * of_stock + 1e-6


def test_what_is_hidden_does_not_count_at_all() -> None:
    """Whatever stands in a hidden slot, even where a whole part of the context is hidden."""
    given = case(1, 4, 2, 3, 600, 64)
    query, keys, values, mask = given
    mask[..., :300] = -torch.inf
    before = run(given, 0.125)
    keys, values = keys.clone(), values.clone()
    keys[:, :, :300], values[:, :, :300] = 100.0, -1e30
    assert run((query, keys, values, mask), 0.125).equal(before)
    changed = values.clone()
    changed[:, :, 597] += 50.0
    assert not run((query, keys, changed, mask), 0.125).equal(before)


def test_the_other_queries_do_not_matter() -> None:
    """A node has the same bits alone and in a tree: no sum depends on how many queries there are."""
    query, keys, values, mask = case(1, 2, 2, 21, 300, 64)
    whole = run((query, keys, values, mask), 0.125)
    for node in (0, 8, 20):
        of_node = slice(node, node + 1)
        alone = query[:, :, of_node], keys, values, mask[:, :, of_node].contiguous()
        assert run(alone, 0.125).equal(whole[:, of_node])


def test_it_does_not_matter_where_the_ancestors_lie() -> None:
    """Keys of other branches between those of the own path change no bit."""
    query, keys, values, mask = case(1, 4, 2, 9, 310, 64)
    whole = run((query, keys, values, mask), 0.125)
    for node in (0, 5, 8):
        of_node, seen = slice(node, node + 1), mask[0, 0, node].isfinite()
        own = [tensor[:, :, seen].contiguous() for tensor in (keys, values)]
        alone = torch.zeros(1, 1, 2, int(seen.sum())).bfloat16()
        found = run((query[:, :, of_node], *own, alone), 0.125)
        assert found.equal(whole[:, of_node])


def test_large_scores_stay_finite() -> None:
    query, keys, values, mask = case(1, 4, 2, 3, 50, 64)
    given = (40 * query, 40 * keys, values, mask)
    truth = attend(*(tensor.double() for tensor in given), 1.0, None).transpose(1, 2)
    torch.testing.assert_close(run(given, 1.0).double(), truth, atol=0.02, rtol=0.02)
