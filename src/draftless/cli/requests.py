"""What `draftless generate` and `chat` ask: prompts as ids, and the sampling in force."""

from __future__ import annotations

import json
import secrets
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftless.cli.encodings import read_standard_input, read_text
from draftless.errors import ConfigError, InputError

if TYPE_CHECKING:
    from draftless import Draftless, SamplingParams
    from draftless.prompts import Message

_ONE_PROMPT = (
    'give one of --prompt "TEXT", --prompt-file FILE, --chat FILE and --prompts FILE, '
    "or text on standard input"
)

_SHOWN = {
    "temperature": 0.0, "top_k": 0, "top_p": 1.0, "min_p": 0.0, "repetition_penalty": 1.0,
    "no_repeat_ngram_size": 0, "min_new_tokens": 0, "ignore_eos": False,
}  # fmt: skip
"""Options that the line about the sampling names, and the values that are not worth a word."""


@dataclass(frozen=True)
class Asked:
    """One prompt as it was given.

    Attributes:
        prompt: text, or chat messages.
        place: the file and line that errors name; empty for the only prompt.
        kept: fields of its record that are copied to its result.
    """

    prompt: str | list[Message]
    place: str = ""
    kept: Mapping[str, Any] = field(default_factory=dict)


def read_prompts(
    prompt: str | None, prompt_file: Path | None, chat: Path | None, prompts: Path | None
) -> list[Asked]:
    """What was given, or standard input where nothing was and nobody types there.

    Raises:
        InputError: there is none or more than one source, or a file that cannot be used.
    """
    if sum(one is not None for one in (prompt, prompt_file, chat, prompts)) > 1:
        raise InputError(_ONE_PROMPT)
    if prompt is not None:
        return [Asked(prompt)]
    if prompt_file is not None:
        return [Asked(read_text(prompt_file))]
    if chat is not None:
        return [Asked(read_messages(read_text(chat), str(chat)))]
    if prompts is not None:
        return read_records(read_text(prompts), str(prompts))
    text = "" if sys.stdin is None or sys.stdin.isatty() else read_standard_input()
    if not text.strip():
        raise InputError(_ONE_PROMPT)
    return [Asked(text.removesuffix("\n"))]  # the line end that echo adds


def read_messages(source: str, name: str) -> list[Message]:
    """Chat messages from JSON text.

    Raises:
        InputError: if it is no list of objects with `role` and `content`.
    """
    from draftless.prompts import check_messages

    try:
        messages = json.loads(source)
    except json.JSONDecodeError as error:
        raise InputError(f"{name} is not JSON: {error}") from error
    return check_messages(messages, name)


def read_records(source: str, name: str) -> list[Asked]:
    """Prompts from JSON lines: objects with `prompt`, or with chat `messages`, and perhaps an `id`.

    Raises:
        InputError: names the line that is something else, or there is none.
    """
    from draftless.jsonl import parse_lines
    from draftless.prompts import check_messages

    found = []
    for line in parse_lines(source.split("\n"), name):
        kept = {key: line.value[key] for key in ("id",) if key in line.value}
        prompt = line.value.get("prompt")
        if "messages" in line.value:
            prompt = check_messages(line.value["messages"], f"{line.place}: 'messages'")
        elif not isinstance(prompt, str):
            raise InputError(
                f"{line.place} must have a string 'prompt' or a list 'messages', "
                f"got {sorted(line.value)}"
            )
        found.append(Asked(prompt, line.place, kept))
    if not found:
        raise InputError(f"{name} holds no prompts; write one JSON object on each line")
    return found


@dataclass(frozen=True)
class PromptFormatting:
    """How prompts become ids.

    Attributes:
        is_raw: text is taken as it is, without a chat template or a trained format.
        system: a system message for the chat template.
    """

    is_raw: bool = False
    system: str | None = None

    def check(self, asked: Sequence[Asked]) -> None:
        """Refuse what no model can do, before one is loaded.

        Raises:
            ConfigError: raw text is asked for together with what needs a chat template.
        """
        if self.is_raw and self.system is not None:
            raise ConfigError("--system needs the chat template, --raw leaves it out; choose one")
        if self.is_raw and any(not isinstance(one.prompt, str) for one in asked):
            raise ConfigError(
                "--raw is for text, and chat messages need the template; leave it out"
            )

    def uses_template(self, model: Draftless) -> bool:
        """Whether text is put into the chat template of this model."""
        return model.has_chat_template and not self.is_raw

    def encode(self, model: Draftless, asked: Asked) -> list[int]:
        """The ids of one prompt.

        Raises:
            InputError: the prompt cannot be used; with its place.
            ConfigError: a system message for a model without a chat template.
        """
        try:
            return self._encode(model, asked.prompt)
        except InputError as error:
            raise InputError(f"{asked.place}: {error}" if asked.place else str(error)) from error

    def _encode(self, model: Draftless, prompt: str | list[Message]) -> list[int]:
        if self.is_raw:
            assert isinstance(prompt, str) and model.tokenizer is not None
            return list(model.tokenizer(prompt).input_ids)
        if not model.has_chat_template:
            if self.system is not None:
                raise ConfigError("--system needs a chat template, and this model has none")
            return model.encode(prompt)
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else prompt
        if self.system is not None:
            if messages[0]["role"] == "system":
                raise InputError("the messages begin with a system message; leave --system out")
            messages = [{"role": "system", "content": self.system}, *messages]
        return model.encode_chat(messages)

    def describe(self, model: Draftless, asked: Asked) -> str:
        """A few words on what happens to the prompt."""
        if not isinstance(asked.prompt, str):
            return "chat messages in the model's template"
        if self.uses_template(model):
            return "chat template applied (--raw for plain text)"
        trained = model.manifest.prompt_format if model.manifest else None
        if trained is not None and not self.is_raw:
            return "prompt format of the training applied (--raw for plain text)"
        return "plain text"


@dataclass(frozen=True)
class Sampling:
    """How tokens are chosen.

    Attributes:
        given: fields of `SamplingParams` from the command line; None was not given.
        max_new_tokens: where none is given.
        uses_model_defaults: the checkpoint's generation config gives what is not given.
    """

    given: Mapping[str, Any]
    max_new_tokens: int = 128
    uses_model_defaults: bool = False

    def __post_init__(self) -> None:
        """Refuse bad values before a model is loaded."""
        self._own()

    def _fields(self) -> dict[str, Any]:
        given = {name: value for name, value in self.given.items() if value is not None}
        return {"max_new_tokens": self.max_new_tokens, **given}

    def _own(self) -> SamplingParams:
        from draftless import SamplingParams

        return SamplingParams(**self._fields())

    def params(self, model: Draftless, prompt_len: int) -> SamplingParams:
        """The parameters of one request, its seed drawn if none was given.

        Raises:
            ConfigError: the checkpoint's defaults cannot be honoured.
        """
        params = model.resolve_params(
            prompt_len=prompt_len, use_model_defaults=self.uses_model_defaults, **self._fields()
        )
        return params if params.seed is not None else replace(params, seed=secrets.randbits(63))

    def describe(self, params: SamplingParams) -> str:
        """A few words on the parameters in force."""
        named = []
        for name, silent in _SHOWN.items():
            value = getattr(params, name)
            if value != silent and not (params.is_greedy and name in ("top_k", "top_p", "min_p")):
                words = name.replace("_", "-")
                named.append(words if value is True else f"{words} {value:g}")
        kind = "greedy" if params.is_greedy else "sampling"
        source = " (the model's defaults)" if self.uses_model_defaults else ""
        return f"{', '.join([kind, *named])}{source}"
