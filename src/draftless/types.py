"""The nouns that all parts share. No part of the engine is imported here."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import torch

from draftless.errors import ConfigError, InputError
from draftless.layout import TreeLayout, tree_layout
from draftless.noise import KeyedNoise

if TYPE_CHECKING:
    from draftless.params import SamplingParams

FinishReason = Literal["stop", "length", "time", "criteria"]
"""`stop`: an EOS id or a stop string; `length`: max_new_tokens or the model's context is full;
`time`: max_time_s; `criteria`: a user's stopping criterion."""

LastKind = Literal["recovered", "bonus", "stopped"]
"""What the last token of a step is: drawn where no child carried it, drawn after a whole path was
accepted (at a leaf), or the token that completed a stop."""
