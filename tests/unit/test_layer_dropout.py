"""Layer dropout: really skipped, the same on every rank, and gone afterwards."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from draftless.errors import CapabilityError, ConfigError
from draftless.training.layer_dropout import LayerDropout
from support.small_model import training_model


def test_deeper_layers_are_dropped_more_often_and_the_first_never() -> None:
    layers = nn.ModuleList(copy.deepcopy(training_model().model.layers[0]) for _ in range(5))
    dropout = LayerDropout(layers, 0.4)
    rates = sum(dropout.choose(step).astype(float) for step in range(4000)) / 4000
    for layer, expected in enumerate((0.0, 0.1, 0.2, 0.3, 0.4)):
        assert abs(rates[layer] - expected).max() < 0.04  # 5 sigma


def test_the_choice_is_a_function_of_seed_and_step() -> None:
    layers = training_model().model.layers
    first, again = LayerDropout(layers, 0.9, seed=3), LayerDropout(layers, 0.9, seed=3)
    choices = [first.choose(step).tobytes() for step in range(40)]
    assert choices == [again.choose(step).tobytes() for step in range(40)]
    assert len(set(choices)) > 1
    other = LayerDropout(layers, 0.9, seed=4)
    assert choices != [other.choose(step).tobytes() for step in range(40)]


def test_skipped_sub_layers_are_not_computed_and_come_back() -> None:
    model = training_model().double().eval()
    ids = torch.arange(12)[None]
    whole = model(ids).logits
    dropout = LayerDropout(model.model.layers, 0.9)
    step = next(s for s in range(100) if dropout.choose(s)[1].tolist() == [True, False])
    attention = model.model.layers[1].self_attn
    calls = []
    handle = attention.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(RuntimeError, match="inside"), dropout.skipped(step):
        skipped = model(ids).logits
        raise RuntimeError("inside")
    handle.remove()
    assert not calls
    # By hand: an attention whose output projection is zero adds nothing.
    twin = copy.deepcopy(model)
    nn.init.zeros_(twin.model.layers[1].self_attn.o_proj.weight)
    assert torch.equal(skipped, twin(ids).logits)
    assert model.model.layers[1].self_attn is attention
    assert torch.equal(model(ids).logits, whole)


def test_skipped_parameters_get_no_gradient() -> None:
    model = training_model()
    dropout = LayerDropout(model.model.layers, 0.9)
    step = next(s for s in range(100) if dropout.choose(s)[1].tolist() == [False, True])
    with dropout.skipped(step):
        model(torch.arange(6)[None]).logits.sum().backward()
    layer = model.model.layers[1]
    assert layer.mlp.up_proj.weight.grad is None
    assert layer.self_attn.q_proj.weight.grad is not None


@pytest.mark.parametrize("maximum", [-0.1, 1.0, float("nan")])
def test_a_rate_outside_its_range_is_refused(maximum: float) -> None:
    with pytest.raises(ConfigError, match="layer dropout"):
        LayerDropout(training_model().model.layers, maximum)


def test_layers_of_another_kind_are_refused() -> None:
    with pytest.raises(CapabilityError, match="Linear"):
        LayerDropout(nn.ModuleList([nn.Linear(2, 2)]), 0.4)
