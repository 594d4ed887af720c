"""Chats of a request: what a template is given, and what is refused with one line."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
from transformers import TextIteratorStreamer

from draftless import ConfigError, Draftless, InputError
from draftless.chat import encode_messages, plain_messages
from draftless.manifest import Manifest
from draftless.prompts import PromptFormat
from support.tokenizer import small_tokenizer

TEMPLATE = (
    "{% if tools %}tools {% for t in tools %}{{ t.function.name }} {% endfor %}{% endif %}"
    "{% if enable_thinking is defined and not enable_thinking %}no thoughts {% endif %}"
    "{% for m in messages %}<s>{{ m.role }}: {{ m.content }}</s>{% endfor %}"
    "{% if messages[0].role == 'robot' %}{{ raise_exception('no\nrobots') }}{% endif %}"
    "{% if add_generation_prompt %}<s>assistant: {% endif %}"
)
USER = {"role": "user", "content": "the cat"}
TOOL = {"type": "function", "function": {"name": "sat", "parameters": {"type": "object"}}}


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Draftless:
    tokenizer = copy.deepcopy(small_tokenizer())
    tokenizer.chat_template = TEMPLATE
    return Draftless.from_pretrained(checkpoint, tokenizer=tokenizer, drafter="prompt-lookup")


def text_of(model: Draftless, *args: Any, **options: Any) -> str:
    assert model.tokenizer is not None
    text: str = model.tokenizer.decode(model.encode_chat(*args, **options))
    return text


def test_a_chat_is_what_the_template_writes(model: Draftless) -> None:
    answered = [USER, {"role": "assistant", "content": "sat"}, USER]
    turns = "<s>user: the cat</s><s>assistant: sat</s><s>user: the cat</s><s>assistant: "
    assert text_of(model, answered) == turns
    assert model.encode(answered) == model.encode_chat(answered)
    output = model.chat([USER], max_new_tokens=9)
    assert output.prompt_token_ids == model.encode_chat([USER])
    assert output.token_ids == model.generate([USER], max_new_tokens=9).token_ids
    chunks = list(model.stream([USER], max_new_tokens=9))
    assert [i for chunk in chunks for i in chunk.token_ids] == output.token_ids
    assert model.generate("the cat", max_new_tokens=1).prompt_token_ids == model.encode("the cat")
    assert model.encode("the cat") == small_tokenizer()("the cat").input_ids  # text as it is


def test_tools_and_variables_reach_the_template(model: Draftless) -> None:
    asked = "<s>user: the cat</s><s>assistant: "
    assert text_of(model, [USER], tools=[TOOL]) == f"tools sat {asked}"
    quiet = {"enable_thinking": False}
    assert text_of(model, [USER], chat_template_kwargs=quiet) == f"no thoughts {asked}"
    output = model.chat([USER], tools=[TOOL], chat_template_kwargs=quiet, max_new_tokens=1)
    assert output.prompt_token_ids == model.encode_chat(
        [USER], tools=[TOOL], chat_template_kwargs=quiet
    )


def test_content_may_be_text_parts() -> None:
    parts = [{"type": "text", "text": "the"}, {"type": "text", "text": "cat"}]
    assert plain_messages([{"role": "user", "content": parts, "name": "Ann"}]) == [
        {"role": "user", "content": "the\ncat", "name": "Ann"}
    ]
    call = {"role": "assistant", "content": None, "tool_calls": [{"id": "1"}]}
    assert plain_messages([call]) == [{**call, "content": ""}]


@pytest.mark.parametrize(
    ("messages", "message"),
    [
        ([], r"messages must be a list like .*, got \[\]"),
        ("Hello", "messages must be a list"),
        ([USER, "Hello"], "message 1 must be an object"),
        ([[USER]], "message 0 must be an object"),
        ([{"content": "x"}], "message 0 needs a string 'role'"),
        ([USER, {"role": "user"}], r"message 1 \(user\) needs 'content'.* got None"),
        ([{"role": "user", "content": 5}], "needs 'content'.* got 5"),
        ([{"role": "user", "content": [{"type": "image_url"}]}], "part of type 'image_url'"),
        ([{"role": "user", "content": [5]}], "part of type 'int'"),
        (
            [{"role": "user", "content": "a\ud83d"}],
            r"message 0 holds half .*U\+D83D at character 1",
        ),
        ([{"role": "robot", "content": "x"}], "refuses these messages: no robots$"),
    ],
)
def test_a_bad_chat_gets_one_line(model: Draftless, messages: Any, message: str) -> None:
    with pytest.raises(InputError, match=message) as caught:
        model.chat(messages)
    assert "\n" not in str(caught.value)


def test_what_the_template_would_ignore_is_refused(model: Draftless) -> None:
    tokenizer = copy.deepcopy(small_tokenizer())
    tokenizer.chat_template = "{% for m in messages %}{{ m.content }}{% endfor %}"
    with pytest.raises(ConfigError, match="does not use 'tools'"):
        encode_messages(tokenizer, [USER], [TOOL])
    with pytest.raises(ConfigError, match="does not use 'enable_thinking'"):
        encode_messages(tokenizer, [USER], None, {"enable_thinking": True})
    with pytest.raises(ConfigError, match="must hold variables of the template, got tokenize"):
        model.chat([USER], chat_template_kwargs={"tokenize": False})
    with pytest.raises(ConfigError, match=r"tools=.* use chat"):
        model.generate([USER], tools=[TOOL])


def test_a_text_that_is_no_unicode_is_refused(model: Draftless) -> None:
    with pytest.raises(InputError, match=r"^prompt 1: the prompt holds half .*U\+DCE9"):
        model.generate(["a", "caf\udce9"])


def test_who_has_a_chat_template(model: Draftless) -> None:
    def with_format(prompt_format: PromptFormat | None, tokenizer: Any) -> Draftless:
        manifest = Manifest(prompt_format=prompt_format)
        return Draftless(model.target, tokenizer, model.drafter, manifest)

    assert model.has_chat_template
    assert not with_format(None, small_tokenizer()).has_chat_template
    assert not with_format(None, None).has_chat_template
    plain = with_format(PromptFormat(), model.tokenizer)
    assert not plain.has_chat_template
    with pytest.raises(InputError, match="trained on plain prompts"):
        plain.chat([USER])
    chat = with_format(PromptFormat(kind="chat"), model.tokenizer)
    assert chat.has_chat_template
    assert chat.encode("the cat") == model.encode_chat([USER])
    with pytest.raises(ConfigError, match="messages need a tokenizer"):
        with_format(None, None).chat([USER])


@pytest.mark.parametrize(
    "call",
    [
        lambda model, streamer: model.chat([], streamer=streamer),
        lambda model, streamer: model.generate("", streamer=streamer),
        lambda model, streamer: model.generate("a", streamer=streamer, temprature=1),
        lambda model, streamer: model.chat([USER], streamer=streamer, logits_processors=[_fails]),
    ],
)
def test_a_streamer_is_ended_whatever_happens(model: Draftless, call: Any) -> None:
    streamer = TextIteratorStreamer(model.tokenizer, timeout=1.0)
    with pytest.raises((ValueError, ZeroDivisionError)):
        call(model, streamer)
    list(streamer)  # raises queue.Empty where nobody ended it


def _fails(*_: Any) -> Any:
    raise ZeroDivisionError
