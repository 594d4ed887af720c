"""Responses are found in the text of a chat, whatever the template and the tokenizer do around them."""

from __future__ import annotations

from collections import Counter
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from draftless.errors import InputError
from draftless.prompts import IGNORED_LABEL, PromptFormat
from draftless.training.data import check_example, encode_records

CHATML = (
    "{% for m in messages %}<|s|>{{ m.role }}\n{{ m.content }}<|e|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|s|>assistant\n{% endif %}"
)
BLANK = (
    "{% for m in messages %}{{ 'USER: ' if m.role == 'user' else 'ASSISTANT: ' }}{{ m.content }}<|e|>"
    "{% endfor %}{% if add_generation_prompt %}ASSISTANT: {% endif %}"
)
NEEDS_USER = (
    "{% if not messages | selectattr('role', 'equalto', 'user') | list %}"
    "{{ raise_exception('No user query found') }}{% endif %}" + CHATML
)
# As Qwen3: reasoning stays in the last turn only, and is written even where there is none.
THINKING = (
    "{% for m in messages %}<|s|>{{ m.role }}\n"
    "{% if m.role == 'assistant' %}{% set parts = m.content.split('</think>') %}"
    "{% if loop.last %}<think>{{ parts[0].replace('<think>', '') if parts | length > 1 else '' }}"
    "</think>{% endif %}{{ parts[-1] }}{% else %}{{ m.content }}{% endif %}<|e|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|s|>assistant\n{% endif %}"
)
TOOLS = "{% if tools %}TOOLS {% for t in tools %}{{ t.name }} {% endfor %}{% endif %}" + CHATML
CALLS = (
    "{% for m in messages %}{% if m.role == 'tool' and not messages[loop.index0 - 1].tool_calls %}"
    "{{ raise_exception('a result without a call') }}{% endif %}<|s|>{{ m.role }}\n"
    "{{ m.content or '' }}{% for c in m.tool_calls or [] %}[{{ c.name }}]{% endfor %}<|e|>\n{% endfor %}"
)


@cache
def merging_tokenizer() -> PreTrainedTokenizerFast:
    """Two newlines, and a blank before `H`, are one token."""
    letters = {chr(code): index for index, code in enumerate(range(33, 127))}
    vocabulary = {**letters, "Ċ": 94, "Ġ": 95, "ĊĊ": 96, "ĠH": 97}
    raw = Tokenizer(models.BPE(vocab=vocabulary, merges=[("Ċ", "Ċ"), ("Ġ", "H")]))
    raw.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    raw.decoder = decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=raw, bos_token="<|s|>", eos_token="<|e|>")


def user(text: str) -> dict[str, str]:
    return {"role": "user", "content": text}


def says(text: str, **more: Any) -> dict[str, Any]:
    return {"role": "assistant", "content": text, **more}


def taught(template: str, messages: list[Any], **fields: Any) -> list[str]:
    """The text of every stretch of labels; the ids are those of the whole chat."""
    tokenizer = merging_tokenizer()
    tokenizer.chat_template = template
    record = {"messages": messages, **fields}
    ids, labels = PromptFormat(kind="chat").encode_example(tokenizer, record)
    if "finish_reason" not in fields:
        more = {name: value for name, value in fields.items() if name == "tools"}
        assert ids == tokenizer.apply_chat_template(messages, return_dict=False, **more)
    assert all(label in (IGNORED_LABEL, i) for i, label in zip(ids, labels, strict=True))
    stretches: list[list[int]] = [[]]
    for label in labels:
        stretches[-1].append(label) if label >= 0 else stretches.append([])
    return [tokenizer.decode(one) for one in stretches if one]


@pytest.mark.parametrize(
    ("response", "expected"),
    [
        ("Hello", "Hello<|e|>\n"),
        ("\nHello", "Hello<|e|>\n"),  # the newline is one token with that of the prompt
        ("\n\nHello", "\nHello<|e|>\n"),
        ("\n", "<|e|>\n"),
        ("", "<|e|>\n"),
        ("<|s|>user\nHi", "<|s|>user\nHi<|e|>\n"),
    ],
)
def test_a_response_is_found_where_tokens_merge_over_its_border(
    response: str, expected: str
) -> None:
    assert taught(CHATML, [user("Hi"), says(response)]) == [expected]


def test_a_generation_prompt_may_end_in_a_blank() -> None:
    assert taught(BLANK, [user("Hi"), says("yes")]) == ["yes<|e|>"]
    assert taught(BLANK, [user("Hi"), says("Hello")]) == ["ello<|e|>"]


@pytest.mark.parametrize("template", [CHATML, NEEDS_USER])
def test_only_whole_chats_are_rendered(template: str) -> None:
    first = [{"role": "system", "content": "Be kind."}, says("Welcome."), user("Hi"), says("Hello")]
    for messages in (first, first[1:], [*first, user("Bye")]):
        assert taught(template, messages) == ["Welcome.<|e|>\n", "Hello<|e|>\n"]


