"""The command: what it prints, what it refuses, how it ends."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from rich.text import Text
from typer.testing import CliRunner

import draftless
from draftless import Chunk, Draftless, cli
from draftless.cli.calibrate_common import install
from draftless.cli.demo import LABELS, read_prompts
from draftless.cli.generate import DRAFT_STYLES, STAGES, DraftPainter, read_messages
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
    result = CliRunner().invoke(cli.app, list(map(str, arguments)))
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
    assert set(result) == promised | {"seed", "drafter", "model"}
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
    options = {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "min_p": 0.01, "seed": 3}
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
        (["--prompt", "x", "--temperature", "nan"], "temperature=nan"),
        (["--prompt", "x", "--drafter", "medusa"], "medusa"),
        (["--prompt", "x", "--drafter", "none", "--budget", "8"], "budget"),
        (["--prompt", "x", "--prompt-file", "y"], "one of --prompt"),
        ([], "one of --prompt"),
        (["--prompt-file", "/does/not/exist"], "/does/not/exist"),
        (["--prompt", "x", "--json", "--show-drafts"], "choose one"),
        (["--prompt", "x", "--dtype", "int3"], "int3"),
        (["--prompt", "x", "--max-new-tokens", "0"], "max_new_tokens=0"),
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
    assert result.stderr.startswith("error: ")
    assert len(result.stderr.splitlines()) == 1


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    rows = Path(__file__).parents[2] / "benchmarks" / "results" / "top-p"
    result = run("bench", "report", rows, "--output", tmp_path / "file" / "report")
    assert result.returncode == 2
    assert f"{tmp_path / 'file' / 'report'}: Not a directory" in result.stderr.replace("\n", "")
    assert "Traceback" not in result.stderr


def test_ctrl_c_ends_cleanly(checkpoint: Path) -> None:
    arguments = ["generate", str(checkpoint), "--prompt", "the cat", "--max-new-tokens", "480"]
    process = subprocess.Popen(
        [sys.executable, "-m", "draftless", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        # A test run in the background of a shell ignores SIGINT, and so would its children.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    process.stdout.read(1)  # the stream has begun
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=300)
    assert process.returncode == 130
    assert b"Traceback" not in out + err


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
    assert "same ids as plain decoding on all" in result["verdict"]
    assert {p["domain"] for p in result["prompts"]} >= {"sql", "math", "code", "story"}
    for prompt in result["prompts"]:
        assert list(prompt["runs"]) == ["none", "auto", "prompt-lookup", "recycling", "tr-jacobi"]
        assert all(run["is_identical"] for run in prompt["runs"].values())
    assert result["totals"]["none"]["speed_up"] == 1.0


def test_demo_shows_every_drafter_of_the_checkpoint(tmp_path: Path) -> None:
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
    out, _ = invoke("demo", checkpoint, "--max-new-tokens=4", "--repeats=1")
    for name in DRAFTERS:
        assert out.count(LABELS[name]) >= len(read_prompts())
    assert out.count("KNN-SSD (cats)") == len(read_prompts())


def test_demo_reports_a_difference(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """If a drafter changed the text, the demo would say so: here one does."""
    honest = Draftless.stream

    def lying(self: Draftless, prompt: object, params: object) -> list[Chunk]:
        chunks = list(honest(self, prompt, params))
        if "Jacobi" in type(self.drafter).__name__:
            chunks[-1].output.token_ids[3] += 1
        return chunks

    monkeypatch.setattr(Draftless, "stream", lying)
    out, _ = invoke("demo", checkpoint, "--max-new-tokens=12", "--repeats=1")
    assert "on 0 of" in " ".join(out.split())
    assert "up to 3" in out


def test_demo_prompts_are_attributed() -> None:
    sources = (Path(draftless.__file__).parent / "assets" / "demo" / "SOURCES.md").read_text()
    for prompt in read_prompts():
        assert f"| {prompt['domain']} |" in sources
