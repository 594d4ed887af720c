"""The command: what it writes, what it refuses, and how it ends."""

from __future__ import annotations

import errno
import json
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from click.testing import Result
from typer.testing import CliRunner

from draftless import cli
from draftless.bench import plan, runner
from draftless.bench.methods import Sampling
from draftless.bench.rows import read_rows, read_sessions
from draftless.cli.bench_methods import read_samplings, read_variants
from draftless.errors import ArtifactError, ConfigError, InputError
from support.bench import bench_model, plant_wrong_token, save_bench_model

METHODS = bench_model().drafters


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_bench_model(tmp_path_factory.mktemp("models") / "wide")


@pytest.fixture
def questions(tmp_path: Path) -> Path:
    file = tmp_path / "mine.jsonl"
    records = [{"prompt": "the cat sat on the mat"}, {"turns": ["the dog", "and the log"]}]
    file.write_text("".join(json.dumps(record) + "\n" for record in records))
    return file


def invoke(*arguments: str | Path) -> Result:
    """The command in this process, uncompiled unless asked; our own errors are raised."""
    eager = ["--no-compile"] if arguments[0] == "run" and "--compile" not in arguments else []
    result = CliRunner().invoke(cli.app, ["bench", *map(str, arguments), *eager])
    if result.exception is not None and not isinstance(result.exception, SystemExit):
        raise result.exception
    return result


@pytest.fixture
def short_run(checkpoint: Path, questions: Path, tmp_path: Path) -> list[str | Path]:
    options = ["--max-new-tokens=10", f"--output={tmp_path / 'run'}", "--no-peers"]
    return ["run", checkpoint, "--suite", questions, *options]


def test_a_run_leaves_rows_a_session_and_a_table(
    short_run: list[str | Path], tmp_path: Path
) -> None:
    options = ["--drafter-option=tr-jacobi.budget=8", "--temperature=0,1", "--top-p=0.9"]
    options += ["--drafter-option=sdsat.steps=2", "--sweep=sdsat.k=1..2"]
    result = invoke(*short_run, "--peers", "--name=mine", *options)
    assert result.exit_code == 0
    rows = read_rows(tmp_path / "run")
    methods = {row.case.method for row in rows}
    assert methods >= {*METHODS, "tr-jacobi [budget=8]", "transformers"}
    assert methods >= {"sdsat [steps=2, k=1]", "sdsat [steps=2, k=2]"}
    assert {row.case.sampling for row in rows} == {"greedy", "T=1 top-p=0.9"}
    assert {row.case.model for row in rows} == {"mine"}
    assert {row.category for row in rows} == {"mine"}
    for heading in ("mine, greedy, float32", "mine, T=1 top-p=0.9, float32", "identical"):
        assert heading in result.stdout
    assert "2 of 2" in result.stdout
    assert "draftless bench report" in result.stderr
    assert read_sessions(tmp_path / "run")[0]["options"]["suite"] == "mine.jsonl"


def test_options_reach_the_run(short_run: list[str | Path], tmp_path: Path) -> None:
    more = ["--limit=1", "--repeats=2", "--seed=9", "--drafters=prompt-lookup", "--raw"]
    invoke(*short_run, *more, "--dtype=float64")
    rows = read_rows(tmp_path / "run")
    assert [(row.question_id, row.repeat) for row in rows[::2]] == [("mine-1", 0), ("mine-1", 1)]
    assert {row.case.method for row in rows} == {"none", "prompt-lookup"}
    assert {row.case.dtype for row in rows} == {"float64"}
    assert {row.seed for row in rows} == {runner.seed_of(9, "mine-1", n) for n in (0, 1)}
    options = read_sessions(tmp_path / "run")[0]["options"]
    assert options["is_raw"]
    assert options["max_new_tokens"] == 10


def test_a_stream_is_run_and_shown(checkpoint: Path, tmp_path: Path) -> None:
    options = ["--max-new-tokens=4", "--drafters=recycling", "--no-peers", "--limit=4"]
    options += ["--mix=0,1", "--categories=sql,math", f"--output={tmp_path / 'run'}"]
    out = invoke("run", checkpoint, *options).stdout
    rows = read_rows(tmp_path / "run")
    assert [row.category for row in rows[8::2]] in (2 * ["sql", "math"], 2 * ["math", "sql"])
    assert {row.mix for row in rows[:8]} == {0.0}
    assert len(rows) == 16
    assert "speed-up at mix ratio" in out
    assert "fall [95 %]" in out
    assert "2 of 2" not in out
    assert "8 of 8" in out  # all streams are compared with plain decoding
    with pytest.raises(ConfigError, match="nothing of cooking; the categories are"):
        invoke("run", checkpoint, "--categories=cooking")