def test_earlier_turns_may_be_written_differently() -> None:
    reasoned = says("<think>so</think>Hello")
    chat = [user("Hi"), reasoned, user("And?"), reasoned]
    assert taught(THINKING, chat) == ["Hello<|e|>\n", "<think>so</think>Hello<|e|>\n"]
    assert taught(THINKING, [user("Hi"), says("Hello")]) == ["<think></think>Hello<|e|>\n"]


def test_a_cut_response_ends_the_text() -> None:
    chat = [user("Hi"), says("Hello"), user("Go on"), says("Well, ")]
    assert taught(CHATML, chat, finish_reason="length") == ["Hello<|e|>\n", "Well, "]


def test_calls_of_tools_are_taught() -> None:
    chat = [
        user("Rain?"),
        says("", tool_calls=[{"name": "get"}]),
        {"role": "tool", "content": "no"},
    ]
    assert taught(CALLS, [*chat, says("No.")]) == ["[get]<|e|>\n", "No.<|e|>\n"]
    assert taught(CALLS, chat[:2]) == ["[get]<|e|>\n"]


def test_fields_of_a_record_reach_the_template_or_are_refused() -> None:
    chat = [user("Rain?"), says("get()")]
    tools = [{"name": "get"}]
    assert taught(TOOLS, chat, tools=tools) == ["get()<|e|>\n"]
    with pytest.raises(InputError, match="does not use 'tools'"):
        taught(CHATML, chat, tools=tools)
    with pytest.raises(InputError, match="does not use 'enable_thinking'"):
        taught(CHATML, chat, chat_template_kwargs={"enable_thinking": False})
    named = "{% if polite %}Please. {% endif %}" + CHATML
    tokenizer = merging_tokenizer()
    tokenizer.chat_template = named
    record = {"messages": chat, "chat_template_kwargs": {"polite": True}}
    ids, _ = PromptFormat(kind="chat").encode_example(tokenizer, record)
    assert tokenizer.decode(ids).startswith("Please. <|s|>user")
    with pytest.raises(InputError, match="tools need the prompt format 'chat'"):
        PromptFormat(bos=False).encode_example(
            tokenizer, {"prompt": "a", "response": "b", "tools": tools}
        )


@pytest.mark.parametrize(
    ("field", "message"),
    [
        ({"tools": "get"}, "'tools' must be a list of objects"),
        ({"documents": ["a"]}, "'documents' must be a list of objects"),
        ({"chat_template_kwargs": 3}, "'chat_template_kwargs' must be an object"),
        ({"chat_template_kwargs": {"tools": []}}, "holds tools, which cannot be set there"),
        ({"system": "Be kind."}, "'system' would change the prompt"),
        ({"history": [["a", "b"]]}, "'history' would change the prompt"),
    ],
)
def test_fields_that_cannot_be_honoured_are_refused_with_their_place(
    field: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=f"here: .*{message}"):
        check_example({"prompt": "a", "response": "b", **field}, "here")
    check_example({"prompt": "a", "response": "b", **dict.fromkeys(field)}, "here")


def test_what_cannot_be_taught_is_left_out_and_counted(recwarn: pytest.WarningsRecorder) -> None:
    tokenizer = merging_tokenizer()
    tokenizer.chat_template = NEEDS_USER
    fine = {"messages": [user("Hi"), says("Hello")]}
    refused = {"messages": [{"role": "system", "content": "x"}, says("Hello")]}
    far = {"messages": [user("H" * 90), says("Hello")]}
    left_out: Counter[str] = Counter()
    arguments = (tokenizer, PromptFormat(kind="chat"), 64)
    assert len(encode_records([refused, fine, far, refused], *arguments, left_out)) == 1
    assert sorted(left_out.values()) == [1, 2] and not recwarn.list
    (reason,) = [reason for reason, count in left_out.items() if count == 2]
    assert "No user query found" in reason
    with pytest.warns(UserWarning, match=r"records left out: 1 \(no response token within 64"):
        encode_records([fine, far], *arguments)
    with pytest.raises(InputError, match=r"no record can be taught: 1 \(.*No user query found"):
        encode_records([refused], *arguments)


def test_half_a_surrogate_pair_is_refused_with_its_line(tmp_path: Path) -> None:
    from draftless.training.data import read_records

    file = tmp_path / "a.jsonl"
    file.write_text(
        '{"prompt": "\\ud83d\\ude00", "response": "b"}\n{"prompt": "a", "response": "\\uD83D"}\n'
    )
    with pytest.raises(
        InputError, match=r"a\.jsonl, line 2 holds half of a surrogate pair, .ud83d"
    ):
        read_records(file)
    file.write_bytes(b'\xef\xbb\xbf{"prompt": "a", "response": "b"}\n')  # as some editors save it
    assert read_records(file) == [{"prompt": "a", "response": "b"}]
