"""Prompts in the forms that `generate` takes: text, chats, ids, tensors, padded batches."""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from numbers import Integral, Number
from typing import Any

import numpy as np
import torch
from transformers import BatchEncoding

from draftless.errors import InputError

_FORMS = "text, token ids or chat messages (or a list of such)"


@dataclass(frozen=True)
class Padding:
    """What is known of padding where no `attention_mask` tells.

    Attributes:
        pad_token_id: of the generation config, or given with the request.
        eos_token_ids: of the request.
        tokenizer_id: the tokenizer's pad id; it makes a batch doubtful, and proves nothing.
    """

    pad_token_id: int | None = None
    eos_token_ids: Collection[int] = ()
    tokenizer_id: int | None = None


@dataclass(frozen=True)
class Prompts:
    """The prompts of one call.

    Attributes:
        items: each is text, a list of ids, or a list of messages.
        is_batch: whether a list was given, so that a list is returned.
        width: tokens of each row of a batch that was a tensor, padding included, from which
            `max_length` and `min_length` count, as in `transformers`; None: each from its own length.
    """

    items: list[Any]
    is_batch: bool
    width: int | None = None


def read_prompts(
    prompts: Any, attention_mask: Any = None, padding: Padding | None = None
) -> Prompts:
    """The prompts that were given, without padding.

    Args:
        prompts: text, a sequence of ids or messages; a list of such; an integer tensor or array `[T]`
            or `[B, T]`; or a `BatchEncoding`, which brings its own `attention_mask`.
        attention_mask: of the shape of the ids, 0 where there is padding.
        padding: for `[B, T]` without a mask. As in `transformers`, a pad id that is no EOS id is
            masked wherever it stands.

    Raises:
        InputError: a shape or type that is no prompt, a mask that does not fit, or rows that begin or
            end with a pad id that may also be text.
    """
    if isinstance(prompts, BatchEncoding):
        prompts, attention_mask = _of_encoding(prompts, attention_mask)
    is_array = isinstance(prompts, torch.Tensor | np.ndarray)
    rows = _array_rows(prompts) if is_array else _list_rows(prompts)
    if rows is None:
        one = prompts.tolist() if is_array else prompts
        if attention_mask is not None:
            one = _masked([one], [_listed(attention_mask)])[0]
        return Prompts([one], is_batch=False)
    if attention_mask is not None:
        mask = _listed(attention_mask)
        width = len(rows[0]) if rows and len({*map(_length, rows)}) == 1 else None
        return Prompts(_masked(rows, mask), is_batch=True, width=width)
    if not is_array:
        return Prompts(rows, is_batch=True)
    return Prompts(_unpadded(rows, padding or Padding()), is_batch=True, width=prompts.shape[1])


def read_call(prompts: Any, options: dict[str, Any], padding: Padding) -> Prompts:
    """The prompts of a call of `generate`, also as `transformers` has them.

    Args:
        prompts: the first argument, or None.
        options: keywords; `input_ids`, `inputs`, `attention_mask` and `token_type_ids` are taken out.
        padding: as for `read_prompts`.

    Raises:
        InputError: as `read_prompts`; or no prompts, or both forms of them.
    """
    named = [options.pop(name, None) for name in ("input_ids", "inputs")]
    given = [one for one in (prompts, *named) if one is not None]
    if len(given) != 1:
        raise InputError(f"give prompts or input_ids, got {'both' if given else 'neither'}")
    check_other_inputs({"token_type_ids": options.pop("token_type_ids", None)})
    return read_prompts(given[0], options.pop("attention_mask", None), padding)


def _of_encoding(encoding: BatchEncoding, attention_mask: Any) -> tuple[Any, Any]:
    if attention_mask is not None:
        raise InputError("a BatchEncoding brings its attention_mask; leave attention_mask out")
    named = dict(encoding)
    if "input_ids" not in named:
        raise InputError(f"a BatchEncoding needs 'input_ids', got {sorted(named)}")
    ids, mask = named.pop("input_ids"), named.pop("attention_mask", None)
    check_other_inputs(named)
    return ids, mask


