"""Our attention operator against attention in double precision, and against torch's own in bfloat16."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass, replace

import pytest
import torch

from draftless.engine import native
from draftless.engine.attention import attend
from draftless.engine.cache import CacheShape, KVCache
from draftless.engine.compiled.ops import begin
from draftless.engine.masks import MaskBuilder
from draftless.engine.tree_pass import TreePass
from draftless.layout import chain_parents, tree_layout

pytestmark = pytest.mark.skipif(
    not (native.has_fast_products() and native.load("attention")),
    reason="this CPU has no products of bfloat16",
)

CPU = torch.device("cpu")
Parents = tuple[int, ...]


@dataclass
class Case:
    """One layer's attention in a pass over a tree per row.

    Attributes:
        query: `[R, Hq, W, D]`, the tokens behind one another in memory as in a compiled pass.
        keys, values: `[R, Hkv, C, D]`, those of the tree behind `lengths[row]` cached ones.
        lengths, trees: per row its cached tokens and its tree.
        window: of sliding attention.
    """

    query: torch.Tensor
    keys: torch.Tensor
    values: torch.Tensor
    lengths: list[int]
    trees: list[Parents]
    window: int | None = None


def any_tree(num_nodes: int, seed: int) -> Parents:
    rng = random.Random(seed)
    return (-1, *(rng.randrange(max(0, node - 4), node) for node in range(1, num_nodes)))


def case(
    rows: int, heads: int, kv_heads: int, width: int, length: int, dim: int, *, ragged: bool = False
) -> Case:
    draw = torch.Generator().manual_seed(length + width)
    query = 2 * torch.randn(rows, width, heads, dim, generator=draw).transpose(1, 2)
    cache = torch.randn(2, rows, kv_heads, length + width, dim, generator=draw).bfloat16()
    shorter = 3 if ragged else 0
    lengths = [max(0, length - shorter * row) for row in range(rows)]
    trees = [any_tree(max(1, width - shorter * row), row) for row in range(rows)]
    return Case(query.bfloat16(), cache[0], cache[1], lengths, trees)


def tree_pass(given: Case, first_row: int, num_layers: int) -> TreePass:
    """As the last rows of a larger cache, which holds what came before in its second layer."""
    rows, kv_heads, _, dim = given.keys.shape
    shape = CacheShape(num_layers, kv_heads, dim, torch.bfloat16, CPU)
    cache = KVCache(shape, rows + first_row, max(given.lengths) + given.query.shape[2] + 9)
    cache.data.fill_(7.0)
    cache.lengths[first_row:] = given.lengths
    for row, length in enumerate(given.lengths):
        for kind, states in enumerate((given.keys, given.values)):
            cache.data[1, kind, first_row + row, :, :length] = states[row, :, :length]
    groups = given.query.shape[1] // kv_heads
    masks = MaskBuilder({"other": 3, "own": given.window}, groups, torch.bfloat16, CPU)
    token_ids = [[100 * row + node for node in range(len(tree))] for row, tree in enumerate(given.trees)]  # fmt: skip
    layouts = [tree_layout(tree) for tree in given.trees]
    return TreePass(cache, slice(first_row, first_row + rows), token_ids, layouts, masks)


def flat(states: Sequence[torch.Tensor]) -> torch.Tensor:  # [1, H, R*W, D]
    """Rows `[H, W, D]` behind one another, tokens apart by all heads, as in a compiled pass."""
    together = torch.cat([one.transpose(0, 1) for one in states])
    return together[None].transpose(1, 2)


def run(given: Case, scaling: float = 0.125, first_row: int = 2) -> torch.Tensor:  # [R, W, Hq, D]
    """In the second of three layers. The operator has to write the keys and values of the pass."""
    rows, heads, width, dim = given.query.shape
    one = tree_pass(given, first_row, 3)
    wanted = one.cache.data.clone()
    new: list[list[torch.Tensor]] = [[], []]
    for row, length in enumerate(given.lengths):
        for kind, states in enumerate((given.keys, given.values)):
            new[kind].append(states[row, :, length : length + width])
            wanted[1, kind, first_row + row, :, length : length + width] = new[kind][-1]
    token_ids, positions = begin(one, (), has_own_attention=True)
    for found, expected in zip((token_ids, positions), one.tensors, strict=True):
        assert found.view(rows, -1).equal(expected)
    attention = native.operator("attention")
    assert attention is not None
    place = torch.tensor([1, 1])
    out: torch.Tensor = attention(
        flat(list(given.query)), flat(new[0]), flat(new[1]), place, scaling
    )
    assert one.cache.data.equal(wanted), "the new keys and values, and nothing else"
    assert out.is_contiguous()
    assert out.isfinite().all(), (
        "padding sees itself: a NaN would reach the others in the next layer"
    )
    return out.view(rows, width, heads, dim)


def without_padding(given: Case, out: torch.Tensor) -> torch.Tensor:  # [sum of N, Hq, D]
    return torch.cat([out[row, : len(tree)] for row, tree in enumerate(given.trees)])


def by_torch(given: Case, scaling: float, dtype: torch.dtype) -> torch.Tensor:  # [R, W, Hq, D]
    mask = tree_pass(given, 0, 2).masks["own"]
    context = max(given.lengths) + given.query.shape[2]
    states = (given.query, given.keys[:, :, :context], given.values[:, :, :context], mask)
    query, keys, values, mask = (one.to(dtype) for one in states)
    return attend(query, keys, values, mask, scaling, None).transpose(1, 2)


def alone(given: Case, row: int, node: int) -> Case:
    """A node of a row as plain decoding meets it: behind its own path, and by itself."""
    path = [node]
    while given.trees[row][path[0]] >= 0:
        path.insert(0, given.trees[row][path[0]])
    length = given.lengths[row]
    seen = torch.tensor([*range(length), *(length + one for one in path)])
    keys, values = (states[row : row + 1, :, seen] for states in (given.keys, given.values))
    query = given.query[row : row + 1, :, node : node + 1]
    return Case(query, keys, values, [length + len(path) - 1], [(-1,)], given.window)


SHAPES = [
    (1, 6, 2, 1, 299, 64), (1, 6, 2, 7, 293, 64), (1, 8, 8, 5, 72, 128), (2, 8, 2, 9, 247, 32),
    (3, 4, 1, 33, 224, 96), (1, 4, 2, 40, 660, 256), (1, 2, 1, 1, 0, 64), (3, 4, 2, 6, 5, 64),
    (1, 2, 1, 90, 40, 64),
]  # fmt: skip


@pytest.mark.parametrize("scaling", [0.125, 1.0])
@pytest.mark.parametrize("window", [None, 1, 20, 250])
@pytest.mark.parametrize("ragged", [False, True], ids=["even", "ragged"])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_it_is_as_close_to_the_truth_as_torchs_own(
    shape: tuple[int, ...], ragged: bool, window: int | None, scaling: float
) -> None:
    given = replace(case(*shape, ragged=ragged), window=window)
    truth, stock, ours = (
        without_padding(given, found).double()
        for found in (
            by_torch(given, scaling, torch.float64),
            by_torch(given, scaling, torch.bfloat16),
            run(given, scaling),
        )
    )
    assert ours.shape == truth.shape
    error, of_stock = ((found - truth).abs().mean() for found in (ours, stock))
    assert error <= 1.05 * of_stock + 1e-6


@pytest.mark.parametrize("window", [None, 40])
def test_what_is_hidden_does_not_count_at_all(window: int | None) -> None:
    """Whatever stands in a hidden slot: of another branch, out of the window, or behind the tree."""
    given = replace(case(1, 4, 2, 5, 600, 64), trees=[(-1, 0, 1, 0, 3)], window=window)
    before = run(given)
    keys, values = given.keys.clone(), given.values.clone()
    hidden = [601, 602, *range(0 if window is None else 600 + 2 - window + 1)]
    keys[:, :, hidden], values[:, :, hidden] = 100.0, -1e30
    assert run(replace(given, keys=keys, values=values))[:, 4].equal(before[:, 4])
    values = given.values.clone()
    values[:, :, 603] += 50.0
    assert not run(replace(given, values=values))[:, 4].equal(before[:, 4])


@pytest.mark.parametrize("window", [None, 30])
def test_a_node_has_the_bits_of_plain_decoding(window: int | None) -> None:
    """Whatever stands beside it, in its row and in others, and wherever its ancestors lie."""
    given = replace(case(3, 4, 2, 21, 300, 64, ragged=True), window=window)
    whole = run(given)
    for row, tree in enumerate(given.trees):
        for node in (0, 5, 8, len(tree) - 1):
            assert run(alone(given, row, node), first_row=0)[0, 0].equal(whole[row, node])


def test_a_prompt_in_parts_has_the_bits_of_tokens_one_by_one() -> None:
    given = replace(case(1, 4, 2, 128, 70, 64), trees=[chain_parents(128)])
    whole = run(given)
    for node in (0, 63, 64, 127):
        assert run(alone(given, 0, node))[0, 0].equal(whole[0, node])


def test_large_scores_stay_finite() -> None:
    given = case(1, 4, 2, 3, 50, 64)
    given = replace(given, query=40 * given.query, keys=40 * given.keys)
    truth = by_torch(given, 1.0, torch.float64)
    torch.testing.assert_close(run(given, 1.0).double(), truth, atol=0.02, rtol=0.02)


def test_a_tree_that_is_none_is_refused() -> None:
    given = case(1, 4, 2, 3, 50, 64)
    one = tree_pass(given, 0, 2)
    begin_pass = native.operator("begin_pass")
    assert begin_pass is not None
    with pytest.raises(RuntimeError, match="node 1 has parent 2"):
        begin_pass(one.cache.data, 0, [50], [[1, 2, 3]], [(-1, 2, 0)], 3, [0])
