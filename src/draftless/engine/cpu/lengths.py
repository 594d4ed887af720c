"""Finds numbers that a model makes from the number of tokens: a recorded pass would keep them as they were."""

from __future__ import annotations

from dataclasses import fields, is_dataclass
from typing import Any

import torch

from draftless.engine.cpu.lower import Lowering
from draftless.engine.cpu.values import TOKENS, Axis, NotLowered, Storage


def refuse_other_passes(first: Lowering, second: Lowering) -> None:
    """Compare one pass of a model, recorded with two numbers of tokens.

    Raises:
        NotLowered: they do not compute the same for a token.
    """
    storage: dict[Storage, Storage] = {}
    if not all(
        _is_same(getattr(first, name), getattr(second, name), storage)
        for name in ("token_ids", "positions", "nodes", "logits", "states")
    ):
        raise NotLowered("a pass that depends on the number of tokens")


def _is_same(a: Any, b: Any, storage: dict[Storage, Storage]) -> bool:
    """Whether parts of two passes are the same; `storage` is what of the first stands for what of the second."""
    if type(a) is not type(b):
        return False
    if isinstance(a, Storage):
        return storage.setdefault(a, b) is b and (a.size, a.dtype) == (b.size, b.dtype)
    if isinstance(a, torch.Tensor):
        return _is_same_tensor(a, b)
    if isinstance(a, Axis) and a.stride == TOKENS:
        return bool(b.stride == TOKENS)
    if isinstance(a, tuple | list):
        pairs = zip(a, b, strict=False)
        return len(a) == len(b) and all(_is_same(*both, storage) for both in pairs)
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(_is_same(a[key], b[key], storage) for key in a)
    if is_dataclass(a):
        names = (field.name for field in fields(a))
        return all(_is_same(getattr(a, name), getattr(b, name), storage) for name in names)
    return bool(a == b)


def _is_same_tensor(a: torch.Tensor, b: torch.Tensor) -> bool:
    if (a.shape, a.dtype) != (b.shape, b.dtype):
        return False
    is_one_memory = (a.data_ptr(), a.stride()) == (b.data_ptr(), b.stride())
    return is_one_memory or torch.equal(a, b)
