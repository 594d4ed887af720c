"""Pieces compiled by Inductor: what the eager one says, from few pieces, once, and not without a compiler."""

from __future__ import annotations

import copy
import gc
import weakref
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters
from transformers import AutoModelForCausalLM

from draftless import Draftless
from draftless.engine import target as target_module
from draftless.engine.cache import KVCache
from draftless.engine.compiled import linears
from draftless.engine.compiled import strict as strict_module
from draftless.engine.compiled.huge_pages import HugePages
from draftless.engine.int8 import is_int8, split_int8
from draftless.engine.target import TargetModel
from draftless.errors import CapabilityError, ConfigError
from draftless.layout import EMPTY_LAYOUT, chain_parents, tree_layout
from draftless.skip_set import SkipSet
from support.half_precision import (
    STRICT_WAYS,
    half_precision_model,
    strict_target,
    use_torchs_attention,
)
from support.models import (
    FAMILIES_OF_INDUCTOR,
    INDUCTOR,
    VOCAB_SIZE,
    prompt_ids,
    stock_model,
    target,
)

WIDTHS = (1, 2, 7, 16, 33)
SKIP_SETS = (SkipSet((0,), (1,)), SkipSet((0, 1), ()), SkipSet((0, 1), (0, 1)))


def filled(model: TargetModel, lengths: tuple[int, ...]) -> KVCache:
    cache = model.make_cache(len(lengths), 128)
    for row, length in enumerate(lengths):
        model.prefill(cache, row, prompt_ids(length, row))
    return cache


def bushy(width: int) -> tuple[int, ...]:
    """Parents of a tree in which nobody stands at its depth."""
    return (-1, *(max(0, node - 3) for node in range(width - 1)))


def logits_of(
    model: TargetModel,
    width: int,
    lengths: tuple[int, ...] = (20,),
    skip_set: SkipSet | None = None,
) -> torch.Tensor:
    ids = [(5 * index + 3) % VOCAB_SIZE for index in range(width)]
    with torch.inference_mode():
        cache = filled(model, lengths)
        layout = tree_layout(bushy(width))
        rows = len(lengths)
        return torch.stack(model.forward(cache, [ids] * rows, [layout] * rows, skip_set=skip_set))


@pytest.mark.parametrize("family", FAMILIES_OF_INDUCTOR)
@pytest.mark.parametrize("lengths", [(20,), (20, 20), (31, 3, 12)])
def test_it_says_what_the_model_says(family: str, lengths: tuple[int, ...]) -> None:
    """Also beyond the sliding window (8), and for rows of unequal length."""
    for width in WIDTHS:
        wanted = logits_of(target(family, "fp32"), width, lengths)
        found = logits_of(target(family, "fp32", INDUCTOR), width, lengths)
        torch.testing.assert_close(found, wanted, atol=2e-4, rtol=2e-4)


