"""`draftless generate`: one prompt or several, streamed."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import typer

from draftless.cli import answers, options
from draftless.cli.answers import Answer, Show, write_chunks
from draftless.cli.common import drafter_name, load_model, model_name, note
from draftless.cli.encodings import standard_output
from draftless.cli.requests import Asked, PromptFormatting, Sampling, read_prompts
from draftless.errors import ConfigError

if TYPE_CHECKING:
    from draftless import Draftless, SamplingParams

__all__ = ["generate", "write_chunks"]


def generate(  # noqa: PLR0913 - the command line is derived from the signature
    model: options.Model = None,
    prompt: options.Prompt = None,
    prompt_file: options.PromptFile = None,
    chat: options.Chat = None,
    prompts: options.Prompts = None,
    raw: options.Raw = False,
    system: options.System = None,
    max_new_tokens: options.MaxNewTokens[int | None] = None,
    min_new_tokens: options.MinNewTokens = None,
    ignore_eos: options.IgnoreEos = None,
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
    as_json: options.AsJson = False,
    threads: options.Threads = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    compile: options.Compile[bool | None] = None,
    strict: options.Strict = False,
    int8: options.Int8 = False,
) -> None:
    """Generate text from a prompt, in the chat template of a model that has one.

    The drafter changes the time, not the text.

    [bold]Examples[/bold]

        draftless generate ./my-model --prompt "Why is the sky blue?" --system "Be brief."
        draftless generate --prompt "Once upon a time" --temperature 0.8 --top-p 0.95 --seed 7
        draftless generate ./my-model --raw --prompt-file story.txt --drafter none --json
        echo "Once upon a time" | draftless generate --show-drafts
    """
    if show_drafts and as_json:
        raise ConfigError("--show-drafts is for people and --json for machines; choose one")
    formatting = PromptFormatting(raw, system)
    asked = read_prompts(prompt, prompt_file, chat, prompts)
    formatting.check(asked)
    sampling = sampling_of(locals(), model_defaults)
    chosen = drafter_options(drafter, budget, drafter_option)
    loaded = load_model(
        model, threads=threads, dtype=dtype, device=device, drafter=drafter, compile=compile,
        strict=strict, int8=int8,
    )  # fmt: skip
    loaded = with_options(loaded, budget, chosen)
    run = _Run(loaded, formatting, sampling, show_drafts, as_json, model_name(model))
    run.answer_all(asked)


_SAMPLING_FIELDS = (
    "max_new_tokens", "min_new_tokens", "ignore_eos", "temperature", "top_k", "top_p", "min_p",
    "repetition_penalty", "seed", "stop",
)  # fmt: skip


def sampling_of(
    arguments: Mapping[str, Any], uses_model_defaults: bool, max_new_tokens: int = 128
) -> Sampling:
    """The sampling that a command's arguments name.

    Raises:
        ConfigError: a value is out of range.
    """
    given = {name: arguments[name] for name in _SAMPLING_FIELDS if name in arguments}
    given = {name: value for name, value in given.items() if value is not None and value != []}
    return Sampling(given, max_new_tokens, uses_model_defaults)


def drafter_options(
    drafter: str | None, budget: int | None, options: Sequence[str] | None
) -> dict[str, Any]:
    """Options of a drafter from `NAME=VALUE`, checked as far as that goes without a model.

    Raises:
        ConfigError: one has another form, is given twice, or is unknown to the named drafter.
    """
    from draftless.cli.bench_methods import read_value

    chosen: dict[str, Any] = {}
    for option in options or ():
        name, equals, text = option.partition("=")
        name = name.strip().replace("-", "_")
        if not (equals and name and text):
            raise ConfigError(
                f"--drafter-option must be NAME=VALUE, such as top_k=4, got {option!r}"
            )
        if name in chosen:
            raise ConfigError(f"--drafter-option {name} is given twice; leave one out")
        chosen[name] = read_value(text)
    if drafter is not None and (chosen or budget is not None):
        from draftless.drafters.registry import check_options

        check_options(drafter, _with_budget(drafter, budget, chosen))
    return chosen


def _with_budget(drafter: str, budget: int | None, chosen: Mapping[str, Any]) -> dict[str, Any]:
    """`auto` plans below its limit, under another name."""
    if budget is None:
        return dict(chosen)
    name = "max_width" if drafter == "auto" else "budget"
    if name in chosen:
        raise ConfigError(f"--budget and --drafter-option {name} are the same; leave one out")
    return {**chosen, name: budget}


def with_options(loaded: Draftless, budget: int | None, chosen: Mapping[str, Any]) -> Draftless:
    """The same model and drafter with options and a limit to its trees."""
    if budget is None and not chosen:
        return loaded
    name = drafter_name(loaded)
    return loaded.with_drafter(name, _with_budget(name, budget, chosen))


@dataclass(frozen=True)
class _Run:
    """A loaded model and what is done with its prompts."""

    loaded: Draftless
    formatting: PromptFormatting
    sampling: Sampling
    shows_drafts: bool
    as_json: bool
    model: str

    def answer_all(self, asked: Sequence[Asked]) -> None:
        """Answer one prompt after another; Ctrl-C ends with code 130."""
        encoded = [self.formatting.encode(self.loaded, one) for one in asked]
        params = [self.sampling.params(self.loaded, len(ids)) for ids in encoded]
        format_words = self.formatting.describe(self.loaded, asked[0])
        note(f"{self.sampling.describe(params[0])}; {format_words}")
        if self.shows_drafts:
            answers.explain_colours()
        for index, (one, ids, its_params) in enumerate(zip(asked, encoded, params, strict=True)):
            if len(asked) > 1 and not self.as_json:
                note(f"{'' if index == 0 else chr(10)}{one.place}")
            answer = self._answer(ids, its_params)
            self._conclude(answer, one, index if len(asked) > 1 else None)
            if answer.is_cancelled:
                raise typer.Exit(130)

    def _answer(self, ids: list[int], params: SamplingParams) -> Answer:
        chunks = self.loaded.stream(ids, params)
        assert params.seed is not None
        show: Show | None = answers.write_chunk
        if self.as_json:
            show = None
        elif self.shows_drafts:
            show = answers.painting(self.loaded.tokenizer)
        return answers.follow(chunks, show, seed=params.seed, prompt_len=len(ids))

    def _conclude(self, answer: Answer, asked: Asked, index: int | None) -> None:
        name = drafter_name(self.loaded)
        if self.as_json:
            result = answers.as_object(answer, drafter=name, model=self.model)
            place = {} if index is None else {"index": index, **asked.kept}
            stream = standard_output()
            is_unicode = (stream.encoding or "").lower().replace("-", "") == "utf8"
            stream.write(json.dumps({**place, **result}, ensure_ascii=not is_unicode) + "\n")
            stream.flush()
        else:
            answers.end_line()
            note(answers.summary(answer, name))
        is_short = len(answer.token_ids) <= 1 and answer.finish_reason == "stop"
        if is_short and isinstance(asked.prompt, str) and self._has_unused_template():
            note("hint: a chat model, and its chat template was not applied; leave --raw out")

    def _has_unused_template(self) -> bool:
        has_one = bool(getattr(self.loaded.tokenizer, "chat_template", None))
        return has_one and not self.formatting.uses_template(self.loaded)
