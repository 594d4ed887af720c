"""Chat messages of a request: checked, and rendered by the tokenizer's own chat template."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from draftless.errors import ConfigError, InputError

RESERVED = frozenset({
    "conversation", "messages", "tools", "chat_template", "add_generation_prompt",
    "continue_final_message", "tokenize", "padding", "truncation", "max_length", "return_tensors",
    "return_dict", "return_assistant_tokens_mask", "tokenizer_kwargs",
})  # fmt: skip
"""Arguments of `apply_chat_template` itself; a template's own variables may have any other name."""


def check_text(text: str, name: str) -> None:
    """Refuse text that is no Unicode: half of a surrogate pair, as broken escapes and bytes leave.

    Raises:
        InputError: names the character and its place.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        raise InputError(
            f"{name} holds half of a surrogate pair (U+{ord(text[error.start]):04X} at character "
            f"{error.start}), which is no Unicode text; decode its source as UTF-8, or remove it"
        ) from error


def plain_messages(messages: object) -> list[dict[str, Any]]:
    """Messages as chat templates expect them, with their content as one string.

    Args:
        messages: each with `role` and `content`: text, OpenAI's list of `{"type": "text", "text": ...}`
            parts (joined with line breaks), or None beside `tool_calls`. Other keys stay.

    Raises:
        InputError: names the message that cannot be used.
    """
    if not isinstance(messages, Sequence) or isinstance(messages, str | bytes) or not messages:
        raise InputError(
            'messages must be a list like [{"role": "user", "content": "Hello"}], '
            f"got {messages!r:.80}"
        )
    return [_plain_message(one, f"message {index}") for index, one in enumerate(messages)]


def _plain_message(message: object, name: str) -> dict[str, Any]:
    if not isinstance(message, Mapping):
        raise InputError(f"{name} must be an object with 'role' and 'content', got {message!r:.80}")
    role, content = message.get("role"), message.get("content")
    if not isinstance(role, str):
        raise InputError(f"{name} needs a string 'role' ('system', 'user', ...), got {role!r:.80}")
    plain = dict(message)
    if isinstance(content, Sequence) and not isinstance(content, str | bytes):
        plain["content"] = "\n".join(_part_text(part, name) for part in content)
    elif content is None and message.get("tool_calls"):
        plain["content"] = ""
    elif not isinstance(content, str):
        raise InputError(
            f"{name} ({role}) needs 'content': a string or a list of text parts, got {content!r:.80}"
        )
    for text in _texts(plain):
        check_text(text, name)
    return plain


def _part_text(part: object, name: str) -> str:
    if isinstance(part, str):
        return part
    kind = part.get("type") if isinstance(part, Mapping) else type(part).__name__
    text = part.get("text") if isinstance(part, Mapping) else None
    if kind != "text" or not isinstance(text, str):
        raise InputError(
            f"{name} holds a content part of type {kind!r}; parts must be like "
            '{"type": "text", "text": "Hello"}, this model reads text alone'
        )
    return text


def _texts(value: object) -> Iterator[str]:
    """All strings inside a message."""
    if isinstance(value, str):
        yield value
    elif isinstance(value, Mapping):
        for one in value.values():
            yield from _texts(one)
    elif isinstance(value, Sequence) and not isinstance(value, bytes):
        for one in value:
            yield from _texts(one)


def encode_messages(
    tokenizer: Any,
    messages: object,
    tools: Sequence[Any] | None = None,
    chat_template_kwargs: Mapping[str, Any] | None = None,
) -> list[int]:
    """Ids of a chat and of what asks for the next answer.

    Args:
        tokenizer: of `transformers`, with a chat template.
        messages: as `plain_messages` takes them.
        tools: JSON schemas or functions, as `apply_chat_template` takes them.
        chat_template_kwargs: further variables of the template, such as `enable_thinking`.

    Raises:
        InputError: a message cannot be used, or the template refuses the chat.
        ConfigError: there is no template, or it does not use what it is given.
    """
    plain = plain_messages(messages)
    variables = dict(chat_template_kwargs or {})
    if tools:
        variables["tools"] = list(tools)
    reserved = sorted(RESERVED.intersection(chat_template_kwargs or {}))
    if reserved:
        raise ConfigError(
            f"chat_template_kwargs must hold variables of the template, got {', '.join(reserved)}; "
            "leave it out (tools are an argument of their own)"
        )
    check_variables(tokenizer, variables)
    try:
        ids = tokenizer.apply_chat_template(
            plain, tokenize=True, add_generation_prompt=True, return_dict=False, **variables
        )
    except Exception as error:
        reason = " ".join(str(error).split()) or type(error).__name__
        raise InputError(f"the chat template refuses these messages: {reason}") from error
    return [int(token_id) for token_id in ids]


def check_variables(tokenizer: Any, variables: Mapping[str, Any]) -> None:
    """Refuse variables that the chat template would ignore, `tools` among them.

    Raises:
        InputError: there is no chat template, or none can be chosen.
        ConfigError: the template does not use one of the variables.
    """
    if not getattr(tokenizer, "chat_template", None):
        raise InputError("this tokenizer has no chat template; give text instead of messages")
    if not variables:
        return
    try:
        source = tokenizer.get_chat_template(None, variables.get("tools"))
    except ValueError as error:
        raise InputError(f"the chat template cannot be chosen: {error}") from error
    for name in variables:
        # A template ignores what it does not know; nothing that is asked for may be ignored.
        if not re.search(rf"\b{re.escape(name)}\b", source):
            raise ConfigError(
                f"this tokenizer's chat template does not use {name!r}; leave it out, or put what it "
                "says into a system message"
            )
