"""Turns become a prompt: in the checkpoint's format, the tokenizer's template, or as they are."""

from __future__ import annotations

import pytest

from draftless.bench.conversation import Conversation
from draftless.bench.questions import Question
from draftless.manifest import Manifest
from draftless.model import Draftless
from draftless.prompts import PromptFormat
from support.bench import fresh_model


def formatted(prompt_format: PromptFormat | None, template: str | None = None) -> Draftless:
    model = fresh_model()
    model.tokenizer.chat_template = template
    manifest = Manifest(prompt_format=prompt_format)
    return Draftless(model.target, model.tokenizer, model.drafter, manifest)


TEMPLATE = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{% if add_generation_prompt %}<assistant>{% endif %}"  # fmt: skip


@pytest.mark.parametrize(
    ("model", "is_raw", "text"),
    [
        (formatted(None, TEMPLATE), False, "<user>a<assistant>b<user>c<assistant>"),
        (formatted(PromptFormat(kind="chat"), TEMPLATE), False, "<user>a<assistant>b<user>c<assistant>"),
        (formatted(PromptFormat(suffix=" ->"), TEMPLATE), False, "<s>a\nb\n\nc ->"),
        (formatted(None, TEMPLATE), True, "a\nb\n\nc"),
        (formatted(PromptFormat(suffix=" ->")), True, "a\nb\n\nc"),
        (formatted(None), False, "a\nb\n\nc"),
    ],
)  # fmt: skip
def test_turns_are_put_in_the_models_format(model: Draftless, is_raw: bool, text: str) -> None:
    conversation = Conversation(model, Question("q", "c", ("a", "c")), is_raw=is_raw)
    conversation.prompt_ids()
    conversation.answer("b")
    assert model.tokenizer.decode(conversation.prompt_ids()) == text
