"""How a prompt and a response become token ids: one place for training and for generation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from typing import Any, Literal

from draftless.chat import encode_messages
from draftless.chat_examples import IGNORED_LABEL as IGNORED_LABEL
from draftless.chat_examples import Message as Message
from draftless.chat_examples import encode_chat, template_arguments
from draftless.errors import ArtifactError, ConfigError, InputError

Record = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class PromptFormat:
    """How a checkpoint wants prompts; stored in its `draftless.json`.

    Attributes:
        kind: `plain` joins strings; `chat` uses the tokenizer's chat template.
        prefix: stands before the prompt (`plain` only).
        suffix: stands between the prompt and the response (`plain` only).
        bos: a BOS id begins the prompt (`plain` only; templates write their own).
        eos: an EOS id ends the response in training (`plain` only).
    """

    kind: Literal["plain", "chat"] = "plain"
    prefix: str = ""
    suffix: str = "\n"
    bos: bool = True
    eos: bool = True

    def __post_init__(self) -> None:
        if self.kind not in ("plain", "chat"):
            raise ConfigError(f"prompt format {self.kind!r} is unknown; use 'plain' or 'chat'")

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> PromptFormat:
        """Read what `to_dict` wrote.

        Raises:
            ArtifactError: on an unknown key.
        """
        unknown = set(data) - {field.name for field in fields(cls)}
        if unknown:
            raise ArtifactError(f"the prompt format has unknown keys: {sorted(unknown)}")
        return cls(**data)

    def encode_prompt(self, tokenizer: Any, prompt: str | Sequence[Message]) -> list[int]:
        """Ids that stand before the response.

        Args:
            tokenizer: of `transformers`; `chat` needs one with a chat template.
            prompt: text, or chat messages (`chat` only; text is one user message there).

        Raises:
            InputError: messages for a plain format, a special token that the tokenizer lacks, or
                messages that its template refuses.
        """
        if self.kind == "chat":
            messages = [_user(prompt)] if isinstance(prompt, str) else prompt
            return encode_messages(tokenizer, messages)
        if not isinstance(prompt, str):
            raise InputError(
                "this checkpoint was trained on plain prompts; give text instead of chat messages"
            )
        bos = [_special_id(tokenizer, "bos")] if self.bos else []
        return bos + _encode(tokenizer, self.prefix + prompt + self.suffix)

    def encode_example(self, tokenizer: Any, record: Record) -> tuple[list[int], list[int]]:
        """Ids and labels of one training record; labels are ignored outside the responses.

        Args:
            tokenizer: of `transformers`.
            record: with `prompt` and `response`, or with chat `messages`; `chat` also takes `tools`,
                `documents` and `chat_template_kwargs`. With `finish_reason: length` the last
                response was cut off: no end follows it.

        Returns:
            Ids and labels of equal length; a label is its own id (models shift by one) or -100.

        Raises:
            InputError: as `encode_prompt`, a record that has neither form, or fields that the format
                or the template cannot honour.
        """
        messages = record.get("messages")
        is_cut = record.get("finish_reason") == "length"
        if self.kind == "chat":
            if messages is None:
                prompt, response = _pair(record)
                messages = [_user(prompt), {"role": "assistant", "content": response}]
            return encode_chat(tokenizer, messages, template_arguments(record), is_cut=is_cut)
        needs_chat = "messages" if messages is not None else ", ".join(template_arguments(record))
        if needs_chat:
            raise InputError(f"{needs_chat} need the prompt format 'chat' (option --format chat)")
        prompt, response = _pair(record)
        prompt_ids = self.encode_prompt(tokenizer, prompt)
        response_ids = _encode(tokenizer, response)
        if self.eos and not is_cut:
            response_ids.append(_special_id(tokenizer, "eos"))
        return prompt_ids + response_ids, [IGNORED_LABEL] * len(prompt_ids) + response_ids


def check_messages(messages: object, name: str) -> list[Message]:
    """The messages of a chat, checked.

    Raises:
        InputError: if it is no list of objects with `role` and `content`, or an empty one.
    """
    is_chat = isinstance(messages, list) and all(
        isinstance(message, Mapping) and {"role", "content"} <= set(message) for message in messages
    )
    if not is_chat or not messages:
        raise InputError(f'{name} must be a list like [{{"role": "user", "content": "Hello"}}]')
    assert isinstance(messages, list)
    return messages


def _user(prompt: str) -> Message:
    return {"role": "user", "content": prompt}


def _pair(record: Record) -> tuple[str, str]:
    prompt, response = record.get("prompt"), record.get("response")
    if not isinstance(prompt, str) or not isinstance(response, str):
        raise InputError(
            "a record needs the strings 'prompt' and 'response', or a list 'messages'; "
            f"this one has {sorted(record)}"
        )
    return prompt, response


def _encode(tokenizer: Any, text: str) -> list[int]:
    return list(tokenizer.encode(text, add_special_tokens=False))


def _special_id(tokenizer: Any, name: str) -> int:
    token_id = getattr(tokenizer, f"{name}_token_id")
    if token_id is None:
        raise InputError(f"the prompt format wants a {name.upper()} token, the tokenizer has none")
    return int(token_id)
