"""One table of drafters by name. A drafter in it enters the equivalence tests by itself."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from importlib import import_module
from typing import Any

from draftless.errors import ConfigError
from draftless.types import Drafter

DRAFTERS = {
    "none": "draftless.drafters.ngram:NullDrafter",
    "prompt-lookup": "draftless.drafters.ngram:PromptLookupDrafter",
    "recycling": "draftless.drafters.recycling:RecyclingDrafter",
    "tr-jacobi": "draftless.drafters.jacobi:TRJacobiDrafter",
    "sdsat": "draftless.drafters.sdsat:SDSATDrafter",
}

NEED_TRAINING = ("sdsat",)
"""Drafters that a checkpoint must have been trained for; the others work with any model."""


def make_drafter(name: str, options: Mapping[str, Any] | None = None) -> Drafter:
    """Build a drafter.

    Raises:
        ConfigError: for an unknown name or option; the message lists the known ones.
    """
    if name not in DRAFTERS:
        raise ConfigError(f"drafter {name!r} is unknown; known are {', '.join(DRAFTERS)}")
    factory = _factory(name)
    known = list(inspect.signature(factory).parameters)
    unknown = [key for key in options or {} if key not in known]
    if unknown:
        raise ConfigError(
            f"drafter {name!r} has no option {', '.join(unknown)}; it knows {', '.join(known) or 'none'}"
        )
    drafter: Drafter = factory(**(options or {}))
    return drafter


def default_options(name: str, device_type: str, vocab_size: int) -> dict[str, Any]:
    """Options that depend on the machine and the model rather than on the method.

    On a CPU a pass over 16 rows costs little more than one over a single row, and 70 rows cost
    about two (DESIGN 8; `benchmarks/results/`), so that is where the default budget stops.
    """
    if name not in DRAFTERS:
        return {}
    wanted = {"budget": 16 if device_type == "cpu" else 70, "vocab_size": vocab_size}
    known = inspect.signature(_factory(name)).parameters
    return {key: value for key, value in wanted.items() if key in known}


def _factory(name: str) -> Any:
    module, _, attribute = DRAFTERS[name].partition(":")
    return getattr(import_module(module), attribute)
