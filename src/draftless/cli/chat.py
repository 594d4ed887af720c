"""`draftless chat`: a conversation on the terminal, or from standard input."""

from __future__ import annotations

import io
import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import TYPE_CHECKING

from rich.text import Text

from draftless.cli import answers, options
from draftless.cli.common import drafter_name, load_model, note, stderr
from draftless.cli.encodings import unicode_line
from draftless.cli.generate import drafter_options, sampling_of, with_options
from draftless.cli.requests import Asked, PromptFormatting, Sampling
from draftless.errors import DraftlessError, InputError

if TYPE_CHECKING:
    from draftless import Draftless
    from draftless.cli.answers import Answer
    from draftless.prompts import Message

_HELP = """\
/reset        forget the conversation; the system message stays
/system TEXT  set the system message; without TEXT, remove it
/drafts       colour accepted drafts, or stop doing so
/stats        numbers of the last answer and of all
/help         this list
/exit         leave, as Ctrl-D does
Ctrl-C stops an answer. A line that ends with \\ goes on in the next one."""


def chat(  # noqa: PLR0913 - the command line is derived from the signature
    model: options.Model = None,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens[int | None] = None,
    temperature: options.Temperature[float | None] = None,
    top_k: options.TopK[int | None] = None,
    top_p: options.TopP[float | None] = None,
    min_p: options.MinP[float | None] = None,
    repetition_penalty: options.RepetitionPenalty = None,
    seed: options.Seed[int | None] = None,
    stop: options.Stop = None,
    model_defaults: options.ModelDefaults = False,
    drafter: options.Drafter[str | None] = None,
    budget: options.Budget = None,
    drafter_option: options.DrafterOption = None,
    show_drafts: options.ShowDrafts = False,
    threads: options.Threads = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    compile: options.Compile[bool | None] = None,
    strict: options.Strict = False,
    int8: options.Int8 = False,
) -> None:
    """Talk with a chat model; /help lists the commands of the conversation.

    [bold]Examples[/bold]

        draftless chat ./my-model
        draftless chat ./my-model --system "Be brief." --model-defaults --show-drafts
        draftless chat ./my-model --drafter none < questions.txt
    """
    sampling = sampling_of(locals(), model_defaults, 1024)
    chosen = drafter_options(drafter, budget, drafter_option)
    loaded = load_model(
        model, threads=threads, dtype=dtype, device=device, drafter=drafter, compile=compile,
        strict=strict, int8=int8,
    )  # fmt: skip
    if not loaded.has_chat_template:
        raise InputError(
            "draftless chat needs a model with a chat template, and this one has none; use an "
            'instruct model, or draftless generate --prompt "TEXT"'
        )
    conversation = Conversation(with_options(loaded, budget, chosen), sampling, system)
    conversation.shows_drafts = show_drafts
    conversation.run()


