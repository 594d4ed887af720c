"""Views of a model without some of its sub-layers: the draft model of Self-SD (arXiv 2309.08168).

A view is made of shallow copies of the modules on the way to the skipped sub-layers. It shares every
parameter with the model, which is never touched: views of different skip sets serve concurrent
requests, and there is nothing to restore after an error.
"""

from __future__ import annotations

import copy
from collections.abc import Sequence
from typing import TypeVar

from torch import nn
from transformers import PreTrainedModel

from draftless.skip_set import SkipSet
from draftless.sublayers import NoAttention, NoLayer, NoMLP, decoder_layers, sublayer_names

_Module = TypeVar("_Module", bound=nn.Module)


_KEPT = 64  # views; a search tries hundreds, requests come with a few


class SkipViews:
    """The views of one model, each built when it is first wanted.

    Raises:
        CapabilityError: the model has no sub-layers that we know how to leave out.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self._place, layers = decoder_layers(model)
        self._num_layers = len(layers)
        self._views: dict[SkipSet, PreTrainedModel] = {}

    def __call__(self, skip_set: SkipSet) -> PreTrainedModel:
        """The view without the sub-layers of `skip_set`.

        Raises:
            ConfigError: the set names a layer that the model does not have.
        """
        view = self._views.get(skip_set)
        if view is None:
            skip_set.check(self._num_layers)
            view = self._build(skip_set)
            self._views = {**dict(list(self._views.items())[1 - _KEPT :]), skip_set: view}
        return view

    def _build(self, skip_set: SkipSet) -> PreTrainedModel:
        view = _twin(self._model)
        twin = _twins_on_the_way(view, self._place.split("."))
        for index in {*skip_set.attention, *skip_set.mlp}:
            name = str(index)
            twin._modules[name] = _without(
                twin._modules[name], index in skip_set.attention, index in skip_set.mlp
            )
        return view


def with_module(model: PreTrainedModel, old: nn.Module, new: nn.Module) -> PreTrainedModel:
    """A view of a model that has another module in one place."""
    names = [name for name, module in model.named_modules() if module is old]
    view = _twin(model)
    *way, last = names[0].split(".")
    _twins_on_the_way(view, way)._modules[last] = new
    return view


def _twins_on_the_way(view: nn.Module, names: Sequence[str]) -> nn.Module:
    """Exchange what lies on the way from a view to one of its modules by twins; returns the last of them."""
    for name in names:
        child = _twin(view._modules[name])
        view._modules[name] = child
        view = child
    return view


def _without(layer: nn.Module | None, attention: bool, mlp: bool) -> nn.Module:
    """A twin of a layer without its attention, its MLP or both."""
    if attention and mlp:
        return NoLayer()  # spares the norms, too; the residual stream passes unchanged
    assert layer is not None
    attention_name, mlp_name = sublayer_names(layer)
    twin = _twin(layer)
    twin._modules[attention_name if attention else mlp_name] = (
        NoAttention() if attention else NoMLP()
    )
    return twin


def _twin(module: _Module | None) -> _Module:
    """A copy that shares parameters, buffers and children, and whose children can be exchanged."""
    assert module is not None
    twin = copy.copy(module)
    twin._modules = dict(module._modules)
    return twin
