"""The command: what it prints, what it refuses, how it ends."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.text import Text
from typer.testing import CliRunner

import draftless
from draftless import Chunk, Draftless, SamplingParams, cli
from draftless.cli.answers import DRAFT_STYLES, STAGES, DraftPainter
from draftless.cli.calibrate_common import install
from draftless.cli.demo import find_model, read_prompts
from draftless.cli.requests import read_messages
from draftless.drafters.anchor_store import AnchorStore
from draftless.drafters.registry import DRAFTERS
from draftless.errors import DraftlessError, InputError
from draftless.skip_set import SkipSet, SkipSetting
from support.bench import save_bench_model


def run(
    *arguments: str | Path, env: dict[str, str] | None = None
) -> subprocess.CompletedProcess[str]:
    """The installed command in a process of its own."""
    return subprocess.run(
        [sys.executable, "-m", "draftless", *map(str, arguments)],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, **(env or {})},
        stdin=subprocess.DEVNULL,
    )


def invoke(*arguments: str | Path) -> tuple[str, str]:
    """The command in this process: standard output and standard error."""
    line = list(map(str, arguments))
    if line and line[0] in ("generate", "demo") and "--help" not in line:
        line.append("--no-compile")  # of these tiny models compiling takes longer than all the rest
    result = CliRunner().invoke(cli.app, line)
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    assert result.exit_code == 0, result.output
    return result.stdout, result.stderr


def test_json_is_one_object_with_the_promised_keys(checkpoint: Path) -> None:
    out, _ = invoke(
        "generate", checkpoint, "--prompt", "the cat", "--max-new-tokens", "9", "--json"
    )
    result = json.loads(out)
    promised = {"text", "token_ids", "finish_reason", "stats"}
    promised |= {"time_to_first_token_s", "wall_time_s", "is_reproducible"}
    assert set(result) == promised | {"seed", "drafter", "model"}
    assert 0 < result["time_to_first_token_s"] <= result["wall_time_s"]
    assert set(result["stats"]) == {
        "num_steps",
        "num_forward_passes",
        "num_draft_passes",
        "num_draft_tokens",
        "num_accepted_tokens",
        "acceptance_length",
        "acceptance_histogram",
        "tokens_per_second",
        "time_s",
    }
    assert tuple(result["stats"]["time_s"]) == STAGES
    assert len(result["token_ids"]) == 9 or result["finish_reason"] == "stop"
    assert result["drafter"] == "auto"


def test_options_reach_the_engine(checkpoint: Path) -> None:
    """Each option changes what the same option of the API changes, and nothing else."""
    options = {
        "temperature": 1.0, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "seed": 3,
        "repetition_penalty": 1.3,
    }  # fmt: skip
    flags = [f"--{name.replace('_', '-')}={value}" for name, value in options.items()]
    out, _ = invoke(
        "generate", checkpoint, "-p", "the dog", "--max-new-tokens=20", "--json", *flags
    )
    model = Draftless.from_pretrained(checkpoint, drafter="none")
    expected = model.generate("the dog", max_new_tokens=20, **options)
    assert json.loads(out)["token_ids"] == expected.token_ids
    for name in options:
        changed = {**options, name: {"seed": 4, "temperature": 0.3}.get(name, 0.5)}
        if name == "top_k":
            changed[name] = 2
        other = model.generate("the dog", max_new_tokens=20, **changed)
        assert other.token_ids != expected.token_ids, f"{name} has no effect in this test"


@pytest.mark.parametrize("drafter", ["none", "prompt-lookup", "tr-jacobi"])
def test_drafters_write_the_same_text(checkpoint: Path, drafter: str) -> None:
    common = ["generate", checkpoint, "-p", "the mat", "--max-new-tokens=40", "--dtype=float64"]
    plain, _ = invoke(*common, "--drafter", "none")
    out, err = invoke(*common, "--drafter", drafter)
    assert out == plain
    assert drafter in err


def test_show_drafts_shows_the_same_text_with_a_summary(checkpoint: Path) -> None:
    common = ["generate", checkpoint, "-p", "the cat sat", "--max-new-tokens=60"]
    plain, _ = invoke(*common)
    out, err = invoke(*common, "--show-drafts", "--drafter=tr-jacobi", "--budget=8")
    assert out.split() == plain.split()
    assert "tr-jacobi" in err
    assert "drafts accepted" in err


def test_the_painter_colours_accepted_tokens_and_keeps_brackets(checkpoint: Path) -> None:
    tokenizer = Draftless.from_pretrained(checkpoint).tokenizer
    assert tokenizer is not None
    words = [" sat", "[bold]", " on"]
    ids = [tokenizer.encode(word, add_special_tokens=False) for word in words]
    flat = tuple(i for word in ids for i in word)
    num_accepted = len(flat) - len(ids[-1])
    painter = DraftPainter(tokenizer)
    # The stream may hold text back; its style must wait for it.
    first = painter.paint(Chunk(" sa", flat, num_accepted))
    second = painter.paint(Chunk("t[bold] on", (), 0))
    assert isinstance(first, Text)
    assert first.plain + second.plain == " sat[bold] on"
    styles = [str(s.style) for s in first.spans + second.spans]
    plain_end = [str(s.style) for s in second.spans if second.plain[s.start :].startswith(" on")]
    assert set(styles) >= {DRAFT_STYLES[0]}
    assert all(style == "" for style in plain_end)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--prompt", "x", "--temperature", "nan"], "--temperature nan"),
        (["--prompt", "x", "--drafter", "medusa"], "medusa"),
        (["--prompt", "x", "--drafter", "none", "--budget", "8"], "budget"),
        (["--prompt", "x", "--prompt-file", "y"], "one of --prompt"),
        ([], "one of --prompt"),
        (["--prompt-file", "/does/not/exist"], "/does/not/exist"),
        (["--prompt", "x", "--json", "--show-drafts"], "choose one"),
        (["--prompt", "x", "--dtype", "int3"], "int3"),
        (["--prompt", "x", "--max-new-tokens", "0"], "--max-new-tokens 0"),
        (["--prompt", "x", "--min-tokens", "200"], "--min-new-tokens 200 is above"),
        (["--prompt", "x", "--drafter", "auto", "--budget", "1"], "--budget 1 of auto"),
        (["--prompt", "x", "--drafter-option", "top_k"], "--drafter-option must be NAME=VALUE"),
        (["--prompt", "x", "--drafter", "recycling", "--drafter-option", "x=1"], "no option x"),
        (["--prompt", "x", "--device", "warp"], "device 'warp' is not there"),
    ],
)
def test_bad_input_is_refused_by_name(checkpoint: Path, arguments: list[str], message: str) -> None:
    with pytest.raises(DraftlessError, match=message):
        invoke("generate", checkpoint, *arguments)


def test_an_error_is_one_line_and_code_2(tmp_path: Path) -> None:
    result = run("generate", tmp_path / "missing", "--prompt", "x")
    assert result.returncode == 2
    assert result.stdout == ""
    *phases, error = result.stderr.splitlines()
    assert error.startswith("error: ")
    assert all(re.search(r" \.\.\.( \d+ s)?$", line) for line in phases), phases


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rows = Path(__file__).parents[2] / "benchmarks" / "results" / "top-p"
    result = run("bench", "report", rows, "--output", tmp_path / "file" / "report")
    assert result.returncode == 2
    assert f"{tmp_path / 'file' / 'report'}: Not a directory" in result.stderr.replace("\n", "")
    assert "Traceback" not in result.stderr


@pytest.mark.parametrize("flags", [[], ["--json"]])
def test_ctrl_c_keeps_what_was_generated(checkpoint: Path, flags: list[str]) -> None:
    arguments = ["generate", str(checkpoint), "--prompt", "the cat", "--no-compile", *flags]
    process = subprocess.Popen(
        [sys.executable, "-c", INTERRUPTED, *arguments, "--max-new-tokens", "400", "--ignore-eos"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        # A test run in the background of a shell ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert "Traceback" not in out + err
    if flags:
        result = json.loads(out)
        assert result["finish_reason"] == "cancelled"
        assert result["stats"]["num_steps"] == 5
        assert len(result["token_ids"]) == result["stats"]["num_accepted_tokens"] + 5
        assert result["text"]
    else:
        assert "cancelled" in err
        assert "tokens in 5 steps" in err
        assert len(out) > 1


INTERRUPTED = """
import os, signal, sys
from draftless import Draftless, cli
signal.signal(signal.SIGINT, signal.default_int_handler)
honest = Draftless.stream
def stream(self, *arguments):
    for number, chunk in enumerate(honest(self, *arguments)):
        yield chunk
        if number == 3:
            os.kill(os.getpid(), signal.SIGINT)  # while the fifth step is made
