"""A question with its turns, put into the model's own format."""

from __future__ import annotations

from draftless.bench.questions import Question
from draftless.model import Draftless


class Conversation:
    """A question under one method: what was said so far, and the next prompt's ids."""

    def __init__(self, model: Draftless, question: Question, *, is_raw: bool) -> None:
        self._model = model
        self._question = question
        self._is_raw = is_raw
        self._answers: list[str] = []

    @property
    def is_chat(self) -> bool:
        """Whether turns become chat messages: the checkpoint's format, else the tokenizer's."""
        manifest, tokenizer = self._model.manifest, self._model.tokenizer
        if self._is_raw or tokenizer is None:
            return False
        if manifest is not None and manifest.prompt_format is not None:
            return manifest.prompt_format.kind == "chat"
        return bool(tokenizer.chat_template)

    def prompt_ids(self) -> list[int]:
        """Ids of the next turn, the conversation before it included."""
        turns = self._question.turns[: len(self._answers) + 1]
        if self.is_chat:
            messages = [{"role": "user", "content": turns[0]}]
            for answer, turn in zip(self._answers, turns[1:], strict=True):
                messages += [
                    {"role": "assistant", "content": answer},
                    {"role": "user", "content": turn},
                ]
            return self._model.encode(messages)
        text = turns[0]
        for answer, turn in zip(self._answers, turns[1:], strict=True):
            text += f"\n{answer}\n\n{turn}"
        if self._is_raw and self._model.tokenizer is not None:
            return list(self._model.tokenizer(text).input_ids)
        return self._model.encode(text)

    def answer(self, text: str) -> None:
        """Note what the method said; the conversation goes on from there."""
        self._answers.append(text)

    def longest(self, max_new_tokens: int) -> int:
        """Tokens of the whole conversation if every answer is as long as it may be."""
        whole = Conversation(self._model, self._question, is_raw=self._is_raw)
        for _ in self._question.turns[1:]:
            whole.answer("")
        return len(whole.prompt_ids()) + len(self._question.turns) * max_new_tokens
