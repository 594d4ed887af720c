"""The kernels in C++ against double precision, and that their bits depend on nothing else."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
import random
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from draftless.layout import chain_parents
from support.native_kernels import (
    DTYPES,
    Case,
    Kernels,
    Parents,
    compiled,
    integers,
    variants,
)


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("kernels")


@pytest.fixture(scope="session", params=variants())
def kernels(request: pytest.FixtureRequest, folder: Path) -> Kernels:
    found = compiled(request.param, folder)
    if found is None or not found.runs_here():
        pytest.skip("no g++, or a system that does not allow AMX")
    return found


@pytest.fixture(params=list(DTYPES), ids=["float", "bfloat16"])
def dtype(request: pytest.FixtureRequest) -> torch.dtype:
    found: torch.dtype = request.param
    return found


def numbers(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def tolerance(dtype: torch.dtype) -> float:
    """Half a unit in the last place of what is stored."""
    return torch.finfo(dtype).eps / 2


# Products: rows, inputs, outputs.
PRODUCTS = [
    (1, 64, 64), (5, 33, 65), (7, 1, 3), (17, 77, 100), (33, 192, 31), (40, 130, 200), (3, 31, 1),
    (70, 576, 96),
]  # fmt: skip


@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
@pytest.mark.parametrize("has_bias", [False, True], ids=["", "bias"])
def test_a_product_is_the_truth_rounded(
    kernels: Kernels, dtype: torch.dtype, shape: tuple[int, int, int], has_bias: bool
) -> None:
    rows, size, width = shape
    x, weight = numbers(rows, size).to(dtype), numbers(width, size, seed=1).to(dtype)
    bias = numbers(width, seed=2).to(dtype) if has_bias else None
    found = kernels.multiply(x, kernels.pack([weight]), width, bias).double()
    terms = x.double()[:, None] * weight.double()
    truth = terms.sum(-1) + (0 if bias is None else bias.double())
    room = tolerance(dtype) * truth.abs() + 1e-6 * (terms.abs().sum(-1) + 1)
    assert ((found - truth).abs() <= room).all()


@pytest.mark.parametrize("shape", PRODUCTS, ids=str)
def test_a_row_has_the_same_bits_wherever_it_stands(
    kernels: Kernels, dtype: torch.dtype, shape: tuple[int, int, int]
) -> None:
    """Alone, in a group of any size, at any place, whatever threads share the blocks."""
    rows, size, width = shape
    x, packed = (
        numbers(rows, size).to(dtype),
        kernels.pack([numbers(width, size, seed=1).to(dtype)]),
    )
    whole = kernels.multiply(x, packed, width)
    assert kernels.multiply(x, packed, width, threads=3, grain=2).equal(whole)
    for count in {1, 2, 6, 7, 16, 17, 32} & set(range(rows + 1)):
        for first in {0, rows // 2, rows - count} & set(range(rows - count + 1)):
            part = kernels.multiply(x[first : first + count], packed, width)
            assert part.equal(whole[first : first + count])
    wider = numbers(rows, size + 5).to(dtype)
    wider[:, :size] = x
    assert kernels.multiply(wider[:, :size], packed, width).equal(whole)


@pytest.mark.parametrize("size", [64, 45])
def test_weights_packed_side_by_side_are_one(
    kernels: Kernels, dtype: torch.dtype, size: int
) -> None:
    """Also those that share a block, and those whose rows stand apart."""
    weight = numbers(150, size + 2).to(dtype)[:, :size]
    x = numbers(3, size, seed=1).to(dtype)
    parts = kernels.pack([weight[:70], weight[70:71], weight[71:]])
    whole = kernels.pack([weight.contiguous()], fill=0)
    assert parts[:-64].equal(whole[:-64])
    expected = x.double() @ weight.double().T
    torch.testing.assert_close(
        kernels.multiply(x, parts, 150).double(), expected, atol=1e-4, rtol=2 * tolerance(dtype)
    )


def test_a_nan_stays_in_its_row(kernels: Kernels, dtype: torch.dtype) -> None:
    x, packed = numbers(20, 40).to(dtype), kernels.pack([numbers(50, 40, seed=1).to(dtype)])
    before = kernels.multiply(x, packed, 50)
    x[7, 39] = torch.nan
    after = kernels.multiply(x, packed, 50)
    assert after[7].isnan().all()
    others = [row for row in range(20) if row != 7]
    assert after[others].equal(before[others])


def any_tree(num_nodes: int, seed: int) -> Parents:
    rng = random.Random(seed)
    return (-1, *(rng.randrange(max(0, node - 4), node) for node in range(1, num_nodes)))


def case(shape: tuple[int, ...], dtype: torch.dtype, *, ragged: bool = True) -> Case:
    rows, heads, kv_heads, width, length, key_dim, value_dim = shape
    query, keys = numbers(rows, width, heads, key_dim), (rows, kv_heads, length + width)
    shorter = 3 if ragged else 0
    return Case(
        query.to(dtype),
        numbers(*keys, key_dim, seed=1).to(dtype),
        numbers(*keys, value_dim, seed=2).to(dtype),
        [max(0, length - shorter * row) for row in range(rows)],
        [any_tree(max(1, width - shorter * row), row) for row in range(rows)],
        scaling=1.5 * key_dim**-0.5,
    )


# Rows, heads, KV heads, width, cached tokens, sizes of keys and values. Two threads share each step of the last two.
ATTENTION = [
    (1, 6, 2, 1, 299, 64, 64), (1, 6, 2, 7, 93, 64, 64), (3, 4, 1, 33, 104, 96, 80), (1, 2, 2, 4, 30, 32, 128),
    (1, 4, 2, 20, 60, 256, 256), (1, 2, 1, 1, 0, 64, 64), (2, 4, 2, 6, 5, 66, 18), (1, 1, 1, 3, 50, 7, 5),
    (1, 6, 3, 3, 200, 64, 64), (1, 4, 1, 2, 140, 256, 240),
]  # fmt: skip


@pytest.mark.parametrize(("window", "softcap"), [(0, 0.0), (1, 0.0), (20, 2.0)])
@pytest.mark.parametrize("shape", ATTENTION, ids=str)
def test_attention_is_the_truth_rounded(
    kernels: Kernels, dtype: torch.dtype, shape: tuple[int, ...], window: int, softcap: float
) -> None:
    given = replace(case(shape, dtype), window=window, softcap=softcap)
    found = kernels.attend(given)
    assert found.isfinite().all(), "padding sees itself: its NaN would reach others"
    for row, tree in enumerate(given.trees):
        for node in {0, 1, len(tree) // 2, len(tree) - 1} & set(range(len(tree))):
            truth = given.truth(row, node)
            room = 1.01 * tolerance(dtype) * truth.abs() + 1e-5
            assert ((found[row, node].double() - truth).abs() <= room).all()


@pytest.mark.parametrize("window", [0, 30])
@pytest.mark.parametrize("shape", ATTENTION, ids=str)
def test_a_node_has_the_bits_of_plain_decoding(
    kernels: Kernels, dtype: torch.dtype, shape: tuple[int, ...], window: int
) -> None:
    """Whatever stands beside it, in its row and in others, and wherever its ancestors lie."""
    given = replace(case(shape, dtype), window=window)
    whole = kernels.attend(given)
    assert kernels.attend(replace(given, threads=1)).equal(whole)
    assert kernels.attend(replace(given, threads=5)).equal(whole)
    for row, tree in enumerate(given.trees):
        for node in {0, 5, len(tree) - 1} & set(range(len(tree))):
            assert kernels.attend(given.alone(row, node))[0, 0].equal(whole[row, node])


def test_a_sibling_before_the_path_moves_no_bit(kernels: Kernels, dtype: torch.dtype) -> None:
    shape = (1, 4, 2, 6, 41, 64, 64)
    given = replace(case(shape, dtype), trees=[(-1, 0, 0, 2, 0, 3)])
    found = kernels.attend(given)[0, 5]
    path = [*range(41), 41, 43, 44, 46]
    keys, values = given.keys[:, :, path], given.values[:, :, path]
    query = given.query[:, [0, 2, 3, 5]]
    chain = replace(given, keys=keys, values=values, query=query, trees=[chain_parents(4)])
    assert kernels.attend(chain)[0, 3].equal(found)


def test_a_prompt_in_parts_has_the_bits_of_tokens_one_by_one(
    kernels: Kernels, dtype: torch.dtype
) -> None:
    given = replace(case((1, 4, 2, 128, 30, 64, 64), dtype), trees=[chain_parents(128)])
    whole = kernels.attend(given)
    for node in (0, 1, 63, 64, 127):
        assert kernels.attend(given.alone(0, node))[0, 0].equal(whole[0, node])


@pytest.mark.parametrize("window", [0, 20])
def test_what_is_hidden_is_not_read_into_a_sum(
    kernels: Kernels, dtype: torch.dtype, window: int
) -> None:
    """Not even a NaN of another branch, out of the window or behind the tree; one that is seen shows."""
    given = replace(case((1, 4, 2, 5, 60, 64, 64), dtype), trees=[(-1, 0, 1, 0, 3)], window=window)
    before = kernels.attend(given)
    keys, values = given.keys.clone(), given.values.clone()
    hidden = [61, 62, *range(0 if window == 0 else 60 + 2 - window + 1)]
    keys[:, :, hidden], values[:, :, hidden] = torch.nan, torch.inf
    spoiled = kernels.attend(replace(given, keys=keys, values=values), fill=torch.nan)
    assert spoiled[:, 4].equal(before[:, 4])
    for kind in ("keys", "values"):
        seen = getattr(given, kind).clone()
        seen[:, :, 63] = torch.nan
        assert kernels.attend(replace(given, **{kind: seen}))[:, 4].isnan().all()


def test_large_scores_stay_finite(kernels: Kernels, dtype: torch.dtype) -> None:
    given = case((1, 4, 2, 3, 50, 64, 64), dtype)
    given = replace(given, query=40 * given.query, keys=40 * given.keys)
    found = kernels.attend(given)
    for node in range(3):
        torch.testing.assert_close(
            found[0, node].double(), given.truth(0, node), atol=0.02, rtol=0.02
        )


@pytest.mark.parametrize("tree", [(-1, 2, 0), (-1, 1, 0), (-2, 0, 0)])
def test_a_tree_that_is_none_is_refused(kernels: Kernels, tree: Parents) -> None:
    given = replace(case((1, 4, 2, 3, 50, 64, 64), torch.float32), trees=[tree])
    with pytest.raises(ValueError, match="no tree"):
        kernels.attend(given)


@pytest.fixture
def any_kernels(folder: Path) -> Kernels:
    found = compiled("native", folder)
    if found is None:
        pytest.skip("no g++")
    return found


class ThreadPool:
    def __init__(self, kernels: Kernels, threads: int) -> None:
        self.library = kernels.library
        self.pool = ctypes.c_void_p(self.library.new_pool(threads))

    def resize(self, threads: int) -> None:
        self.library.resize_pool(self.pool, threads)

    def delete(self) -> None:
        self.library.delete_pool(self.pool)

    def run(self, jobs: int, items: int, grain: int, pauses: int = 0) -> int:
        """The number of threads that took part, when each item was worked on once per job."""
        counts = integers(*[0] * (items + 1))
        arguments = (ctypes.c_int64(one) for one in (jobs, items, grain, pauses))
        threads: int = self.library.count_items(self.pool, *arguments, counts)
        assert list(counts) == [jobs] * items + [0]
        return threads


@pytest.mark.parametrize("threads", [1, 2, 5])
def test_a_pool_does_each_item_once(any_kernels: Kernels, threads: int) -> None:
    pool = ThreadPool(any_kernels, threads)
    for jobs, items, grain in ((2000, 7, 1), (500, 100, 7), (10, 1, 1), (10, 0, 1), (10, 5, 9)):
        assert pool.run(jobs, items, grain) <= threads
    pool.delete()


def test_the_threads_of_a_pool_take_part(any_kernels: Kernels) -> None:
    """Also when they slept, and after the number of threads was changed."""
    pool = ThreadPool(any_kernels, 2)
    assert pool.run(50, 8, 1, 1_000_000) == 2
    time.sleep(0.05)
    assert pool.run(50, 8, 1, 1_000_000) == 2
    pool.resize(1)
    assert pool.run(2, 8, 1) == 1
    pool.resize(3)
    assert pool.run(50, 9, 1, 1_000_000) == 3
    pool.delete()


def test_a_pool_survives_a_fork(any_kernels: Kernels) -> None:
    pool = ThreadPool(any_kernels, 2)
    pool.run(10, 8, 1)
    child = multiprocessing.get_context("fork").Process(target=in_child, args=(pool,))
    child.start()
    child.join(60)
    assert child.exitcode == 17
    pool.run(10, 8, 1)
    pool.delete()


def in_child(pool: ThreadPool) -> None:
    both = pool.run(50, 8, 1, 1_000_000)
    pool.delete()
    os._exit(17 if both == 2 else 1)
