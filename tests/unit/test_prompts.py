"""What a training record becomes: ids, and labels on the responses alone."""

from __future__ import annotations

import copy
from typing import Any

import pytest

from draftless.prompts import IGNORED_LABEL, PromptFormat
from support.tokenizer import small_tokenizer

TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}</s>{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # fmt: skip


def encoded(record: dict[str, Any], kind: Any) -> tuple[str, str]:
    """The text of all ids, and of the labels that count."""
    tokenizer = copy.deepcopy(small_tokenizer())
    tokenizer.chat_template = TEMPLATE
    ids, labels = PromptFormat(kind=kind).encode_example(tokenizer, record)
    assert len(ids) == len(labels)
    kept = [label for label in labels if label != IGNORED_LABEL]
    assert all(label in (IGNORED_LABEL, i) for i, label in zip(ids, labels, strict=True))
    return tokenizer.decode(ids), tokenizer.decode(kept)


@pytest.mark.parametrize(
    ("reason", "end"), [(None, "</s>"), ("stop", "</s>"), ("length", "")]
)  # fmt: skip
def test_a_response_that_was_cut_has_no_end(reason: str | None, end: str) -> None:
    told = {} if reason is None else {"finish_reason": reason}
    record = {"prompt": "the cat", "response": "sat on", **told}
    assert encoded(record, "plain") == (f"<s>the cat\nsat on{end}", f"sat on{end}")
    assert encoded(record, "chat") == (
        f"<user>the cat</s><assistant>sat on{end}",
        f"sat on{end}",
    )
    messages = [
        {"role": "user", "content": "a"},
        {"role": "assistant", "content": "the mat"},
        {"role": "user", "content": "b"},
        {"role": "assistant", "content": "the mat"},
    ]
    assert encoded({"messages": messages, **told}, "chat") == (
        f"<user>a</s><assistant>the mat</s><user>b</s><assistant>the mat{end}",
        f"the mat</s>the mat{end}",
    )