Draftless.stream = stream
cli.main()
"""


@pytest.mark.parametrize(
    "command", [[], ["generate"], ["demo"], ["train"], ["train", "msn"], ["data", "regenerate"]]
)
def test_help_teaches(command: list[str]) -> None:
    out, _ = invoke(*command, "--help")
    assert "draftless" in out
    if command in (["generate"], ["demo"], ["data", "regenerate"]):
        assert "Examples" in out


def test_messages_are_read_strictly() -> None:
    assert read_messages('[{"role": "user", "content": "hi"}]', "f")[0]["content"] == "hi"
    for source in ("{", "[]", '{"role": "user"}', '[{"content": "hi"}]', '["hi"]'):
        with pytest.raises(InputError, match="f "):
            read_messages(source, "f")


def test_demo_as_json(checkpoint: Path) -> None:
    arguments = ["--max-new-tokens=12", "--repeats=1", "--dtype=float64", "--json"]
    out, _ = invoke("demo", checkpoint, *arguments)
    result = json.loads(out)
    assert "same ids as none on all" in result["verdict"]
    assert {p["domain"] for p in result["prompts"]} >= {"sql", "math", "code", "story"}
    for prompt in result["prompts"]:
        assert list(prompt["runs"]) == ["none", "auto", "prompt-lookup", "recycling"]
        assert all(run["is_identical"] for run in prompt["runs"].values())
    assert result["totals"]["none"]["speed_up"] == 1.0


def test_demo_shows_every_drafter_of_the_checkpoint(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    checkpoint = save_bench_model(tmp_path)
    everything = SkipSetting(SkipSet(), 0.5, 4)  # drafts that are always right
    model = Draftless.from_pretrained(checkpoint)
    store = AnchorStore(
        vectors=torch.eye(32)[:1], labels=("cats",), max_distance=2.0,
        settings={"cats": everything}, general=everything, kind="samples",
        model_fingerprint=model.target.fingerprint(),
    )  # fmt: skip
    store.save(checkpoint / "anchors")
    install(checkpoint, "layer-skip", everything.to_dict())
    install(checkpoint, "knn-ssd", {"store": "anchors"})
    monkeypatch.setenv("COLUMNS", "160")
    out, _ = invoke("demo", checkpoint, "--max-new-tokens=4", "--repeats=1")
    shown = [name for name in DRAFTERS if name != "tr-jacobi"]  # it was not trained for that one
    for name in shown:
        assert f" {name} " in out
    assert "tr-jacobi" not in out
    assert out.count("x (cats)") == len(read_prompts())


def test_demo_reports_a_difference(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a drafter changed the text, the demo would say so: here one does."""
    honest = Draftless.stream

    def lying(self: Draftless, prompt: object, params: object) -> list[Chunk]:
        chunks = list(honest(self, prompt, params))
        if "Recycling" in type(self.drafter).__name__:
            chunks[-1].output.token_ids[3] += 1
        return chunks

    monkeypatch.setattr(Draftless, "stream", lying)
    out, _ = invoke("demo", checkpoint, "--max-new-tokens=12", "--repeats=1")
    assert "on 0 of" in " ".join(out.split())
    assert "*: other ids than none" in out
    (line,) = (one for one in out.splitlines() if one.split()[:1] == ["recycling"])
    assert line.split()[-3:] == ["0", "of", str(len(read_prompts()))]


