"""One visible sibling at one node is found when a model is loaded; a native pass that fails its test is done without."""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch
from transformers import PreTrainedModel

from draftless.engine import masks as masks_module
from draftless.engine import self_test as self_test_module
from draftless.engine.cpu.forward import NativeForward, states_in_float32
from draftless.engine.cpu.program import PackedWeight, Program
from draftless.engine.masks import MaskBuilder
from draftless.engine.self_test import SelfTest
from draftless.engine.target import TargetModel
from draftless.engine.tree_pass import TreePass
from draftless.errors import CapabilityError
from draftless.layout import TreeLayout, chain_parents, tree_layout
from support.models import FAMILIES, build_model, prompt_ids, stock_model
from support.outliers import plant_outliers

Patch = pytest.MonkeyPatch
BRANCHES = self_test_module._NUM_TOKENS - self_test_module._CACHED - 1
NODES = 1 + 2 * BRANCHES
"""Of the tree of the test: the root, then beside each node of the path the sibling before it."""
PAIRS = [pair for node in range(1, NODES, 2) for pair in ((node, node + 1), (node + 1, node))]
CASES = [
    (family, has_outliers)
    for family in ("llama", "qwen2", "mistral", "phi3", "gemma2", "gemma3")
    for has_outliers in (False, True)
]


def model_of(family: str, has_outliers: bool) -> PreTrainedModel:
    model = build_model(FAMILIES[family].config(), "fp32")
    return plant_outliers(model) if has_outliers else model


def opened(layout: TreeLayout, node: int, seen: int) -> TreeLayout:
    """The tree of the test with one more visible node; other trees as they are."""
    if layout.num_nodes != NODES:
        return layout
    mask = layout.mask.clone()
    mask[node, seen] = True
    return replace(layout, mask=mask)


@contextmanager
def one_visible(node: int, seen: int, kinds: Sequence[str] | None = None) -> Iterator[None]:
    """`node` sees its sibling `seen`, on all layers or on those of some types."""
    build = MaskBuilder.masks

    def spoiled(
        self: MaskBuilder, lengths: Any, layouts: Any, width: int, context: int
    ) -> dict[str, torch.Tensor]:
        right = build(self, lengths, layouts, width, context)
        wrong = MaskBuilder(self._windows, self._groups, self._dtype, self._device)
        with pytest.MonkeyPatch.context() as patch:
            lay = partial(opened, node=node, seen=seen)
            patch.setattr(masks_module, "tree_layout", lambda parents: lay(tree_layout(parents)))
            found = build(wrong, lengths, [lay(one) for one in layouts], width, context)
        return {k: found[k] if kinds is None or k in kinds else right[k] for k in right}

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(MaskBuilder, "masks", spoiled)
        yield


def tried(family: str, has_outliers: bool) -> tuple[TargetModel, SelfTest]:
    """A loaded model and a test of it, which has to be made before."""
    model = model_of(family, has_outliers)
    test = SelfTest(model)
    return TargetModel(model), test


@pytest.mark.parametrize(("family", "has_outliers"), CASES)
@torch.inference_mode()
def test_one_visible_sibling_at_any_node_is_found(family: str, has_outliers: bool) -> None:
    target, test = tried(family, has_outliers)
    groups = target._groups
    check = partial(test.check, partial(test.eager, target), target.cache_shape, "ours", groups)
    check()
    missed = []
    for kinds in (None, *([kind] for kind in target.windows if len(target.windows) > 1)):
        for node, seen in PAIRS:
            with one_visible(node, seen, kinds):
                try:
                    check()
                except CapabilityError as error:
                    assert "of a tree" in str(error)
                    continue
            missed.append((kinds, node, seen))
    assert not missed


@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3"])
def test_a_model_with_one_visible_sibling_is_refused(family: str) -> None:
    for node, seen in (PAIRS[0], PAIRS[-1]):
        with one_visible(node, seen), pytest.raises(CapabilityError, match="logits of a tree"):
            TargetModel(model_of(family, True))


def below_its_sibling(layout: TreeLayout, node: int) -> TreeLayout:
    if layout.num_nodes != NODES:
        return layout
    parents = list(layout.parents)
    parents[node] = node - 1
    return tree_layout(tuple(parents))


@pytest.mark.parametrize(("family", "has_outliers"), CASES)
@torch.inference_mode()
def test_one_visible_sibling_in_the_native_pass_is_found(family: str, has_outliers: bool) -> None:
    """Which sees what the parents tell: a node there stands below its sibling."""
    target, test = tried(family, has_outliers)
    kinds = list(target.windows)
    make = partial(states_in_float32, test.view, kinds, target.num_layers)
    check = partial(test.check, make, target.cache_shape, "native")
    check()
    run = Program.__call__
    missed = []
    for node in range(2, NODES, 2):

        def spoiled(self: Program, tree_pass: TreePass, node: int = node) -> torch.Tensor:
            tree_pass.layouts = [below_its_sibling(one, node) for one in tree_pass.layouts]
            return run(self, tree_pass)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Program, "__call__", spoiled)
            try:
                check()
            except CapabilityError:
                continue
        missed.append(node)
    assert not missed


