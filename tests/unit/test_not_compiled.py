"""Where a model, a view of it or a pass cannot be compiled: the same output, and nothing is left behind."""

from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch

from draftless.drafters.layer_skip import LayerSkipDrafter
from draftless.engine.compiled import forward as forward_module
from draftless.engine.compiled import ops
from draftless.engine.compiled.compiler import PieceCompiler
from draftless.engine.target import TargetModel
from draftless.errors import CapabilityError
from draftless.layout import chain_parents, tree_layout
from draftless.params import SamplingParams
from draftless.skip_set import SkipSet
from support.driving import Job, run
from support.half_precision import half_precision_model
from support.models import INDUCTOR, prompt_ids, stock_model, target


@torch.inference_mode()
def logits_of(model: TargetModel) -> torch.Tensor:  # [5, V]
    cache = model.make_cache(1, 64)
    model.prefill(cache, 0, prompt_ids(20))
    return model.forward(cache, [[3, 4, 5, 6, 7]], [tree_layout(chain_parents(5))])[0]


def test_without_a_compiler_a_warning_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise RuntimeError("no C++ compiler\nand more lines")

    monkeypatch.setattr(PieceCompiler, "__call__", none)
    with pytest.warns(
        UserWarning, match=r"cannot be compiled here \(RuntimeError: no C\+\+ compiler\)"
    ):
        model = TargetModel(copy.deepcopy(stock_model("llama", "fp32")), compile="inductor")
    assert not model.is_compiled
    torch.testing.assert_close(logits_of(model), logits_of(target("llama", "fp32")))
    stock = copy.deepcopy(stock_model("llama", "fp32"))
    with (
        pytest.warns(UserWarning, match="cannot be compiled"),
        pytest.raises(CapabilityError, match="needs a model that can be compiled"),
    ):
        TargetModel(stock, compile="inductor", strict=True)
    assert stock.config._attn_implementation == "eager", "a refused model stays what it was"


def test_a_view_that_cannot_be_compiled_runs_without(monkeypatch: pytest.MonkeyPatch) -> None:
    def none(*_: object) -> None:
        raise RuntimeError("out of registers")

    model = TargetModel(copy.deepcopy(stock_model("llama", "fp32")), compile="inductor")
    skip_set = SkipSet((1,), (0,))
    job = Job(prompt_ids(9), SamplingParams(max_new_tokens=12))
    expected = run(model, LayerSkipDrafter(skip_set), [job])[0].token_ids
    monkeypatch.setattr(PieceCompiler, "__call__", none)
    with pytest.warns(UserWarning, match=r"some layers cannot be compiled .*out of registers"):
        model.compile_view(skip_set)
    assert model.is_compiled
    assert run(model, LayerSkipDrafter(skip_set), [job])[0].token_ids == expected


def test_a_pass_that_is_interrupted_lets_its_cache_go(monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupted(_: list[torch.Tensor]) -> None:
        raise KeyboardInterrupt

    model = target("llama", "fp32", INDUCTOR)
    logits_of(model)
    assert model._compiled is not None
    program = model._compiled._programs[None].several
    *calls, last = program._calls
    monkeypatch.setattr(program, "_calls", [*calls, replace(last, run=interrupted)])
    with pytest.raises(KeyboardInterrupt):
        logits_of(model)
    assert not hasattr(ops.CURRENT, "tree_pass")


def test_code_that_says_something_else_is_not_used(monkeypatch: pytest.MonkeyPatch) -> None:
    """A wrong result is found when the model is loaded, not in the text."""
    merge = forward_module.merge_linears

    def swapped(graph, tensors, pack):  # type: ignore[no-untyped-def]
        return merge(graph, tensors, lambda weights, biases: pack(weights[::-1], biases[::-1]))

    monkeypatch.setattr(forward_module, "merge_linears", swapped)
    monkeypatch.setattr(forward_module, "can_pack", lambda *_: True)
    with pytest.warns(UserWarning, match="cannot be compiled here"):
        model = half_precision_model()
    assert not model.is_compiled
