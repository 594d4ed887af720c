"""A chat as a training example: ids of the whole chat, and labels on the responses in it.

The chat template is asked for whole chats only, because it may refuse a part of one (a part without
a user) or write an earlier turn differently once another follows (reasoning that is left out). A
response is found in the *text* of the chat: the template renders the same chat once more with a mark
in place of the response, and the response is where the two texts differ. The text is encoded once,
and the offsets of its tokens tell which of them lie inside a response: ids of two encodings cannot be
compared, because a token may hold the end of the prompt and the beginning of the response.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from draftless.chat import RESERVED, check_variables, encode_messages, plain_messages
from draftless.errors import ConfigError, InputError

IGNORED_LABEL = -100

Message = Mapping[str, Any]

TEMPLATE_FIELDS = ("tools", "documents")
"""Fields of a record that the chat template gets under the same name."""

MORE_ARGUMENTS = "chat_template_kwargs"
"""The field of a record that holds further variables of the chat template."""

_TAKEN = RESERVED | {*TEMPLATE_FIELDS}

_REFUSED = ("system", "history", "functions", "images", "videos", "audios")
"""Fields that would change the prompt, in a form that no template takes."""


def check_template_fields(record: Mapping[str, Any], place: str) -> None:
    """Refuse fields of a record that would change the prompt, but cannot be honoured.

    Args:
        record: a training record.
        place: what errors call it.

    Raises:
        InputError: one of them has the wrong type, or cannot be passed to a chat template.
    """
    for name in TEMPLATE_FIELDS:
        value = record.get(name)
        is_list = isinstance(value, list) and all(isinstance(one, Mapping) for one in value)
        if value is not None and not is_list:
            raise InputError(f"{place}: {name!r} must be a list of objects, got {value!r:.80}")
    more = record.get(MORE_ARGUMENTS)
    if more is not None and not isinstance(more, Mapping):
        raise InputError(f"{place}: {MORE_ARGUMENTS!r} must be an object, got {more!r:.80}")
    taken = sorted(_TAKEN & set(more or ()))
    if taken:
        raise InputError(
            f"{place}: {MORE_ARGUMENTS!r} holds {', '.join(taken)}, which cannot be set there"
        )
    for name in _REFUSED:
        if record.get(name):
            raise InputError(
                f"{place}: the field {name!r} would change the prompt and cannot be used; "
                "put its content into 'messages' (tools into 'tools')"
            )


def template_arguments(record: Mapping[str, Any]) -> dict[str, Any]:
    """What a record gives to the chat template beside its messages."""
    named = {name: record[name] for name in TEMPLATE_FIELDS if record.get(name)}
    return {**named, **(record.get(MORE_ARGUMENTS) or {})}


def render_chat(
    tokenizer: Any,
    messages: Sequence[Message],
    arguments: Mapping[str, Any],
    *,
    asks: bool = False,
) -> str:
    """Text of a whole chat; with `asks` the beginning of one more response follows.

    Raises:
        InputError: the template refuses these messages.
    """
    try:
        text = tokenizer.apply_chat_template(
            list(messages), tokenize=False, add_generation_prompt=asks, **arguments
        )
    except Exception as error:  # whatever a template raises
        raise InputError(f"the chat template refuses these messages: {error}") from error
    return str(text)


def encode_question(
    tokenizer: Any, messages: Sequence[Message], arguments: Mapping[str, Any]
) -> list[int]:
    """Ids of a chat and of what asks for a response: as `encode_messages`, arguments of a record.

    Raises:
        InputError: the template refuses the chat or ignores an argument.
    """
    variables = dict(arguments)
    tools = variables.pop("tools", None)
    try:
        return encode_messages(tokenizer, messages, tools, variables)
    except ConfigError as error:  # a fault of this record, no option of the caller
        raise InputError(str(error)) from error


def encode_chat(
    tokenizer: Any,
    messages: Sequence[Message],
    arguments: Mapping[str, Any],
    *,
    is_cut: bool = False,
) -> tuple[list[int], list[int]]:
    """Ids and labels of a chat; labels are -100 outside the responses.

    A response is what the template writes for a message of the assistant, with what ends its turn and
    without what asks for it. A token that also holds text outside the response has no label.

    Args:
        tokenizer: of `transformers`, with a chat template and offsets (a fast one).
        messages: the whole chat, as `plain_messages` takes it.
        arguments: from `template_arguments`.
        is_cut: the last response was cut off: the text ends with it, and no end of the turn follows.

    Raises:
        InputError: the template refuses the chat or ignores an argument, or does not show a response.
    """
    try:
        check_variables(tokenizer, arguments)
    except ConfigError as error:  # a fault of this record, no option of the caller
        raise InputError(str(error)) from error
    messages = plain_messages(messages)
    if not getattr(tokenizer, "is_fast", False):
        raise InputError("chats need a tokenizer that tells the offsets of tokens (a fast one)")
    text = render_chat(tokenizer, messages, arguments)
    spans = _Responses(tokenizer, messages, arguments, text).spans(is_cut=is_cut)
    if is_cut and spans:
        text = text[: spans[-1][1]]
    encoding = tokenizer(text, add_special_tokens=False, return_offsets_mapping=True)
    ids = list(encoding["input_ids"])
    labels = [IGNORED_LABEL] * len(ids)
    for index, (begin, end) in enumerate(encoding["offset_mapping"]):
        if any(first <= begin < last and end <= last for first, last in spans):
            labels[index] = ids[index]
    return ids, labels


class _Responses:
    """Where the responses of one chat are in its text."""

    def __init__(
        self, tokenizer: Any, messages: Sequence[Message], arguments: Mapping[str, Any], text: str
    ) -> None:
        self._tokenizer = tokenizer
        self._messages = list(messages)
        self._arguments = arguments
        self._text = text
        # A character that this text does not hold, so that a mark differs from every response.
        self._mark = next(c for c in map(chr, range(0xE000, 0xF900)) if c not in text)

    def spans(self, *, is_cut: bool) -> list[tuple[int, int]]:
        """Begin and end of every response; what ends its turn counts, unless the response is cut."""
        turns = [i for i, one in enumerate(self._messages) if one.get("role") == "assistant"]
        if not turns:
            return []
        contents = [self._content(index) for index in turns]
        asked, end_of_turn = self._asked(), self._end_of_turn(turns[-1])
        spans, floor = [], 0
        for number, (begin, end) in enumerate(contents):
            if begin < floor:
                raise self._not_found(turns[number])
            is_last = number == len(contents) - 1
            place = self._text.rfind(asked, floor, begin) if asked else -1
            ceiling = len(self._text) if is_last else max(contents[number + 1][0], end)
            rest = "" if is_last and is_cut else self._text[end:ceiling]
            found = rest.find(end_of_turn)
            floor = end + (
                found + len(end_of_turn) if found >= 0 else _num_shared(rest, end_of_turn)
            )
            spans.append((place + len(asked) if place >= 0 else begin, floor))
        return spans

    def _content(self, index: int) -> tuple[int, int]:
        """Begin and end of what the template writes for the content of message `index`."""
        text, message = self._text, self._messages[index]
        # Tool calls and reasoning belong to the response, too, but some templates need the calls
        # for what follows.
        for others in ({}, {k: v for k, v in message.items() if k != "content"}):
            try:
                marked = self._marked(index, others)
            except InputError:
                continue
            begin = _num_shared(text, marked)
            tail = _num_shared(text[begin:][::-1], marked[begin:][::-1])
            if marked[begin : len(marked) - tail].endswith(self._mark):
                return begin, len(text) - tail
        raise self._not_found(index)

    def _marked(self, index: int, others: Mapping[str, Any]) -> str:
        """The text of the chat with a mark in place of the content of message `index`."""
        message = {**others, "role": "assistant", "content": self._mark}
        changed = [*self._messages[:index], message, *self._messages[index + 1 :]]
        return render_chat(self._tokenizer, changed, self._arguments)

    def _asked(self) -> str:
        """What asks for a response; empty where the template has no such text."""
        try:
            longer = render_chat(self._tokenizer, self._messages, self._arguments, asks=True)
        except InputError:
            return ""
        return longer[len(self._text) :] if longer.startswith(self._text) else ""

    def _end_of_turn(self, index: int) -> str:
        """What the template writes after a response that nothing follows; `index`: of the last one."""
        is_last = index == len(self._messages) - 1
        before = self._messages[:index] if is_last else self._messages
        last = {"role": "assistant", "content": self._mark}
        text = render_chat(self._tokenizer, [*before, last], self._arguments)
        return text.partition(self._mark)[2]

    def _not_found(self, index: int) -> InputError:
        return InputError(f"the chat template does not show the response in message {index}")


def _num_shared(one: str, other: str) -> int:
    """Characters that two texts begin with."""
    pairs = enumerate(zip(one, other, strict=False))
    return next((place for place, (a, b) in pairs if a != b), min(len(one), len(other)))
