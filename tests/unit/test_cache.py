"""The cache: append, commit, truncate, scratch; growth and dropped rows. Exact tensors."""

from __future__ import annotations

import pytest
import torch

from draftless.engine import native
from draftless.engine.cache import CacheShape, KVCache
from draftless.errors import ConfigError

LAYERS, HEADS, DIM = 2, 2, 3
SHAPE = CacheShape(LAYERS, HEADS, DIM, torch.float64, torch.device("cpu"))


def make_cache(num_rows: int = 1, capacity: int = 16) -> KVCache:
    return KVCache(SHAPE, num_rows, capacity)


def feed(cache: KVCache, marks: list[list[int]], first_row: int = 0) -> torch.Tensor:
    """Write one forward in which node `n` of row `r` has `marks[r][n]` everywhere.

    Returns:
        The keys `[R, C]` that attention sees in the last layer.
    """
    width = len(marks[0])
    context = cache.append(slice(first_row, first_row + len(marks)), width)
    for layer in range(LAYERS):
        mark = torch.tensor(marks, dtype=torch.float64)[:, None, :, None]
        new = mark.expand(len(marks), HEADS, width, DIM)
        keys, values = cache.write(layer, new, -new)
        assert keys.shape == values.shape == (len(marks), HEADS, context, DIM)
        assert keys.equal(-values)
    assert (keys == keys[:, :1, :, :1]).all()
    return keys[:, 0, :, 0]


def kept(cache: KVCache, row: int) -> list[int]:
    """The marks in a row's committed slots, the same in every layer, head and dimension."""
    data = cache.data[:, :, row, :, : cache.lengths[row]]
    marks = data[0, 0, 0, :, 0]
    wanted = marks[:, None] * torch.tensor([1.0, -1.0])[:, None, None, None]
    assert data.equal(wanted.expand(LAYERS, 2, HEADS, *marks.shape, 1).expand_as(data))
    return [int(m) for m in marks]


def test_a_forward_sees_what_was_committed_and_itself() -> None:
    cache = make_cache()
    assert feed(cache, [[1, 2, 3]]).tolist() == [[1, 2, 3]]
    assert cache.lengths == [0], "only commit makes slots permanent"
    cache.commit(0, range(2))
    assert feed(cache, [[7, 8]]).tolist() == [[1, 2, 7, 8]]


@pytest.fixture(params=["native", "torch"])
def way(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> str:
    """Both ways to move slots, whatever was loaded before."""
    if request.param == "torch":
        monkeypatch.setattr(native, "_LOADED", {})
    elif not (native.has_fast_products() and native.load("attention")):
        pytest.skip("this CPU has no products of bfloat16")
    return str(request.param)


@pytest.mark.usefixtures("way")
@pytest.mark.parametrize(
    "path", [[0], [0, 1, 2], [0, 2, 4], [0, 3], [0, 1, 4], [0, 1, 2, 3, 4], [0, 4]]
)
def test_commit_keeps_the_path_in_order(path: list[int]) -> None:
    cache = make_cache(num_rows=2)
    feed(cache, [[1, 2, 3], [4, 5, 6]])
    cache.commit(0, [0, 1, 2])
    cache.commit(1, [0])
    feed(cache, [[10, 11, 12, 13, 14], [20, 21, 22, 23, 24]])
    cache.commit(1, path)
    assert kept(cache, 0) == [1, 2, 3]
    assert kept(cache, 1) == [4, *(20 + node for node in path)]


def test_rows_of_unequal_length_write_behind_their_own_ends() -> None:
    cache = make_cache(num_rows=3)
    feed(cache, [[1, 2, 3]] * 3)
    for row, length in enumerate((3, 1, 2)):
        cache.commit(row, range(length))
    seen = feed(cache, [[7, 8], [17, 18], [27, 28]])
    assert seen[0].tolist() == [1, 2, 3, 7, 8]
    assert seen[1, :3].tolist() == [1, 17, 18]
    assert seen[2, :4].tolist() == [1, 2, 27, 28]


def test_one_row_is_filled_beside_others() -> None:
    cache = make_cache(num_rows=2)
    feed(cache, [[1, 2]], first_row=1)
    cache.commit(1, range(2))
    assert cache.lengths == [0, 2]
    assert kept(cache, 1) == [1, 2]


def test_memory_starts_as_zeros() -> None:
    """A NaN in a masked slot would leak through the softmax."""
    assert not make_cache().data.any()
    cache = make_cache(num_rows=2, capacity=2)
    feed(cache, [[1, 2], [3, 4]])
    cache.commit(0, [0, 1])
    cache.reserve(3)
    assert not cache.data[..., 2:, :].any()


def test_growth_keeps_what_was_committed() -> None:
    cache = make_cache(num_rows=2, capacity=4)
    feed(cache, [[1, 2, 3], [4, 5, 6]])
    cache.commit(0, range(3))
    cache.commit(1, range(2))
    with pytest.raises(ConfigError, match="needs 6 slots, the cache holds 4"):
        cache.append(slice(0, 2), 3)
    cache.reserve(6)
    assert cache.capacity >= 6
    assert kept(cache, 0) == [1, 2, 3]
    assert kept(cache, 1) == [4, 5]
    capacity = cache.capacity
    cache.reserve(6)
    assert cache.capacity == capacity


def test_truncate_forgets_the_end() -> None:
    cache = make_cache()
    feed(cache, [[1, 2, 3]])
    cache.commit(0, range(3))
    cache.truncate(0, 1)
    assert kept(cache, 0) == [1]
    for length in (-1, 2):
        with pytest.raises(ConfigError, match="cannot truncate"):
            cache.truncate(0, length)


def test_scratch_vanishes_also_after_an_error() -> None:
    cache = make_cache()
    feed(cache, [[1, 2]])
    cache.commit(0, range(2))

    def write_and_fail() -> None:
        with cache.scratch():
            feed(cache, [[8, 9]])
            cache.commit(0, range(2))
            assert kept(cache, 0) == [1, 2, 8, 9]
            raise KeyError

    with pytest.raises(KeyError):
        write_and_fail()
    assert kept(cache, 0) == [1, 2]
    assert feed(cache, [[3]]).tolist() == [[1, 2, 3]]


def test_dropping_a_row_moves_the_last_one_into_its_place() -> None:
    cache = make_cache(num_rows=3)
    feed(cache, [[1, 2], [3, 4], [5, 6]])
    for row, length in enumerate((1, 2, 2)):
        cache.commit(row, range(length))
    cache.drop(0)
    assert (kept(cache, 0), kept(cache, 1)) == ([5, 6], [3, 4])
    assert cache.num_rows == 2
    cache.drop(1)
    assert cache.lengths == [2]
    assert feed(cache, [[9]]).tolist() == [[5, 6, 9]]


def test_transformers_reads_lengths_from_the_adapter() -> None:
    cache = make_cache(num_rows=2)
    feed(cache, [[1, 2], [3, 4]])
    cache.commit(0, range(2))
    cache.commit(1, range(1))
    cache.append(slice(0, 2), 1)
    assert cache.adapter.get_seq_length() == 2
