"""How a prompt of a request becomes token ids."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from draftless.chat import check_text, encode_messages
from draftless.errors import ConfigError, InputError
from draftless.inputs import check_ids
from draftless.prompts import Message, PromptFormat

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True)
class PromptEncoder:
    """A tokenizer, and the prompt format that the checkpoint was trained with.

    Attributes:
        tokenizer: None where there are ids only.
        prompt_format: of `draftless.json`; None leaves text as it is.
    """

    tokenizer: PreTrainedTokenizerBase | None
    prompt_format: PromptFormat | None

    @property
    def has_chat_template(self) -> bool:
        """Whether chats can be encoded."""
        is_plain = self.prompt_format is not None and self.prompt_format.kind == "plain"
        return not is_plain and bool(getattr(self.tokenizer, "chat_template", None))

    def encode(self, prompt: Any) -> list[int]:
        """Ids of text, ids or messages.

        Raises:
            InputError: it is none of them, or cannot be used.
            ConfigError: there is no tokenizer.
        """
        if isinstance(prompt, str):
            return self._encode_text(prompt)
        if not isinstance(prompt, Sequence) or isinstance(prompt, bytes | bytearray | memoryview):
            raise InputError(f"a prompt is text, token ids or chat messages, not {prompt!r:.80}")
        if any(isinstance(item, Mapping) for item in prompt):
            return self.encode_chat(prompt)
        return check_ids(prompt)

    def _encode_text(self, text: str) -> list[int]:
        if self.tokenizer is None:
            raise ConfigError("text needs a tokenizer; pass tokenizer= or token ids")
        check_text(text, "the prompt")
        if self.prompt_format is None:
            return list(self.tokenizer(text).input_ids)
        if self.prompt_format.kind == "chat":
            return self.encode_chat([{"role": "user", "content": text}])
        return self.prompt_format.encode_prompt(self.tokenizer, text)

    def encode_chat(
        self,
        messages: Sequence[Message],
        tools: Sequence[Any] | None = None,
        chat_template_kwargs: Mapping[str, Any] | None = None,
    ) -> list[int]:
        """Ids of a conversation and of what asks for the next answer.

        Raises:
            InputError: the checkpoint was trained on plain prompts; and as `encode_messages`.
            ConfigError: there is no tokenizer; and as `encode_messages`.
        """
        if self.tokenizer is None:
            raise ConfigError("messages need a tokenizer; pass tokenizer= or token ids")
        if self.prompt_format is not None and self.prompt_format.kind == "plain":
            raise InputError(
                "this checkpoint was trained on plain prompts; give text instead of chat messages"
            )
        return encode_messages(self.tokenizer, messages, tools, chat_template_kwargs)
