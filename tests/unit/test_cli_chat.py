"""Chat templates in `generate`, and `chat` with piped input."""

from __future__ import annotations

import io
import json
import os
import shutil
import signal
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from draftless import Chunk, ConfigError, Draftless, InputError, SamplingParams, cli
from draftless.cli import answers
from draftless.cli.chat import Conversation, typed_texts
from draftless.cli.requests import Sampling


def invoke(*arguments: str | Path, stdin: str | bytes | None = None) -> tuple[str, str]:
    """The command in this process: standard output and standard error."""
    line = [*map(str, arguments), "--no-compile"]
    result = CliRunner().invoke(cli.app, line, input=stdin)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


@pytest.fixture(scope="module")
def chat_model(chat_checkpoint: Path) -> Draftless:
    return Draftless.from_pretrained(chat_checkpoint, drafter="none")


def answer_of(model: Draftless, *messages: tuple[str, str], num_tokens: int = 8) -> str:
    """What the model says after these messages."""
    told = [{"role": role, "content": content} for role, content in messages]
    ids = model.encode_chat(told)
    return model.generate(ids, SamplingParams(max_new_tokens=num_tokens)).text


SHORT = ("--max-new-tokens", "8", "--drafter", "none")


def test_a_prompt_is_put_into_the_template(chat_checkpoint: Path, chat_model: Draftless) -> None:
    out, err = invoke("generate", chat_checkpoint, "--prompt", "the cat", *SHORT)
    chatted = answer_of(chat_model, ("user", "the cat"))
    assert out == chatted + "\n"
    assert "greedy; chat template applied (--raw for plain text)" in err.splitlines()
    out, err = invoke("generate", chat_checkpoint, "--prompt", "the cat", "--raw", *SHORT)
    raw = chat_model.generate("the cat", max_new_tokens=8).text
    assert out == raw + "\n"
    assert raw != chatted, "the test cannot tell them apart"
    assert "greedy; plain text" in err.splitlines()


