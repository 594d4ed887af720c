"""Skip views: the model without some sub-layers, beside the model itself, which stays as it is."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn
from transformers import PreTrainedModel

from draftless.engine.cache import KVCache
from draftless.engine.skip_view import SkipViews
from draftless.errors import CapabilityError, ConfigError
from draftless.layout import EMPTY_LAYOUT, chain_parents, tree_layout
from draftless.skip_set import SkipSet
from draftless.sublayers import decoder_layers, sublayer_names
from support.models import FAMILIES, prompt_ids, stock_model, target

SETS = {
    "none": SkipSet(),
    "attention": SkipSet(attention=(1,)),
    "mlp": SkipSet(mlp=(0, 1)),
    "half": SkipSet((0,), (1,)),
    "layer": SkipSet((1,), (1,)),
    "all": SkipSet((0, 1), (0, 1)),
}
IDS = torch.tensor([prompt_ids(9)])


@contextmanager
def hooked(model: PreTrainedModel, skip_set: SkipSet) -> Iterator[None]:
    """The oracle: hooks that replace what the skipped sub-layers return by zeros."""
    _, layers = decoder_layers(model)
    hooks = []
    for index, layer in enumerate(layers):
        attention, mlp = (getattr(layer, name) for name in sublayer_names(layer))
        if index in skip_set.attention:
            hooks.append(attention.register_forward_hook(lambda _, __, out: (0 * out[0], *out[1:])))
        if index in skip_set.mlp:
            hooks.append(mlp.register_forward_hook(lambda _, __, out: 0 * out))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


@pytest.mark.parametrize("name", SETS)
@pytest.mark.parametrize("family", FAMILIES)
@torch.inference_mode()
def test_a_view_is_the_model_under_hooks_bit_for_bit(family: str, name: str) -> None:
    model = stock_model(family)
    before = model(IDS, use_cache=False).logits
    view = SkipViews(model)(SETS[name])
    seen = view(IDS, use_cache=False).logits
    with hooked(model, SETS[name]):
        wanted = model(IDS, use_cache=False).logits
    assert torch.equal(seen, wanted)
    assert torch.equal(seen, before) == (name == "none")
    assert torch.equal(model(IDS, use_cache=False).logits, before), "the model is untouched"


def test_a_view_shares_every_parameter() -> None:
    model = copy.deepcopy(stock_model("llama"))
    views = SkipViews(model)
    view = views(SETS["half"])
    shared = {id(p) for p in model.parameters()}
    assert {id(p) for p in view.parameters()} < shared
    assert views(SkipSet((0,), (1,))) is view, "it is built once"
    with torch.no_grad():
        model.lm_head.weight.zero_()
        assert not view(IDS).logits.any()


def test_what_cannot_be_skipped_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layers \[2, 7\], and the model has 2 \(0 to 1\)"):
        SkipViews(stock_model("llama"))(SkipSet((2, 1), (7,)))
    with pytest.raises(CapabilityError, match=r"Linear has no attention called self_attn or"):
        sublayer_names(nn.Linear(2, 2))
    with pytest.raises(CapabilityError, match="has no list of layers"):
        decoder_layers(SimpleNamespace(get_decoder=lambda: nn.Linear(2, 2)))


def logits_of(
    cache: KVCache, ids: list[list[int]], skip_set: SkipSet | None = None, **more: Any
) -> torch.Tensor:
    layouts = [tree_layout(chain_parents(len(row))) if row else EMPTY_LAYOUT for row in ids]
    return torch.cat(target("llama").forward(cache, ids, layouts, skip_set=skip_set, **more))


@torch.inference_mode()
def test_threads_with_different_sets_do_not_disturb_each_other() -> None:
    """The reference switches the one model by module globals (Self-SD, bug 6)."""

    def once(skip_set: SkipSet) -> torch.Tensor:
        with torch.inference_mode():
            return logits_of(target("llama").make_cache(1, 20), [prompt_ids(9)], skip_set)

    alone = [once(skip_set) for skip_set in SETS.values()]
    with ThreadPoolExecutor(4) as pool:
        together = list(pool.map(once, [*SETS.values()] * 10))
    assert all(torch.equal(got, alone[i % len(SETS)]) for i, got in enumerate(together))


@torch.inference_mode()
def test_an_error_inside_a_view_leaves_the_model_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = target("llama")
    before = logits_of(model.make_cache(1, 20), [prompt_ids(9)])

    def broken(*_: object) -> None:
        raise RuntimeError("out of memory")

    with monkeypatch.context() as patch:
        patch.setattr(KVCache, "write", broken)
        with pytest.raises(RuntimeError, match="out of memory"):
            logits_of(model.make_cache(1, 20), [prompt_ids(9)], SETS["half"])
    assert torch.equal(logits_of(model.make_cache(1, 20), [prompt_ids(9)]), before)


@pytest.mark.parametrize("family", ["llama", "mistral", "gemma3"])
@torch.inference_mode()
def test_rows_that_feed_nothing_ride_along_unharmed(family: str) -> None:
    """Ragged rows; the one in the middle is padding, and its cache stays what it was."""
    model = target(family)
    prompts = [prompt_ids(n, seed=n) for n in (12, 5, 9)]
    cache = model.make_cache(3, 40)
    for row, prompt in enumerate(prompts):
        model.prefill(cache, row, prompt)
    before = cache.data[:, :, 1, :, :5].clone()
    layouts = [tree_layout((-1, 0)), EMPTY_LAYOUT, tree_layout((-1,))]
    logits = model.forward(cache, [[3, 4], [], [7]], layouts, skip_set=SETS["half"])
    assert torch.equal(cache.data[:, :, 1, :, :5], before)
    for row, ids in ((0, [3, 4]), (2, [7])):
        alone = model.make_cache(1, 40)
        model.prefill(alone, 0, prompts[row])
        layout = tree_layout(chain_parents(len(ids)))
        wanted = model.forward(alone, [ids], [layout], skip_set=SETS["half"])
        torch.testing.assert_close(logits[row], wanted[0], atol=1e-5, rtol=1e-5)


def test_a_search_does_not_fill_the_memory_with_views(monkeypatch: pytest.MonkeyPatch) -> None:
    """The oldest goes first, and comes back when it is wanted."""
    monkeypatch.setattr("draftless.engine.skip_view._KEPT", 2)
    views = SkipViews(stock_model("llama"))
    first, second = views(SETS["half"]), views(SETS["mlp"])
    assert (views(SETS["half"]), views(SETS["mlp"])) == (first, second)
    views(SETS["layer"])
    assert len(views._views) == 2
    assert views(SETS["mlp"]) is second
    assert views(SETS["half"]) is not first
