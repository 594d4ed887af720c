"""One table of drafters by name. A drafter in it enters the equivalence tests by itself."""

from __future__ import annotations

import inspect
import reprlib
from collections.abc import Callable, Collection, Mapping
from importlib import import_module
from numbers import Integral
from typing import Any

from draftless.engine.latency import prices_of
from draftless.engine.target import TargetModel
from draftless.errors import ConfigError, DraftlessError
from draftless.types import Drafter

DRAFTERS = {
    "none": "draftless.drafters.ngram:NullDrafter",
    "auto": "draftless.drafters.auto:AutoDrafter",
    "prompt-lookup": "draftless.drafters.ngram:PromptLookupDrafter",
    "recycling": "draftless.drafters.recycling:RecyclingDrafter",
    "tr-jacobi": "draftless.drafters.jacobi:TRJacobiDrafter",
    "sdsat": "draftless.drafters.sdsat:SDSATDrafter",
    "layer-skip": "draftless.drafters.layer_skip:LayerSkipDrafter",
    "knn-ssd": "draftless.drafters.knn_router:KNNSSDDrafter",
}

NEED_CHECKPOINT = ("sdsat", "layer-skip", "knn-ssd")
"""Drafters that need something of their own in the checkpoint: adaptive tokens, a skip set, anchors.
The others work with any model."""

_BUDGETS = (4, 5, 6, 8, 10, 12, 16, 20, 24, 32, 40, 48, 64, 80)
_LITTLE_MORE = 1.25  # times a pass over one node
_CONTEXT = 512  # cached tokens


def make_drafter(name: str, options: Mapping[str, Any] | None = None) -> Drafter:
    """Build a drafter.

    Raises:
        ConfigError: for an unknown name or option (the message lists the known ones), and for a value
            that the drafter cannot take.
    """
    options = options or {}
    check_options(name, options)
    try:
        drafter: Drafter = _factory(name)(**options)
    except DraftlessError:
        raise
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"drafter {name!r} cannot take {reprlib.repr(dict(options))}: {error}"
        ) from error
    return drafter


def check_options(name: str, options: Mapping[str, Any]) -> None:
    """Refuse what can be refused before there is a model: the name, and options by name and type.

    Raises:
        ConfigError: as `make_drafter`.
    """
    if name not in DRAFTERS:
        raise ConfigError(f"drafter {name!r} is unknown; known are {', '.join(DRAFTERS)}")
    known = inspect.signature(_factory(name)).parameters
    unknown = [key for key in options if key not in known]
    if unknown:
        raise ConfigError(
            f"drafter {name!r} has no option {', '.join(unknown)}; it knows {', '.join(known) or 'none'}"
        )
    for key, value in options.items():
        default = known[key].default
        if isinstance(default, bool):
            fits = isinstance(value, bool)
        elif isinstance(default, int):
            fits = isinstance(value, Integral) and not isinstance(value, bool)
        else:
            continue  # the drafter itself looks at the rest
        if not fits:
            raise ConfigError(
                f"{key}={value!r} of {name} is no {type(default).__name__}, as {default} is"
            )


def default_options(name: str, target: TargetModel, given: Collection[str] = ()) -> dict[str, Any]:
    """Options that depend on the machine and the model rather than on the method, but for `given`.

    A budget of `recycling` is as many nodes as cost little more than one, by the price list of the machine.
    A trained drafter's guesses are worth more: 16 nodes on a CPU, where an eager pass over them costs little
    more than one, and 70 on a GPU, where they cost two (`benchmarks/README.md`); `auto` asks the price list.
    """
    if name not in DRAFTERS:
        return {}
    wanted: dict[str, Callable[[], Any]] = {
        "budget": lambda: _budget(name, target),
        "vocab_size": lambda: target.vocab_size,
        "num_layers": lambda: target.num_layers,
        "model_fingerprint": lambda: target.fingerprint(),
        "prices": lambda: prices_of(target),
    }
    known = inspect.signature(_factory(name)).parameters
    # What is given is not looked up: prices would be measured for nothing.
    return {key: value() for key, value in wanted.items() if key in known and key not in given}


def _budget(name: str, target: TargetModel) -> int:
    if name != "recycling":
        return 16 if target.device.type == "cpu" else 70
    prices = prices_of(target)
    most = _LITTLE_MORE * prices.forward_s(1, _CONTEXT, 1)
    fits = [n for n in _BUDGETS if prices.forward_s(n, _CONTEXT, 1) <= most]
    return max(fits, default=_BUDGETS[0])


def _factory(name: str) -> Any:
    module, _, attribute = DRAFTERS[name].partition(":")
    return getattr(import_module(module), attribute)