def test_a_run_is_not_overwritten_but_goes_on(short_run: list[str | Path], tmp_path: Path) -> None:
    invoke(*short_run, "--drafters=none")
    before = (tmp_path / "run" / "rows.jsonl").read_bytes()
    with pytest.raises(ConfigError, match="--resume"):
        invoke(*short_run)
    assert "complete" in invoke(*short_run, "--drafters=none", "--resume").stderr
    assert (tmp_path / "run" / "rows.jsonl").read_bytes() == before
    invoke(*short_run, "--resume")
    assert (tmp_path / "run" / "rows.jsonl").read_bytes().startswith(before)
    assert len(read_rows(tmp_path / "run")) == 2 * len(METHODS)


def test_a_planted_wrong_token_ends_with_code_1(
    short_run: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_wrong_token(monkeypatch)
    result = invoke(*short_run, "--drafters=tr-jacobi")
    assert result.exit_code == 1
    assert "differ from plain decoding by more than rounding (tr-jacobi)" in result.stderr
    assert "0 of 2" in result.stdout


def test_a_failed_question_is_told(
    short_run: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = plan.our_method

    def fails(model: Any, *rest: Any) -> Any:
        method = honest(model, *rest)
        return method if "Null" in type(model.drafter).__name__ else lambda *_: 1 / 0

    monkeypatch.setattr(plan, "our_method", fails)
    result = invoke(*short_run, "--drafters=tr-jacobi")
    assert result.exit_code == 0
    line = next(line for line in result.stdout.splitlines() if line.startswith("tr-jacobi"))
    assert line.split()[-1] == "2"


def test_a_full_disk_is_one_clear_error(
    short_run: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: Any) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(runner, "append_lines", full)
    with pytest.raises(ArtifactError, match=r"sessions\.jsonl: No space left"):
        invoke(*short_run)


def test_ctrl_c_says_how_to_go_on(
    short_run: list[str | Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    measure = runner.Run._measure

    def stopped(self: Any, case: Any, repeat: int, index: int, method: Any) -> Any:
        calls.append(index)
        if index == 1:
            raise KeyboardInterrupt
        return measure(self, case, repeat, index, method)

    monkeypatch.setattr(runner.Run, "_measure", stopped)
    result = invoke(*short_run)
    assert result.exit_code == 130
    assert "--resume" in result.stderr
    assert {row.question_id for row in read_rows(tmp_path / "run")} == {"mine-1"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--suite=medium"], "medium"),
        (["--suite=code"], "--data"),
        (["--drafters=medusa"], "medusa"),
        (["--temperature=hot"], "hot"),
        (["--top-p=0.9"], "temperature"),
        (["--drafter-option=budget=8"], "NAME.KEY=VALUE"),
        (["--sweep=sdsat.k"], "NAME.KEY=VALUE, such as sdsat.k=1..13"),
        (["--sweep=sdsat.k=13..1"], "no range"),
        (["--sweep=sdsat.k=1..x"], "no range"),
        (["--sweep=sdsat.k=1,2", "--drafter-option=sdsat.k=3"], "given twice"),
        (["--sweep=sdsat.k=1,2", "--sweep=sdsat.k=3"], "given twice"),
        (["--sweep=sdsat.colour=1,2"], "colour"),
        (["--drafter-option=sdsat.k=[1"], r"'\[1' is no value"),
        (["--drafter-option=auto.max_width=8.0"], "max_width=8.0 of auto is no int"),
        (["--threads=0"], "--threads 0"),
        (["--max-new-tokens=0"], "--max-new-tokens 0"),
    ],
)
def test_bad_options_are_refused_by_name(
    checkpoint: Path, tmp_path: Path, options: list[str], message: str
) -> None:
    with pytest.raises((ConfigError, InputError), match=message):
        invoke("run", checkpoint, f"--output={tmp_path / 'run'}", *options)
    assert not (tmp_path / "run").exists()


def test_samplings_and_drafter_options_are_read() -> None:
    assert read_samplings(["0,0.5", "1", "0"], top_k=0, top_p=0.9, min_p=0.0) == (
        Sampling(),
        Sampling(0.5, top_p=0.9),
        Sampling(1.0, top_p=0.9),
    )
    values = ["tr-jacobi.budget=8", "tr-jacobi.couple=false", "recycling.name=a=b"]
    assert read_variants(values, []) == (
        ("tr-jacobi", {"budget": 8, "couple": False}),
        ("recycling", {"name": "a=b"}),
    )


def test_a_sweep_is_one_variant_per_value() -> None:
    found = read_variants(["sdsat.steps=2", "recycling.width=4"], ["sdsat.k=1..3,8,2"])
    assert found == (
        ("sdsat", {"steps": 2, "k": 1}),
        ("sdsat", {"steps": 2, "k": 2}),
        ("sdsat", {"steps": 2, "k": 3}),
        ("sdsat", {"steps": 2, "k": 8}),
        ("recycling", {"width": 4}),
    )
    product = read_variants([], ["a.x=0.5,true", "a.y=1,2"])
    assert product == tuple(("a", {"x": x, "y": y}) for x in (0.5, True) for y in (1, 2))


def test_the_suite_that_ships_needs_no_files(checkpoint: Path, tmp_path: Path) -> None:
    options = ["--limit=2", "--max-new-tokens=4", "--drafters=none", "--no-peers"]
    assert invoke("run", checkpoint, *options, f"--output={tmp_path / 'run'}").exit_code == 0
    assert {row.category for row in read_rows(tmp_path / "run")} == {"math", "sql"}


def test_random_text_is_a_suite(checkpoint: Path, tmp_path: Path) -> None:
    options = ["--max-new-tokens=2", "--limit=3", "--no-peers", "--drafters=none"]
    invoke(
        "run", checkpoint, "--suite=random", *options, f"--output={tmp_path / 'run'}", "--seed=5"
    )
    rows = read_rows(tmp_path / "run")
    assert [row.question_id for row in rows] == ["random-0", "random-1", "random-2"]
    assert min(row.turns[0].prompt_len for row in rows) > 30
    assert read_sessions(tmp_path / "run")[0]["options"]["suite"] == "random"


def test_how_passes_run_reaches_the_model(
    short_run: list[str | Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    given: dict[str, Any] = {}

    def load(_: str, **how: Any) -> Any:
        given.update(how)
        return bench_model()

    monkeypatch.setattr("draftless.cli.bench.load_model", load)
    invoke(*short_run, "--limit=1", "--drafters=none", "--compile", "--strict", "--int8")
    assert [given[name] for name in ("compile", "strict", "int8")] == [True] * 3


def test_random_text_has_no_categories(checkpoint: Path) -> None:
    with pytest.raises(ConfigError, match="no --categories"):
        invoke("run", checkpoint, "--suite=random", "--categories=code")


def test_report_and_quality_hand_their_arguments_on(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    called: dict[str, Any] = {}
    report, quality = ModuleType("report"), ModuleType("quality")

    def write_report(runs: list[Path], output: Path, categories: list[str], shown: Path) -> Path:
        called["report"] = (runs, output, categories, shown)
        return output / "index.html"

    def write_quality(model: Any, data: Path, output: Path, **more: Any) -> Path:
        called["quality"] = (model[0], more["before"][0], data, more["options"])
        more["on_progress"]("wide", 1, 2)
        output.with_suffix(".md").write_text("the table")
        return output

    report.write_report = write_report  # type: ignore[attr-defined]
    quality.write_quality = write_quality  # type: ignore[attr-defined]
    quality.QualityOptions = lambda *values: values  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, "draftless.bench.report", report)
    monkeypatch.setitem(sys.modules, "draftless.bench.quality", quality)
    more = ["--output", tmp_path / "r", "--categories", "code,sql", "--anchor-map=map.json"]
    out = invoke("report", tmp_path / "a", tmp_path / "b", *more).stdout
    runs = [tmp_path / "a", tmp_path / "b"]
    assert called["report"] == (runs, tmp_path / "r", ["code", "sql"], Path("map.json"))
    assert "index.html" in out
    arguments = ["--before", checkpoint, "--data", tmp_path, "--output", tmp_path / "q.json"]
    out = invoke("quality", checkpoint, *arguments, "--limit=3", "--run-code").stdout
    assert called["quality"] == ("wide", "wide", tmp_path, (3, 256, 8, True))
    assert "the table" in out


@pytest.mark.parametrize("command", [[], ["run"], ["report"], ["quality"]])
def test_help_teaches(command: list[str]) -> None:
    out = invoke(*command, "--help").stdout
    assert "draftless bench" in out
    assert not command or "Examples" in out
