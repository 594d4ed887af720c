"""Draftless: a causal language model drafts for itself; same output, fewer forward passes."""

from draftless.errors import (
    ArtifactError,
    CapabilityError,
    ConfigError,
    DraftlessError,
    InputError,
)
from draftless.model import Draftless, embedded_model_path
from draftless.params import SamplingParams
from draftless.types import Chunk, Drafter, DraftTree, Output, Row, Statistics, StepRecord, Verdict

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
