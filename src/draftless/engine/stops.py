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
    """Turns ids into text piece by piece; without broken characters they join to one decode's text.

    Decoding always starts some tokens before the new ones, because a token's text can depend on
    its neighbours (spaces, characters of several tokens). Bytes that form no character become
    U+FFFD; those of characters that were whole before stay what they were, though a byte-fallback
    tokenizer that decodes all at once gives up the whole run of bytes.
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
        if whole.endswith(_REPLACEMENT) and not is_last:
            return ""
        if _REPLACEMENT in whole and not whole.startswith(before):
            piece = self._decode(self._ids[self._read :])  # broken bytes right behind whole ones
        else:
            piece = whole[len(before) :]
        if piece:
            self._start, self._read = self._read, len(self._ids)
        return piece

    def _decode(self, ids: list[int]) -> str:
        return decode_ids(self._tokenizer, ids)


class StopChecker:
    """Decides, token by token, whether a request ends. One per request, never rolled back.

    Stop strings are looked for in the text with its special tokens, which `text` leaves out.

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
        self._tokenizer = tokenizer
        self._decoder = TextDecoder(tokenizer) if tokenizer is not None else None
        self._special = _special_tokens(tokenizer) if tokenizer is not None and params.stop else {}
        self._max_tokens = params.max_new_tokens
        if max_positions is not None:
            self._max_tokens = min(self._max_tokens, max_positions - row.prompt_len)
        self._device = device
        self._started = time.perf_counter()
        self._new_ids: list[int] = []
        self._num_decoded = 0
        self._is_cut = False
        self._shown = 0
        self._searched = ""  # `text` with its special tokens, where there are stop strings
        self._hidden: list[tuple[int, int]] = []  # where those stand in it
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

    def _decode_new(self, *, is_last: bool) -> None:
        if self._decoder is None or self._is_cut:
            return
        new = self._new_ids[self._num_decoded :]
        self._num_decoded = len(self._new_ids)
        # One by one, or what broken bytes become would depend on where a step ends.
        for token_id in new[:-1]:
            self._add(self._decoder.push([token_id]), token_id)
        self._add(self._decoder.push(new[-1:], is_last=is_last), new[-1] if new else None)

    def _add(self, piece: str, token_id: int | None) -> None:
        """Take the text that a token made certain."""
        self.text += piece
        if not self._params.stop:
            return
        self._searched += piece
        special = self._special.get(token_id) if token_id is not None else None
        if special is not None:
            begin = len(self._searched)
            self._searched += special
            self._hidden.append((begin, begin + len(special)))

    def _visible(self, end: int) -> int:
        """How many characters of `text` stand before `end` in what is searched."""
        return end - sum(min(end, last) - first for first, last in self._hidden if first < end)

    def _found_stop(self) -> bool:
        """Whether the newest text completes a stop string; the text is cut at the first one."""
        start = len(self._searched)
        self._decode_new(is_last=False)
        found: tuple[int, int] | None = None
        for stop in self._params.stop:
            begin = self._searched.find(stop, max(0, start - len(stop) + 1))
            if begin >= 0 and (found is None or begin < found[0]):
                found = begin, begin + len(stop)
        if found is None:
            return False
        self.text = self.text[: self._visible(found[0])]
        if self._params.include_stop:
            self.text += self._searched[slice(*found)]
        self._is_cut = True
        return True

    def _ask_criteria(self) -> bool:
        ids = [*self._row.token_ids[: self._row.prompt_len], *self._new_ids]
        batch = torch.tensor([ids], device=self._device)
        # `scores` are not kept: a criterion that needs them gets None, as from `transformers`.
        answers = [criterion(batch, None) for criterion in self._params.stopping_criteria]
        return any(bool(torch.as_tensor(answer).all()) for answer in answers)

    def take_text(self, *, is_last: bool) -> str:
        """Text not yet taken, without a tail that may be the beginning of a stop string."""
        self._decode_new(is_last=is_last)
        end = len(self.text)
        if self._params.stop and not is_last:
            end = self._visible(self._begin_of_stop())
        taken, self._shown = self.text[self._shown : end], end
        return taken

    def _begin_of_stop(self) -> int:
        """Where the longest tail of what is searched begins that a stop string may begin with."""
        end = len(self._searched)
        longest = max(len(stop) for stop in self._params.stop)
        for size in range(min(longest - 1, end), 0, -1):
            tail = self._searched[end - size :]
            if any(stop.startswith(tail) for stop in self._params.stop):
                return end - size
        return end

    def finish_text(self) -> str:
        """The whole text of a request that has ended; as the pieces of `take_text` join to it."""
        if self._decoder is not None and not self._num_decoded:
            # Nothing was decoded yet: once is faster, and the same where no character is broken.
            assert self._tokenizer is not None
            text = decode_ids(self._tokenizer, self._new_ids)
            if _REPLACEMENT not in text:
                return text
        self._decode_new(is_last=True)
        return self.text


def decode_ids(tokenizer: PreTrainedTokenizerBase, token_ids: Sequence[int]) -> str:
    """Text of ids, without special tokens."""
    text: str = tokenizer.decode(
        list(token_ids), skip_special_tokens=True, clean_up_tokenization_spaces=False
    )
    return text


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[int, str]:
    """What decoding leaves out, by id."""
    added = {i: t.content for i, t in tokenizer.added_tokens_decoder.items() if t.special}
    named = dict(zip(tokenizer.all_special_ids, tokenizer.all_special_tokens, strict=True))
    return {**named, **added}