class Conversation:
    """The turns of a chat and the commands between them.

    Attributes:
        messages: all turns, without the system message.
        system: the system message, if there is one.
        shows_drafts: accepted drafts are coloured.
    """

    def __init__(self, model: Draftless, sampling: Sampling, system: str | None) -> None:
        self._model = model
        self._sampling = sampling
        self.messages: list[Message] = []
        self.system = system
        self.shows_drafts = False
        self._answers: list[Answer] = []

    def run(self) -> None:
        """Read lines until they end, or /exit."""
        params = self._sampling.params(self._model, 1)
        note(f"{self._sampling.describe(params)}; /help lists the commands, Ctrl-D leaves")
        if self.shows_drafts:
            answers.explain_colours()
        for text in typed_texts():
            if not text.strip():
                continue
            try:
                if not text.startswith("/"):
                    self.answer(text)
                elif not self.obey(text):
                    return
            except DraftlessError as error:
                stderr.print(Text.assemble(("error: ", "bold red"), str(error)), soft_wrap=True)
            except KeyboardInterrupt:
                note("stopped")

    def obey(self, text: str) -> bool:
        """Carry out a command; False ends the conversation."""
        name, _, rest = text.partition(" ")
        if name in ("/exit", "/quit", "/bye"):
            return False
        if name == "/reset":
            self.messages.clear()
            note("the conversation begins anew")
        elif name == "/system":
            self.system = rest.strip() or None
            note("system message set" if self.system else "no system message")
        elif name == "/drafts":
            self.shows_drafts = not self.shows_drafts
            if self.shows_drafts:
                answers.explain_colours()
            else:
                note("drafts are not coloured")
        elif name == "/stats":
            self._show_stats()
        elif name == "/help":
            note(_HELP)
        else:
            note(f"unknown command {name}; /help lists them (text: put a space before the /)")
        return True

    def answer(self, text: str) -> None:
        """One turn. What was shown stays in the conversation; a turn that failed does not.

        Raises:
            DraftlessError: the template refuses the messages.
        """
        messages: list[Message] = [*self.messages, {"role": "user", "content": text}]
        ids = PromptFormatting(system=self.system).encode(self._model, Asked(messages))
        limit = self._model.target.max_positions
        if limit is not None and len(ids) >= limit:
            note(
                f"the conversation has {len(ids)} tokens and the model's context is {limit}: your "
                "message was not added; /reset begins anew, or write a shorter one"
            )
            return
        params = self._sampling.params(self._model, len(ids))
        assert params.seed is not None
        chunks = self._model.stream(ids, params)
        show: answers.Show = answers.write_chunk
        if self.shows_drafts:
            show = answers.painting(self._model.tokenizer)
        answer = answers.follow(chunks, show, seed=params.seed, prompt_len=len(ids))
        answers.end_line()
        self._answers.append(answer)
        if answer.text:
            self.messages = [*messages, {"role": "assistant", "content": answer.text}]
        if answer.is_cancelled:
            note("stopped" if answer.text else "stopped; the message was not added")
        elif limit is not None and len(ids) + len(answer.token_ids) >= limit:
            note(f"the model's context of {limit} tokens is full; /reset begins anew")
        elif answer.finish_reason == "length":
            note(f"stopped after {len(answer.token_ids)} tokens (--max-new-tokens)")

    def _show_stats(self) -> None:
        if not self._answers:
            note("no answer yet")
            return
        name, last = drafter_name(self._model), self._answers[-1]
        note(f"last answer: {answers.summary(last, name)}")
        named = Counter(source for source in last.sources if source)
        if named:
            counts = ", ".join(f"{source} {count}" for source, count in named.most_common())
            note(f"its accepted drafts by source: {counts}")
        num_tokens = sum(len(one.token_ids) for one in self._answers)
        num_steps = sum(one.stats.num_steps for one in self._answers)
        note(
            f"all: {len(self._answers)} answers, {num_tokens} tokens, "
            f"{num_tokens / max(1, num_steps):.2f} per step, "
            f"{sum(one.wall_s for one in self._answers):.1f} s"
        )


def typed_texts() -> Iterator[str]:
    """Texts as they are typed or piped: lines, joined where one ends with a backslash.

    Raises:
        InputError: what is piped is not UTF-8.
    """
    read = _prepare_input()
    parts: list[str] = []
    while True:
        try:
            line = read("... " if parts else "> ")
        except EOFError:
            if parts:
                yield "\n".join(parts)
            return
        except KeyboardInterrupt:
            parts.clear()
            note("\n/exit or Ctrl-D leaves")
            continue
        parts.append(unicode_line(line).removesuffix("\\"))
        if not line.endswith("\\"):
            yield "\n".join(parts)
            parts.clear()


def _prepare_input() -> Callable[[str], str]:
    """How the next line is read: typed, with a history where there is readline, or piped."""
    if sys.stdin.isatty():
        with suppress(ImportError):
            import readline  # noqa: F401 - importing it is enough
        return input
    if isinstance(sys.stdin, io.TextIOWrapper):
        sys.stdin.reconfigure(encoding="utf-8-sig", errors="surrogateescape")
    return _read_piped


def _read_piped(_: str) -> str:
    line = sys.stdin.readline()
    if not line:
        raise EOFError
    return line.rstrip("\r\n")
