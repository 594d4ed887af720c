"""A record whose responses are written anew: a prompt, or the turns of a chat."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import zip_longest
from typing import Any

from draftless.chat_examples import (
    MORE_ARGUMENTS,
    TEMPLATE_FIELDS,
    check_template_fields,
    template_arguments,
)
from draftless.errors import InputError
from draftless.loops import LOOP_LIMIT, looping_tokens
from draftless.prompts import Message, Record, check_messages
from draftless.types import Output

KEPT_FIELDS = (
    "id", "task_id", "question_id", "domain", "category", "source", *TEMPLATE_FIELDS, MORE_ARGUMENTS,
)  # fmt: skip
"""Fields of a record that stay; the others may speak of the old response."""

Part = str | list[Message]
"""What stands before one response: a text, or messages."""


def check_prompt(record: Record, place: str) -> None:
    """A record to write a response to: `prompt`, or chat `messages` with one of the user.

    Raises:
        InputError: it has neither, messages of tools, which do not fit to other responses, or fields
            that would change the prompt and cannot be used.
    """
    check_template_fields(record, place)
    if "messages" not in record:
        if not isinstance(record.get("prompt"), str):
            raise InputError(
                f"{place}: a record needs a string 'prompt' or a list 'messages'; "
                f"this one has {sorted(map(str, record))}"
            )
        return
    roles = {one["role"] for one in check_messages(record["messages"], f"{place}: 'messages'")}
    if "user" not in roles or not roles <= {"system", "user", "assistant"}:
        raise InputError(
            f"{place}: 'messages' must be of 'user' (and 'system', 'assistant'), not {sorted(roles)}"
        )


def parts_of(record: Record) -> list[Part]:
    """What stands before each response of a record; the responses themselves are left out."""
    if "messages" not in record:
        return [record["prompt"]]
    parts: list[list[Message]] = [[]]
    for message in record["messages"]:
        if message["role"] != "assistant":
            parts[-1].append(dict(message))
        elif parts[-1]:
            parts.append([])
    return [part for part in parts if part]


@dataclass
class Dialogue:
    """A record on its way.

    Attributes:
        index: of the record, from 0.
        record: as it was read.
        parts: what stands before each response.
        prompt_len: tokens of the next prompt.
        seed: of all its responses.
        outputs: so far.
    """

    index: int
    record: Record
    parts: Sequence[Part]
    prompt_len: int = 0
    seed: int = 0
    outputs: list[Output] = field(default_factory=list)

    @property
    def prompt(self) -> Part:
        """What the next response answers: text, or all messages before it."""
        first = self.parts[0]
        return first if isinstance(first, str) else self._messages(len(self.outputs) + 1)

    @property
    def messages(self) -> list[Message]:
        """`prompt` as a chat: a text is one message of the user."""
        prompt = self.prompt
        return [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt

    @property
    def template_arguments(self) -> dict[str, Any]:
        """What the record gives to the chat template beside the messages."""
        return template_arguments(self.record)

    @property
    def is_open(self) -> bool:
        """Whether a response is missing; nothing follows one that is not finished."""
        is_cut = bool(self.outputs) and self.outputs[-1].finish_reason != "stop"
        return len(self.outputs) < len(self.parts) and not is_cut

    @property
    def is_loop(self) -> bool:
        """Whether the responses mostly repeat themselves."""
        num_tokens = sum(len(output.token_ids) for output in self.outputs)
        looping = sum(looping_tokens(output.token_ids) for output in self.outputs)
        return looping > LOOP_LIMIT * num_tokens

    def line(self) -> dict[str, Any]:
        """What is written about it."""
        first, last = self.parts[0], self.outputs[-1]
        said: dict[str, Any] = (
            {"prompt": first, "response": last.text}
            if isinstance(first, str)
            else {"messages": self._messages(len(self.outputs))}
        )
        kept = {name: self.record[name] for name in KEPT_FIELDS if name in self.record}
        told = {"finish_reason": last.finish_reason, "seed": self.seed}
        return {"index": self.index, **kept, **said, **told}

    def _messages(self, num_parts: int) -> list[Message]:
        """The first parts, each with its response if there is one."""
        told: list[Message] = []
        for part, output in zip_longest(self.parts[:num_parts], self.outputs):
            assert isinstance(part, list)
            told += part
            if output is not None:
                told.append({"role": "assistant", "content": output.text})
        return told
