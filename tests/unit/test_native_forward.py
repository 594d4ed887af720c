"""The native forward pass computes what the stock model computes, with bits that only a node's path decides."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import pytest
import torch
from torch.nn import functional

from draftless.engine.cpu.library import library
from draftless.engine.cpu.values import NotLowered
from draftless.engine.masks import MaskBuilder
from draftless.engine.tree_pass import TreePass
from draftless.layout import EMPTY_LAYOUT, chain_parents, tree_layout
from draftless.skip_set import SkipSet
from support.models import WINDOW, WINDOWED
from support.native_forward import NAMES, REFUSED, Native, native, stock, stock_logits, tokens

BOTH = ("fp32", "bf16")
FEW = (
    "llama",
    "gemma3",
    "gpt_neox",
    "phi",
)  # each for another kind of norms, windows and residuals
INVARIANT = [(name, dtype) for name in NAMES for dtype in BOTH]

LIMITS = {"fp32": 1e-4, "bf16": 0.1}


def distance(a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
    return (a.float() - b.float()).pow(2).mean().sqrt()


@pytest.fixture(autouse=True)
def one_thread() -> Iterator[None]:
    yield
    try:
        library().set_threads(1)
    except Exception:  # noqa: BLE001 - the tests were skipped: there is no library
        return


@pytest.mark.parametrize("name", NAMES)
def test_logits_in_fp32_are_those_of_the_stock_model(name: str) -> None:
    ids = tokens(40)
    expected = stock_logits(name, "fp32", ids)
    model = native(name, "fp32")
    found = model.run(model.cache(), [ids])[0]
    assert (found - expected).abs().max() < 1e-4 * expected.std()


@pytest.mark.parametrize("name", NAMES)
def test_logits_in_bf16_are_as_near_to_fp32_as_those_of_the_stock_model(name: str) -> None:
    ids = tokens(40)
    reference = stock_logits(name, "fp32", ids)
    model = native(name, "bf16")
    found = model.run(model.cache(), [ids])[0].float()
    of_stock = (stock_logits(name, "bf16", ids) - reference).pow(2).mean().sqrt()
    assert (found - reference).pow(2).mean().sqrt() < 1.5 * of_stock + 1e-3 * reference.std()


def test_a_product_that_depends_on_no_token_keeps_its_numbers() -> None:
    """A recorded pass leaves out products on tokens, whose numbers no one reads."""
    norm, given = stock("llama", "fp32").model.norm, torch.ones(3, 32)
    gate = 0.1 * torch.randn(32, 32, generator=torch.Generator().manual_seed(0))

    def scaled(_: object, __: object, found: torch.Tensor) -> torch.Tensor:
        return found * functional.linear(given, gate)[1]

    hook = norm.register_forward_hook(scaled)
    try:
        ids = tokens(9)
        model, expected = Native("llama", "fp32"), stock_logits("llama", "fp32", ids)
    finally:
        hook.remove()
    assert (model.run(model.cache(), [ids])[0] - expected).abs().max() < 1e-4 * expected.std()


def test_logits_follow_the_positions() -> None:
    ids = [7] * 20  # all alike: only positions tell the tokens apart
    model = native("gpt2", "fp32")
    expected = stock_logits("gpt2", "fp32", ids)
    assert (expected[0] - expected[-1]).abs().max() > 0.1
    assert (model.run(model.cache(), [ids])[0] - expected).abs().max() < 1e-4 * expected.std()


def with_siblings(path: list[int]) -> tuple[list[int], tuple[int, ...], list[int]]:
    """A tree in which two siblings, one with a child, stand before every node of the path."""
    ids, parents, places = [path[0]], [-1], [0]
    for token in path[1:]:
        parent = places[-1]
        ids += [(token + 1) % 61, (token + 2) % 61, (token + 3) % 61, token]
        parents += [parent, parent, len(ids) - 4, parent]
        places.append(len(ids) - 1)
    return ids, tuple(parents), places


@pytest.mark.parametrize(("name", "dtype"), INVARIANT)
def test_a_node_of_a_tree_has_the_bits_of_plain_decoding(name: str, dtype: str) -> None:
    ids = tokens(30, seed=1)
    model = native(name, dtype)
    expected = model.one_by_one(ids)
    cache = model.cache()
    found = [model.run(cache, [ids[:17]])[0]]
    cache.commit(0, range(17))
    nodes, parents, places = with_siblings(ids[17:])
    found.append(model.run(cache, [nodes], [parents])[0, places])
    assert torch.equal(torch.cat(found), expected)


@pytest.mark.parametrize(("name", "dtype"), [(name, dtype) for name in FEW for dtype in BOTH])
@pytest.mark.parametrize("num_threads", [1, 2, 3])
def test_rows_of_unequal_length_and_threads_do_not_change_bits(
    name: str, dtype: str, num_threads: int
) -> None:
    rows = [tokens(21, seed=2), tokens(70, seed=3), tokens(34, seed=4)]
    model = native(name, dtype)
    expected = [model.one_by_one(row) for row in rows]
    library().set_threads(num_threads)
    cache = model.cache(3)
    lengths = [14, 65, 33]  # each row's own number of tokens in the second pass
    first = model.run(cache, [row[:n] for row, n in zip(rows, lengths, strict=True)])
    for index, length in enumerate(lengths):
        cache.commit(index, range(length))
    second = model.run(cache, [row[n:] for row, n in zip(rows, lengths, strict=True)])
    for index, (row, length) in enumerate(zip(rows, lengths, strict=True)):
        found = torch.cat([first[index, :length], second[index, : len(row) - length]])
        assert torch.equal(found, expected[index])


def test_some_rows_of_a_cache_and_rows_that_feed_nothing() -> None:
    """The rows 1 to 3 of five, of which the second feeds nothing in this pass; the others stay."""
    model = native("llama", "bf16")
    ids = tokens(20, seed=8)
    expected = model.one_by_one(ids)
    cache = model.cache(5)
    cache.data.fill_(3.0)
    layouts = [tree_layout(chain_parents(20)), EMPTY_LAYOUT, tree_layout(chain_parents(20))]
    masks = MaskBuilder(model.windows, 2, model.dtype, torch.device("cpu"))
    with torch.inference_mode():
        tree_pass = TreePass(cache, slice(1, 4), [ids, [], ids], layouts, masks)
        found = model.forward(None, tree_pass).reshape(3, 20, -1)
    assert torch.equal(found[0], expected)
    assert torch.equal(found[2], expected)
    assert (cache.data[:, :, [0, 4]] == 3).all()
    assert torch.equal(cache.data[:, :, 1], cache.data[:, :, 3])
    assert not (cache.data[:, :, 1, :, :20] == 3).all()


def test_a_row_that_is_full_may_be_padded() -> None:
    """Behind the last position that the model has, there is none for what fills its row up."""
    model = native("gpt2", "fp32")
    full, ids = tokens(512, seed=9), tokens(5, seed=10)
    expected = model.one_by_one(ids)
    cache = model.cache(2, 640)
    model.run(cache, [full, []])
    cache.commit(0, range(512))
    assert torch.equal(model.run(cache, [[], ids])[1], expected)
    with pytest.raises(IndexError, match="no row"):
        model.run(cache, [[3], ids])
    assert torch.equal(model.run(cache, [[], ids])[1], expected)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("name", WINDOWED)
def test_windows_hide_what_lies_before_them(name: str, dtype: str) -> None:
    """In a model of windows alone a far token changes nothing, in the others it does."""
    model = native(name, dtype)
    first, second = tokens(60), tokens(60)
    second[0] = (first[0] + 1) % 61
    found = [model.run(model.cache(), [ids])[0] for ids in (first, second)]
    reach = model.num_layers * (WINDOW - 1)
    is_global = None in model.windows.values()
    assert torch.equal(found[0][reach + 1 :], found[1][reach + 1 :]) is not is_global
    assert not torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("name", FEW)
def test_skip_sets(name: str, dtype: str) -> None:
    model = native(name, dtype)
    ids = tokens(12, seed=5)
    packed = model.forward.packed_bytes
    skip_set = SkipSet(attention=(0,), mlp=(1,))
    model.forward.prepare(skip_set)
    assert model.forward.handles(skip_set, 5)
    assert not model.forward.handles(SkipSet(attention=(1,)), 5)
    view = model.forward._view_of(skip_set)
    view.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            expected = view(torch.tensor([ids]), use_cache=False).logits[0].float()
    finally:
        view.set_attn_implementation("draftless")
    found = model.run(model.cache(), [ids], skip_set=skip_set)[0]
    assert distance(found, expected) < LIMITS[dtype] * expected.std()
    assert torch.equal(found, model.one_by_one(ids, skip_set))
    assert not torch.equal(found, model.run(model.cache(), [ids])[0])
    if name in ("llama", "gemma3"):  # the weights of a layer are packed as before
        assert model.forward.packed_bytes == packed


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("name", NAMES)
def test_hidden_is_what_the_head_reads(name: str, dtype: str) -> None:
    model = native(name, dtype)
    ids = tokens(20, seed=6)
    read: list[torch.Tensor] = []
    head = model.model.get_output_embeddings()
    hook = head.register_forward_pre_hook(lambda _, args: read.append(args[0]))
    model.model.set_attn_implementation("eager")
    try:
        with torch.inference_mode():
            model.model(torch.tensor([ids]), use_cache=False)
    finally:
        hook.remove()
        model.model.set_attn_implementation("draftless")
    with torch.inference_mode():
        found = model.forward.hidden(model.tree_pass(model.cache(), [ids]))
    assert found is not None
    assert found.shape == read[0].shape
    assert distance(found, read[0]) < LIMITS[dtype] * read[0].float().std()


@pytest.mark.parametrize("dtype", BOTH)
def test_hidden_fills_the_cache_as_a_whole_pass_does(dtype: str) -> None:
    model = native("llama", dtype)
    caches = model.cache(), model.cache()
    with torch.inference_mode():
        model.forward.hidden(model.tree_pass(caches[0], [tokens(20)]))
    model.run(caches[1], [tokens(20)])
    assert caches[1].data.abs().amax() > 0
    assert torch.equal(caches[0].data, caches[1].data)


@pytest.mark.parametrize("num_threads", [1, 3])
def test_concurrent_calls(num_threads: int) -> None:
    models = [native("llama", "bf16"), native("gpt_neox", "fp32"), native("gemma3", "bf16")]
    rows = [tokens(25, seed=seed) for seed in range(6)]
    expected = [models[i % 3].one_by_one(row) for i, row in enumerate(rows)]
    library().set_threads(num_threads)
    wrong: list[int] = []

    def decode(index: int) -> None:
        for _ in range(3):
            found = models[index % 3].one_by_one(rows[index])
            if not torch.equal(found, expected[index]):
                wrong.append(index)

    threads = [
        threading.Thread(target=decode, args=(index,), daemon=True) for index in range(len(rows))
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(60)
    assert not any(thread.is_alive() for thread in threads)
    assert not wrong


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
def test_rejected_drafts_do_not_change_what_is_kept(value: float, dtype: str) -> None:
    """Their keys and values lie behind the committed slots, and beside the path in a tree."""
    model = Native("gemma3", dtype)
    ids = tokens(24, seed=7)
    expected = model.one_by_one(ids)
    bad = next(token for token in range(61) if token not in ids)
    embedding = model.model.get_input_embeddings().weight
    with torch.inference_mode():
        embedding[bad] = value
    cache = model.cache()
    cache.data.fill_(value)  # what was never written
    assert torch.equal(model.run(cache, [ids[:16]])[0], expected[:16])
    cache.commit(0, range(16))
    nodes, parents, places = with_siblings(ids[16:20])
    nodes = [token if node in places else bad for node, token in enumerate(nodes)]
    logits = model.run(cache, [nodes], [parents])[0]
    assert logits[1].isnan().all()  # the drafts are bad indeed
    assert torch.equal(logits[places], expected[16:20])
    cache.commit(0, places)
    assert torch.equal(model.run(cache, [ids[20:]])[0], expected[20:])


@pytest.mark.parametrize("name", REFUSED)
@pytest.mark.parametrize("dtype", BOTH)
def test_models_that_cannot_be_lowered(name: str, dtype: str) -> None:
    with pytest.raises(NotLowered):
        Native(name, dtype)


def test_other_dtypes_are_refused() -> None:
    model = native("llama", "fp32")
    with pytest.raises(NotLowered, match="float64"):
        type(model.forward)(lambda _: model.model, ["full_attention"], 2, torch.float64)
