"""Draftless: a causal language model drafts for itself; same output, fewer forward passes.

Names are imported when they are first used (PEP 562): torch and transformers take seconds, which
`draftless --help` and a caught Ctrl-C should not wait for.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from draftless.errors import (
        ArtifactError,
        CapabilityError,
        ConfigError,
        DraftlessError,
        InputError,
    )
    from draftless.model import Draftless, embedded_model_path
    from draftless.params import SamplingParams
    from draftless.types import (
        Chunk,
        Drafter,
        DraftTree,
        Output,
        Row,
        Statistics,
        StepRecord,
        Verdict,
    )

__version__ = "0.1.0"

__all__ = [
    "ArtifactError",
    "CapabilityError",
    "Chunk",
    "ConfigError",
    "DraftTree",
    "Drafter",
    "Draftless",
    "DraftlessError",
    "InputError",
    "Output",
    "Row",
    "SamplingParams",
    "Statistics",
    "StepRecord",
    "Verdict",
    "__version__",
    "embedded_model_path",
]

_HOMES = {
    "errors": ("ArtifactError", "CapabilityError", "ConfigError", "DraftlessError", "InputError"),
    "model": ("Draftless", "embedded_model_path"),
    "params": ("SamplingParams",),
    "types": (
        "Chunk", "DraftTree", "Drafter", "Output", "Row", "Statistics", "StepRecord", "Verdict",
    ),
}  # fmt: skip


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(import_module(f"draftless.{module}"), name)
    raise AttributeError(f"module 'draftless' has no attribute {name!r}")


def __dir__() -> list[str]:
    return list(__all__)