def test_a_system_message(chat_checkpoint: Path, chat_model: Draftless, tmp_path: Path) -> None:
    expected = answer_of(chat_model, ("system", "the log"), ("user", "the cat")) + "\n"
    common = ["generate", chat_checkpoint, *SHORT, "--system", "the log"]
    assert invoke(*common, "--prompt", "the cat")[0] == expected
    file = tmp_path / "chat.json"
    file.write_text(json.dumps([{"role": "user", "content": "the cat"}]))
    assert invoke(*common, "--chat", file)[0] == expected
    file.write_text(json.dumps([{"role": "system", "content": "x"}]))
    with pytest.raises(InputError, match="leave --system out"):
        invoke(*common, "--chat", file)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--prompt", "x", "--system", "y"], "--system needs a chat template"),
        (["--prompt", "x", "--raw", "--system", "y"], "--raw leaves it out"),
    ],
)
def test_what_needs_a_template_is_refused_without(
    checkpoint: Path, flags: list[str], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        invoke("generate", checkpoint, *flags)


def test_standard_input_is_the_prompt_where_there_is_no_other(checkpoint: Path) -> None:
    expected, _ = invoke("generate", checkpoint, "--prompt", "the cät", *SHORT)
    piped = "\ufeffthe cät\n".encode()
    assert invoke("generate", checkpoint, *SHORT, stdin=piped)[0] == expected
    with pytest.raises(InputError, match="standard input must be UTF-8"):
        invoke("generate", checkpoint, *SHORT, stdin=b"\xff")


def test_the_hint_after_an_empty_answer(
    checkpoint: Path, chat_checkpoint: Path, chat_model: Draftless, tmp_path: Path
) -> None:
    (first,) = chat_model.generate("the cat", max_new_tokens=1).token_ids
    for source, has_hint in ((chat_checkpoint, True), (checkpoint, False)):
        folder = tmp_path / source.name
        shutil.copytree(source, folder)
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": first}))
        _, err = invoke("generate", folder, "--prompt", "the cat", "--raw", *SHORT)
        assert ("leave --raw out" in err) == has_hint
        assert "1 tokens in 1 steps" in err


def test_the_models_own_sampling(chat_checkpoint: Path, tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(chat_checkpoint, folder)
    own = {"do_sample": True, "temperature": 0.7, "top_k": 20, "repetition_penalty": 1.1}
    (folder / "generation_config.json").write_text(json.dumps({**own, "eos_token_id": 1}))
    common = ["generate", folder, "--prompt", "the cat", *SHORT, "--json"]
    out, err = invoke(*common, "--model-defaults", "--seed", "5")
    words = "sampling, temperature 0.7, top-k 20, repetition-penalty 1.1 (the model's defaults)"
    assert f"{words}; " in err
    given = ["--temperature=0.7", "--top-k=20", "--repetition-penalty=1.1", "--seed=5"]
    assert json.loads(invoke(*common, *given)[0])["token_ids"] == json.loads(out)["token_ids"]
    _, err = invoke(*common, "--model-defaults", "--temperature", "0.5")
    assert "temperature 0.5, top-k 20" in err
    assert "greedy; " in invoke(*common)[1]


def test_several_prompts(chat_checkpoint: Path, chat_model: Draftless, tmp_path: Path) -> None:
    file = tmp_path / "prompts.jsonl"
    messages = [{"role": "user", "content": "the log"}]
    lines = [{"prompt": "the cat\u2028", "id": "a"}, {"messages": messages}]
    file.write_text("\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n")
    out, _ = invoke("generate", chat_checkpoint, "--prompts", file, *SHORT, "--json")
    results = [json.loads(line) for line in out.splitlines()]
    assert [(one["index"], one.get("id")) for one in results] == [(0, "a"), (1, None)]
    expected = [answer_of(chat_model, ("user", text)) for text in ("the cat\u2028", "the log")]
    assert [one["text"] for one in results] == expected
    out, err = invoke("generate", chat_checkpoint, "--prompts", file, *SHORT)
    assert out == "".join(f"{text}\n" for text in expected)
    assert f"{file}, line 2" in err
    file.write_text('{"prompt": "x"}\n{"text": "y"}\n')
    with pytest.raises(InputError, match=r"prompts.jsonl, line 2 must have"):
        invoke("generate", chat_checkpoint, "--prompts", file)


def test_options_of_the_drafter_and_of_the_end(checkpoint: Path) -> None:
    common = ["generate", checkpoint, "--prompt", "the cat", "--max-new-tokens=40", "--json"]
    recycling = [*common, "--drafter", "recycling", "--ignore-eos"]
    wide = json.loads(invoke(*recycling)[0])
    flags = ["--budget=5", "--drafter-option", "top-k=2", "--threads=1"]
    narrow = json.loads(invoke(*recycling, *flags)[0])
    assert narrow["token_ids"] == wide["token_ids"]
    most = [one["stats"]["num_draft_tokens"] / one["stats"]["num_steps"] for one in (narrow, wide)]
    assert most[0] <= 4 < most[1]
    assert len(wide["token_ids"]) == 40


def test_a_conversation(chat_checkpoint: Path, chat_model: Draftless) -> None:
    lines = "the cat\nthe dog\n/stats\n/reset\n/system the log\nthe \\\nmat\n/foo\n/exit\nno\n"
    out, err = invoke("chat", chat_checkpoint, *SHORT, stdin=lines)
    first = answer_of(chat_model, ("user", "the cat"))
    turns = [("user", "the cat"), ("assistant", first), ("user", "the dog")]
    second = answer_of(chat_model, *turns)
    third = answer_of(chat_model, ("system", "the log"), ("user", "the \nmat"))
    assert out == f"{first}\n{second}\n{third}\n"
    assert second != answer_of(chat_model, ("user", "the dog")), "history would not be missed"
    assert "all: 2 answers, 16 tokens" in err
    assert "unknown command /foo" in err


def test_drafts_are_coloured_on_request(chat_checkpoint: Path) -> None:
    lines = "the cat\n/drafts\nthe cat\n"
    out, err = invoke("chat", chat_checkpoint, *SHORT, stdin=lines)
    assert "accepted drafts look" in err
    assert len(out.splitlines()) >= 2


def test_a_model_without_a_template_is_refused(checkpoint: Path) -> None:
    with pytest.raises(InputError, match=r"chat needs a model with a chat template.*generate"):
        invoke("chat", checkpoint, stdin="hi\n")


def conversation(model: Draftless, num_tokens: int = 8) -> Conversation:
    return Conversation(model, Sampling({"max_new_tokens": num_tokens}), None)


def test_a_full_context_says_how_to_go_on(
    chat_model: Draftless, capsys: pytest.CaptureFixture[str]
) -> None:
    talk = conversation(chat_model, 600)
    talk.answer("the cat " * 160)  # some 480 of 512 tokens
    assert "context of 512 tokens is full; /reset" in capsys.readouterr().err
    before = list(talk.messages)
    assert [one["role"] for one in before] == ["user", "assistant"]
    talk.answer("the dog")
    assert "was not added; /reset" in capsys.readouterr().err
    assert talk.messages == before
    talk.obey("/reset")
    talk.answer("the dog")
    assert len(talk.messages) == 2


def test_ctrl_c_stops_the_answer_and_keeps_what_was_shown(
    chat_model: Draftless, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    honest = Draftless.stream

    def interrupted(self: Draftless, *arguments: Any) -> Iterator[Chunk]:
        for number, chunk in enumerate(honest(self, *arguments)):
            yield chunk
            if number == 2:
                os.kill(os.getpid(), signal.SIGINT)

    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        monkeypatch.setattr(Draftless, "stream", interrupted)
        talk = conversation(chat_model, 100)
        talk.answer("the cat")
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler
        monkeypatch.setattr(Draftless, "stream", honest)
        shown = capsys.readouterr()
        assert shown.err == "stopped\n"
        assert talk.messages[-1] == {"role": "assistant", "content": shown.out.removesuffix("\n")}
        assert shown.out == answer_of(chat_model, ("user", "the cat"), num_tokens=4) + "\n"
        talk.answer("the dog")
        assert len(talk.messages) == 4
    finally:
        signal.signal(signal.SIGINT, before)


def test_ctrl_c_before_the_first_token(
    chat_model: Draftless, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: Any) -> Iterator[Chunk]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(Draftless, "stream", slow)
    talk = conversation(chat_model)
    talk.answer("the cat")
    assert talk.messages == []


def test_typing_survives_ctrl_c_and_ends_with_ctrl_d(monkeypatch: pytest.MonkeyPatch) -> None:
    events: list[Any] = ["one \\", KeyboardInterrupt, "two", "three\\", EOFError]

    def typed(_: str) -> str:
        event = events.pop(0)
        if isinstance(event, str):
            return event
        raise event

    class Terminal(io.StringIO):
        def isatty(self) -> bool:
            return True

    monkeypatch.setattr(sys, "stdin", Terminal())
    monkeypatch.setattr("builtins.input", typed)
    assert list(typed_texts()) == ["two", "three"]


def test_counts_of_a_cancelled_answer_are_those_of_its_steps(chat_model: Draftless) -> None:
    drafting = chat_model.with_drafter("recycling")
    ids = chat_model.encode("the cat sat")
    params = SamplingParams(max_new_tokens=30, ignore_eos=True)
    chunks = list(drafting.stream(ids, params))
    *most, last = chunks
    assert last.output is not None
    whole = answers.follow(chunks, lambda _: None, seed=0, prompt_len=3)
    cut = answers.follow(most, lambda _: None, seed=9, prompt_len=3)
    assert not whole.is_cancelled
    assert cut.is_cancelled
    assert cut.seed == 9
    assert cut.token_ids + list(last.token_ids) == whole.token_ids
    stats = cut.stats.as_dict()
    assert stats["num_steps"] == len(most)
    for name in ("num_draft_tokens", "num_accepted_tokens"):
        assert stats[name] + getattr(last, name) == whole.stats.as_dict()[name]  # type: ignore[operator]
    assert sum(cut.stats.acceptance_histogram) == len(most)