@pytest.mark.parametrize("family", FAMILIES_OF_INDUCTOR)
@torch.inference_mode()
def test_a_prompt_is_read_as_the_model_reads_it(
    family: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same keys and values and the same mean, over the bounds of parts, without the eager model."""
    token_ids, found = prompt_ids(70, 2), []
    for compile_option in ((), (INDUCTOR,)):
        model = target(family, "fp32", *compile_option)
        if compile_option:
            monkeypatch.setattr(target_module, "_COMPILED_CHUNK", 32)
            monkeypatch.setattr(type(model.model.base_model), "forward", None)
        cache = model.make_cache(2, 128)
        prefill = model.prefill(cache, 1, token_ids)
        assert cache.lengths == [0, 70]
        found.append((cache.data[:, :, 1, :, :70].clone(), prefill.vector))
    for wanted, ours in zip(*found, strict=True):
        torch.testing.assert_close(ours, wanted, atol=2e-4, rtol=2e-4)


@torch.inference_mode()
def test_a_row_that_feeds_nothing_is_padding() -> None:
    eager, compiled = target("llama", "fp32"), target("llama", "fp32", INDUCTOR)
    found = []
    for model in (eager, compiled):
        cache = filled(model, (9, 4))
        layouts = [tree_layout(chain_parents(2)), EMPTY_LAYOUT]
        found.append(model.forward(cache, [[1, 2], []], layouts)[0])
    torch.testing.assert_close(*found, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("family", FAMILIES_OF_INDUCTOR)
def test_nothing_is_compiled_after_the_start(family: str) -> None:
    """No width, length, number of rows or capacity asks for other code; layers share theirs."""
    model = target(family, "fp32", INDUCTOR)
    assert model._compiled is not None
    before = model._compiled.num_compiled, counters["inductor"].copy()
    for width in (1, 2, 3, 64):
        for lengths in ((5,), (90,), (8, 30, 1), (300,)):
            logits_of(model, width, lengths)
    assert (model._compiled.num_compiled, counters["inductor"]) == before


def test_layers_share_their_code() -> None:
    """Ten layers need no more pieces than two: before, a layer, after, the head; for one token and for more."""
    compiled = []
    for num_layers in (2, 10):
        config = copy.deepcopy(stock_model("llama", "fp32").config)
        config.num_hidden_layers = num_layers
        model = TargetModel(AutoModelForCausalLM.from_config(config), compile="inductor")
        assert model._compiled is not None
        compiled.append(model._compiled.num_compiled)
    assert compiled == [8, 8]


@pytest.mark.parametrize("skip_set", SKIP_SETS)
def test_views_are_compiled_from_the_same_pieces(skip_set: SkipSet) -> None:
    eager, compiled = target("llama", "fp32"), target("llama", "fp32", INDUCTOR)
    assert compiled._compiled is not None
    compiled.compile_view(skip_set)
    assert compiled._compiled.handles(skip_set, 4)
    for width in (1, 4):
        wanted = logits_of(eager, width, skip_set=skip_set)
        found = logits_of(compiled, width, skip_set=skip_set)
        torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)
    whole = logits_of(compiled, 4)
    assert (whole - logits_of(compiled, 4, skip_set=skip_set)).abs().max() > 0.1


def test_a_view_that_was_not_compiled_runs_as_it_is() -> None:
    compiled = target("gemma2", "fp32", INDUCTOR)
    skip_set = SkipSet((1,), (1,))
    assert compiled._compiled is not None
    assert not compiled._compiled.handles(skip_set, 1)
    wanted = logits_of(target("gemma2", "fp32"), 3, skip_set=skip_set)
    torch.testing.assert_close(logits_of(compiled, 3, skip_set=skip_set), wanted)


@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_a_cache_goes_with_its_request(dtype: str) -> None:
    """Nothing that a pass works on stays in the thread."""
    model = half_precision_model() if dtype == "bf16" else target("llama", "fp32", INDUCTOR)
    cache = filled(model, (9,))
    with torch.inference_mode():
        model.forward(cache, [[1, 2]], [tree_layout((-1, 0))])
    memory = weakref.ref(cache.data)
    del cache
    gc.collect()
    assert memory() is None


def test_packed_weights_exist_once() -> None:
    """Not once for one token, once for more and once for each view."""
    model = half_precision_model()
    assert model._compiled is not None
    layers = [m for m in model.model.modules() if isinstance(m, torch.nn.Linear)]
    expected = sum(linear.weight.nbytes for linear in layers)
    if not model._compiled.packed_bytes:
        pytest.skip("this machine packs nothing")
    assert model._compiled.packed_bytes == expected
    model.compile_view(SkipSet((0,), (1,)))
    assert model._compiled.packed_bytes == expected
    gc.collect()
    copies = [
        tensor
        for tensor in gc.get_objects()
        if type(tensor) is torch.Tensor and tensor.layout == torch.strided and tensor.dim() == 2
        and tensor.shape[0] == 128 + 2 * 64 and not tensor.is_meta
    ]  # fmt: skip
    assert not copies, "the concatenation is needed for packing only"


def product(packed: linears.PackedLinear, x: torch.Tensor) -> torch.Tensor:
    """What a graph computes with packed weights."""
    if isinstance(packed, linears.OneDNNLinear):
        return packed(x)
    assert isinstance(packed, linears.BlockedLinear)
    stored = packed.weight, packed.scale, packed.bias, packed.width
    out: torch.Tensor = torch.ops.draftless_cpu.linear(x, *stored)
    return out


@pytest.mark.parametrize("is_blocked", [True, False])
@pytest.mark.parametrize("num_rows", [1, 2, 3, 4, 5, 6, 7, 32, 70])
def test_parts_with_and_without_a_bias_go_side_by_side(
    num_rows: int, is_blocked: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For more rows than go at once, and outputs that fill no block."""
    if is_blocked and not linears.has_blocked():
        pytest.skip("this CPU has no products of bfloat16")
    monkeypatch.setattr(linears, "has_blocked", lambda: is_blocked)
    x = torch.randn(num_rows, 2, 48, dtype=torch.bfloat16).transpose(0, 1)
    weights = [torch.randn(size, 48, dtype=torch.bfloat16) for size in (33, 64)]
    bias = torch.randn(33, dtype=torch.bfloat16)
    packed = linears.pack(weights, [bias, None], HugePages())
    assert isinstance(packed, linears.BlockedLinear) == is_blocked
    wide = x.float()
    wanted = torch.cat([wide @ weights[0].float().T + bias, wide @ weights[1].float().T], dim=2)
    torch.testing.assert_close(product(packed, x).float(), wanted, atol=0.05, rtol=0.01)


@pytest.mark.skipif(not linears.has_blocked(), reason="this CPU has no products of bfloat16")
def test_a_row_has_the_same_bits_beside_any_few_others() -> None:
    """Rows are summed in one order, however many there are: plain decoding and a small tree agree."""
    draw = torch.Generator().manual_seed(0)
    x = torch.randn(6, 96, generator=draw).bfloat16()
    weight = torch.randn(130, 96, generator=draw).bfloat16()
    packed = linears.pack([weight], [None], HugePages())
    alone = torch.cat([product(packed, x[row : row + 1]) for row in range(6)])
    torch.testing.assert_close(alone.float(), x.float() @ weight.float().T, atol=0.1, rtol=0.01)
    for num_rows in range(2, 7):
        assert product(packed, x[:num_rows]).equal(alone[:num_rows])


def test_options_that_do_not_go_together() -> None:
    model = copy.deepcopy(stock_model("llama", "fp32"))
    with pytest.raises(ConfigError, match="goes with attention='draftless', not 'eager'"):
        TargetModel(model, "eager", compile=True)
    with pytest.raises(ConfigError, match="strict=True needs compile=True"):
        TargetModel(model, strict=True)


# --- int8 --------------------------------------------------------------------------------------


def test_a_weight_rounded_to_int8_is_the_same_number_in_both() -> None:
    weight = torch.randn(70, 48).mul(torch.logspace(-20, 3, 70)[:, None]).bfloat16()
    weight[3] = 0.0
    integers, scale = split_int8(weight)
    rounded = (integers.float() * scale[:, None]).bfloat16()
    assert torch.equal(rounded.float(), integers.float() * scale[:, None])
    assert is_int8(rounded)
    assert not is_int8(weight)
    error = (rounded.float() - weight.float()).abs().amax(1)
    assert bool((error <= weight.float().abs().amax(1) / 127).all()), "at most one step of 1/127"


@torch.inference_mode()
def test_the_rounded_model_is_the_target_compiled_or_not(tmp_path: Path) -> None:
    half_precision_model().model.save_pretrained(tmp_path)
    bf16 = TargetModel.from_pretrained(tmp_path, compile="inductor")
    eager = TargetModel.from_pretrained(tmp_path, int8=True)
    compiled = TargetModel.from_pretrained(tmp_path, int8=True, compile="inductor")
    for ours, theirs in zip(eager.model.parameters(), compiled.model.parameters(), strict=True):
        assert torch.equal(ours, theirs)
    near = (logits_of(compiled, 5) - logits_of(eager, 5)).abs().max()
    far = (logits_of(bf16, 5) - logits_of(eager, 5)).abs().max()
    assert near < far / 2
    if linears.has_blocked():
        assert bf16._compiled is not None
        assert compiled._compiled is not None
        head = compiled.model.lm_head.weight
        halved = bf16._compiled.packed_bytes - head.nbytes
        assert compiled._compiled.packed_bytes == halved // 2 + head.nbytes


def test_a_loaded_model_keeps_its_weights() -> None:
    with pytest.raises(ConfigError, match="a loaded model has its dtype, device and weights"):
        Draftless.from_pretrained(copy.deepcopy(stock_model("llama")), int8=True)


# --- strict ------------------------------------------------------------------------------------


@pytest.fixture(scope="module", params=STRICT_WAYS)
def strict_model(request: pytest.FixtureRequest) -> TargetModel:
    return strict_target(request.param)


@torch.inference_mode()
def test_strict_bits_do_not_depend_on_the_tree(strict_model: TargetModel) -> None:
    tokens = prompt_ids(40, 5)
    cache = filled(strict_model, (23,))
    plain = []
    for token_id in tokens[:9]:
        plain.append(strict_model.forward(cache, [[token_id]], [tree_layout((-1,))])[0][0])
        cache.commit(0, [0])
    for siblings in (0, 1, 4):
        path, ids, parents = [0], [tokens[0]], [-1]
        for token_id in tokens[1:9]:
            ids += [*range(siblings), token_id]
            parents += [path[-1]] * (siblings + 1)
            path.append(len(ids) - 1)
        # In a batch, too, and beside a longer row.
        cache = filled(strict_model, (23, 50))
        layouts = [tree_layout(tuple(parents)), tree_layout((-1,))]
        logits = strict_model.forward(cache, [ids, [1]], layouts)
        assert torch.equal(logits[0][path], torch.stack(plain)), siblings


@pytest.mark.skipif(
    not linears.has_blocked() or torch.cpu._is_amx_tile_supported(),
    reason="products of many rows are not our own here",
)
def test_ordinary_passes_have_stable_bits_on_our_own_operators() -> None:
    """So strict costs nothing: and with torch's attention they have not."""
    model = TargetModel(half_precision_model(3).model, compile="inductor", strict=True)
    assert model._has_stable_bits
    with pytest.MonkeyPatch.context() as patch:
        use_torchs_attention(patch)
        assert not half_precision_model(3)._has_stable_bits


def test_other_attention_is_not_trusted_with_stable_bits() -> None:
    """Soft-capped scores go through torch, whose sums may move with more keys than are tried."""
    model = copy.deepcopy(stock_model("gemma2", "fp32")).to(torch.bfloat16)
    compiled = TargetModel(model, compile="inductor")
    assert compiled._compiled is not None
    assert not compiled._compiled.has_own_operators


def test_strict_is_refused_where_bits_move(
    strict_model: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Here: because a node looks at the slots as they lie, siblings included."""
    use_torchs_attention(monkeypatch)
    monkeypatch.setattr(strict_module, "_in_order", lambda states, *_: states)
    with pytest.raises(CapabilityError, match="gives other bits in a pass of"):
        TargetModel(strict_model.model, compile="inductor", strict=True)