def test_demo_asks_a_chat_model_in_its_template(chat_checkpoint: Path) -> None:
    arguments = ["--max-new-tokens=6", "--repeats=1", "--json"]
    out, _ = invoke("demo", chat_checkpoint, *arguments)
    result = json.loads(out)
    assert [one["prompt"] for one in result["prompts"]] == [
        one["prompt"] for one in read_prompts(is_chat=True)
    ]
    model = Draftless.from_pretrained(chat_checkpoint, drafter="none")
    messages = [{"role": "user", "content": result["prompts"][0]["prompt"]}]
    expected = model.generate(model.encode_chat(messages), SamplingParams(max_new_tokens=6))
    assert result["prompts"][0]["runs"]["auto"]["token_ids"] == expected.token_ids


def test_the_model_of_the_demo(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("DEMO_MODEL", raising=False)
    assert find_model() is None
    assert "smollm2-135m is not there" in capsys.readouterr().err
    (tmp_path / "models" / "smollm2-135m").mkdir(parents=True)
    assert find_model() == str(Path("models") / "smollm2-135m")
    monkeypatch.setenv("DEMO_MODEL", "embedded")
    assert find_model() is None
    assert capsys.readouterr().err == ""
    monkeypatch.setenv("DEMO_MODEL", str(tmp_path))
    assert find_model() == str(tmp_path)


def test_demo_prompts_are_attributed() -> None:
    sources = (Path(draftless.__file__).parent / "assets" / "demo" / "SOURCES.md").read_text()
    for prompt in read_prompts():
        assert f"| {prompt['domain']} |" in sources