def test_siblings_have_tokens_of_their_own() -> None:
    for family in ("llama", "gemma3"):
        test = SelfTest(copy.deepcopy(stock_model(family, "fp32")))
        path = test._tokens[self_test_module._CACHED :]
        siblings = test._siblings(path)
        assert len(siblings) == BRANCHES
        assert len(set(siblings)) > BRANCHES // 2
        assert all(one != beside for one, beside in zip(siblings, path[1:], strict=True))


def test_a_large_head_is_tried_in_parts() -> None:
    config = copy.deepcopy(stock_model("qwen2", "fp32").config)
    config.vocab_size = 4001
    model = build_model(config, "bf16")
    test = SelfTest(model)
    rows = test.head_rows
    assert rows is not None
    assert (len(rows), int(rows[0]), int(rows[-1])) == (3 * self_test_module._HEAD_ROWS, 0, 4000)
    assert test.view.get_output_embeddings() is not model.get_output_embeddings()
    assert len(model.get_output_embeddings().weight) == 4001, "the model keeps its own"
    assert isinstance(TargetModel(model, compile=True)._compiled, NativeForward)


# --- a native pass that fails its test ----------------------------------------------------------


def wrong_float32(patch: Patch) -> None:
    """The native pass takes weights in another order."""
    init = PackedWeight.__init__

    def spoiled(self: PackedWeight, weights: Any, biases: Any, *rest: Any) -> None:
        init(self, [weight.flip(0) for weight in weights], biases, *rest)

    patch.setattr(PackedWeight, "__init__", spoiled)


def wrong_in_half_precision(patch: Patch) -> None:
    pack = NativeForward._pack

    def spoiled(self: NativeForward, weights: Any, biases: Any, dtype: Any) -> PackedWeight:
        return pack(self, [weight.flip(0) for weight in weights], biases, dtype)

    patch.setattr(NativeForward, "_pack", spoiled)


def raising(patch: Patch) -> None:
    def spoiled(*_: Any) -> torch.Tensor:
        raise RuntimeError("no such kernel\nand more")

    patch.setattr(Program, "__call__", spoiled)


REASONS = {
    wrong_float32: "gives other logits of a text with the native forward pass",
    wrong_in_half_precision: "with the native forward pass are off by",
    raising: "RuntimeError: no such kernel",
}


@pytest.mark.parametrize("plant", REASONS)
@torch.inference_mode()
def test_auto_goes_on_without_a_wrong_native_pass(
    plant: Any, monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    plant(monkeypatch)
    model = build_model(FAMILIES["llama"].config(), "bf16")
    ids = prompt_ids(12)
    wanted = model(torch.tensor([ids])).logits[0]
    with caplog.at_level(logging.WARNING, "draftless"):
        target = TargetModel(model, compile="auto")
    lines = [one.getMessage() for one in caplog.records if "native forward pass" in one.msg]
    assert len(lines) == 1
    assert REASONS[plant] in lines[0]
    assert "going on with the model's own code" in lines[0]
    assert "\n" not in lines[0] and "attention='eager'" not in lines[0]
    assert not target.is_compiled
    cache = target.make_cache(1, 32)
    found = target.forward(cache, [ids], [tree_layout(chain_parents(len(ids)))])[0]
    torch.testing.assert_close(found, wanted, atol=0.1, rtol=0.1)


@pytest.mark.parametrize("plant", REASONS)
def test_a_wrong_native_pass_that_was_asked_for_is_refused(plant: Any, monkeypatch: Patch) -> None:
    plant(monkeypatch)
    with pytest.raises(CapabilityError, match="load it with compile=False") as raised:
        TargetModel(build_model(FAMILIES["llama"].config(), "bf16"), compile=True)
    assert REASONS[plant] in str(raised.value)
    assert "attention='eager'" not in str(raised.value)
    monkeypatch.undo()
    TargetModel(build_model(FAMILIES["llama"].config(), "bf16"), compile=True)


def test_auto_refuses_a_model_whose_own_code_fails() -> None:
    with one_visible(*PAIRS[0]), pytest.raises(CapabilityError, match="4-D masks"):
        TargetModel(build_model(FAMILIES["llama"].config(), "bf16"), compile="auto")


def test_new_weights_that_fail_the_test_end_the_native_pass(
    monkeypatch: Patch, caplog: pytest.LogCaptureFixture
) -> None:
    model = build_model(FAMILIES["llama"].config(), "bf16")
    target = TargetModel(model, compile="auto")
    assert target.is_compiled
    with torch.no_grad():
        model.get_output_embeddings().weight.mul_(2)
    wrong_float32(monkeypatch)
    target.check_unchanged()
    assert not target.is_compiled
    assert "going on with the model's own code" in caplog.text