def check_other_inputs(named: Mapping[str, Any]) -> None:
    """Refuse what a tokenizer may return beside ids and their mask, where it says anything.

    Raises:
        InputError: names it.
    """
    for name, value in named.items():
        says_nothing = name == "token_type_ids" and not np.any(np.asarray(_listed(value), object))
        if not says_nothing and value is not None:
            raise InputError(f"{name} is not used by this model; leave it out")


def _array_rows(array: torch.Tensor | np.ndarray) -> list[Any] | None:
    """Rows of `[B, T]`; None for `[T]`."""
    kind = array.dtype
    if kind in (torch.bool, np.dtype(bool)):
        raise InputError(f"token ids must be integers, got {kind}")
    if len(array.shape) not in (1, 2):
        raise InputError(
            f"token ids must be of shape [T] or [B, T], got {list(array.shape)}; "
            "give one row per prompt"
        )
    if len(array.shape) == 1:
        return None
    rows: list[Any] = array.tolist()
    return rows


def _list_rows(prompts: Any) -> list[Any] | None:
    """The prompts of a list, or None if it is one prompt."""
    if isinstance(prompts, str):
        return None
    if not isinstance(prompts, Sequence) or isinstance(prompts, bytes | bytearray | memoryview):
        hint = "; give a tokenizer's result as generate(**inputs)" * isinstance(prompts, Mapping)
        raise InputError(f"a prompt is {_FORMS}, not {type(prompts).__name__}{hint}")
    items = list(prompts)
    if items and isinstance(items[0], Number | Mapping):
        return None
    return [_one_of_list(item) for item in items]


def _one_of_list(item: Any) -> Any:
    if not isinstance(item, torch.Tensor | np.ndarray):
        return item
    if len(item.shape) != 1:
        raise InputError(f"a prompt in a list must be of shape [T], got {list(item.shape)}")
    return item.tolist()


def _listed(value: Any) -> Any:
    return value.tolist() if isinstance(value, torch.Tensor | np.ndarray) else value


def _length(row: Any) -> int:
    return len(row) if isinstance(row, Sequence) else -1


def _masked(rows: Sequence[Any], mask: Any) -> list[Any]:
    """Ids of each row where its mask is not 0.

    Raises:
        InputError: the mask is of another shape, or holds something else than 0 and 1.
    """
    if any(isinstance(row, str | bytes) or not isinstance(row, Sequence) for row in rows):
        raise InputError("attention_mask goes with token ids, not with text or messages")
    sizes = [len(row) for row in rows]
    told = [_length(row) for row in mask] if isinstance(mask, Sequence) else mask
    if told != sizes:
        raise InputError(
            f"attention_mask must be of the shape of the ids, rows of {sizes}, got {told}"
        )
    strange = [one for row in mask for one in row if one not in (0, 1)]
    if strange:
        raise InputError(f"attention_mask must hold 0 and 1, got {strange[0]!r}")
    return [
        [one for one, is_text in zip(ids, seen, strict=True) if is_text]
        for ids, seen in zip(rows, mask, strict=True)
    ]


def _unpadded(rows: list[list[int]], padding: Padding) -> list[list[int]]:
    """Rows of a rectangular batch without what can only be padding."""
    pad = padding.pad_token_id
    if pad is not None and pad not in padding.eos_token_ids:
        return [[one for one in row if one != pad] for row in rows]
    doubtful = [one for one in (pad, padding.tokenizer_id) if one is not None]
    for index, row in enumerate(rows if len(rows) > 1 else ()):
        edges = [one for one in (*row[:1], *row[-1:]) if one in doubtful]
        if edges:
            raise InputError(
                f"prompt {index} begins or ends with {edges[0]}, a pad id that may also be text; give "
                "attention_mask= (generate(**inputs) does), or a list of lists of ids"
            )
    return rows


def check_ids(prompt: Sequence[Any]) -> list[int]:
    """A prompt of ids as `int`s.

    Raises:
        InputError: it holds something else.
    """
    for one in prompt:
        if not isinstance(one, Integral) or isinstance(one, bool | np.bool_):
            raise InputError(f"the prompt holds {one!r}, which is no token id")
    return [int(one) for one in prompt]
