"""A target from a peft adapter: its base model with the adapter merged."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from draftless.engine.capabilities import parse_device, parse_dtype
from draftless.engine.int8 import round_to_int8
from draftless.engine.target import TargetModel
from draftless.wrapped import load_adapter


def load_adapter_target(
    path: str | Path,
    *,
    dtype: Any,
    device: Any,
    int8: bool,
    hub_options: Mapping[str, Any],
    **how: Any,
) -> TargetModel:
    """As `TargetModel.from_pretrained` for a folder or hub id of an adapter; errors as there, and as
    `load_adapter`."""
    place = parse_device(device)
    merged = load_adapter(path, parse_dtype(dtype), hub_options)
    if int8:
        round_to_int8(merged)
    return TargetModel(merged if place is None else merged.to(place), **how)
