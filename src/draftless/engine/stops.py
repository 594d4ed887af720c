"""Stops, tested at every committed token, and text that is safe to show."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from draftless.errors import ConfigError
from draftless.types import FinishReason, Row

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\ufffd"  # what a decoder writes for bytes that are not yet a whole character


class TextDecoder:
    """Turns ids into text piece by piece; the pieces join to the text of one decode.

    Decoding always starts some tokens before the new ones, because a token's text can depend on
    its neighbours (spaces, characters of several tokens).
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._ids: list[int] = []
        self._start = 0  # first id of the window that is decoded again
        self._read = 0  # ids up to here are in the text that was handed out

    def push(self, token_ids: Sequence[int], *, is_last: bool = False) -> str:
        """Text that these tokens make certain; an unfinished character waits for `is_last`."""
        self._ids.extend(token_ids)
        before = self._decode(self._ids[self._start : self._read])
        whole = self._decode(self._ids[self._start :])
        if len(whole) <= len(before) or (whole.endswith(_REPLACEMENT) and not is_last):
            return ""
        self._start, self._read = self._read, len(self._ids)
        return whole[len(before) :]

    def _decode(self, ids: list[int]) -> str:
        text: str = self._tokenizer.decode(
            ids, skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        return text


class StopChecker:
    """Decides, token by token, whether a request ends. One per request, never rolled back.

    Attributes:
        text: the text decoded so far, without the stop string unless `include_stop`.
    """

    def __init__(
        self,
        row: Row,
        eos_token_ids: Sequence[int],
        tokenizer: PreTrainedTokenizerBase | None,
        max_positions: int | None,
        device: torch.device,
    ) -> None:
        params = row.params
        if params.stop and tokenizer is None:
            raise ConfigError(f"stop={list(params.stop)} needs a tokenizer; pass tokenizer=")
        self._row = row
        self._params = params
        self._limit_s = params.max_time_s
        self._end_ids = set(() if params.ignore_eos else eos_token_ids)
        if tokenizer is not None:
            # Special tokens never show in the text, so as stops they are ids.
            added = tokenizer.get_added_vocab()
            self._end_ids.update(added[stop] for stop in params.stop if stop in added)
        self._decoder = TextDecoder(tokenizer) if tokenizer is not None else None
        self._max_tokens = params.max_new_tokens
        if max_positions is not None:
            self._max_tokens = min(self._max_tokens, max_positions - row.prompt_len)
        self._device = device
        self._started = time.perf_counter()
        self._new_ids: list[int] = []
        self._num_decoded = 0
        self._is_cut = False
        self._shown = 0
        self.text = ""

    @property
    def num_left(self) -> int:
        """How many more tokens the request may emit."""
        return self._max_tokens - len(self._new_ids)

    def push(self, token_id: int) -> FinishReason | None:
        """Take the next committed token; a reason if the request ends with it."""
        self._new_ids.append(token_id)
        if self._params.stop and self._found_stop():
            return "stop"
        if token_id in self._end_ids:
            return "stop"
        if self._params.stopping_criteria and self._ask_criteria():
            return "criteria"
        if len(self._new_ids) >= self._max_tokens:
            return "length"
        if self._limit_s is not None and time.perf_counter() - self._started > self._limit_s:
            return "time"
        return None

    def _decode_new(self, *, is_last: bool, at_once: bool = False) -> None:
        if self._decoder is None or self._is_cut:
            return
        new = self._new_ids[self._num_decoded :]
        # One by one, or what broken bytes become would depend on where a step ends.
        for token_id in () if at_once else new[:-1]:
            self.text += self._decoder.push([token_id])
            new = new[1:]
        self.text += self._decoder.push(new, is_last=is_last)
        self._num_decoded = len(self._new_ids)

    def _found_stop(self) -> bool:
        """Whether the newest text completes a stop string; the text is cut at the first one."""
        searched = len(self.text)
        self._decode_new(is_last=False)
        found: tuple[int, int] | None = None
        for stop in self._params.stop:
            begin = self.text.find(stop, max(0, searched - len(stop) + 1))
            if begin >= 0 and (found is None or begin < found[0]):
                found = begin, begin + len(stop)
        if found is None:
            return False
        self.text = self.text[: found[1] if self._params.include_stop else found[0]]
        self._is_cut = True
        return True

    def _ask_criteria(self) -> bool:
        ids = [*self._row.token_ids[: self._row.prompt_len], *self._new_ids]
        batch = torch.tensor([ids], device=self._device)
        # `scores` are not kept: a criterion that needs them gets None, as from `transformers`.
        answers = [criterion(batch, None) for criterion in self._params.stopping_criteria]
        return any(bool(torch.as_tensor(answer).all()) for answer in answers)

    def take_text(self, *, is_last: bool, at_once: bool = False) -> str:
        """Text not yet taken, without a tail that may be the beginning of a stop string.

        `at_once` decodes all new tokens as one, which is faster.
        """
        self._decode_new(is_last=is_last, at_once=at_once)
        end = len(self.text)
        longest = 0 if is_last else max((len(stop) for stop in self._params.stop), default=0)
        for size in range(min(longest - 1, end - self._shown), 0, -1):
            if any(stop.startswith(self.text[end - size :]) for stop in self._params.stop):
                end -= size
                break
        taken, self._shown = self.text[self._shown : end], end
        return taken
