"""recipes/gpu.sh and its parts, on a CPU, at toy size."""

from __future__ import annotations

import gzip
import json
import os
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

ROOT = Path(__file__).parents[2]
SAMPLES = ROOT / "src" / "draftless" / "assets" / "samples"


@pytest.fixture
def recipes(monkeypatch: pytest.MonkeyPatch) -> tuple[ModuleType, ModuleType]:
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import gpu_data
    import gpu_train

    return gpu_data, gpu_train


def lines(path: Path) -> list[dict[str, str]]:
    with gzip.open(path, "rt", encoding="utf-8") as text:
        return [json.loads(line) for line in text]


@pytest.fixture
def work(
    tmp_path: Path, recipes: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> Path:
    monkeypatch.setattr(sys, "argv", ["gpu_data", str(SAMPLES), str(tmp_path), "--limit", "60"])
    recipes[0].main()
    return tmp_path


def test_the_base_reads_whole_texts(work: Path) -> None:
    base, sft = lines(work / "base.jsonl.gz"), lines(work / "sft.jsonl.gz")
    assert len(base) == len(sft) == 60
    assert {record["prompt"] for record in base} == {""}
    assert base[7]["response"] == f"{sft[7]['prompt']}\n{sft[7]['response']}"


def test_a_stage_that_runs_out_of_time_goes_on_where_it_stopped(
    work: Path,
    recipes: tuple[ModuleType, ModuleType],
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    gpu_train = recipes[1]
    monkeypatch.setattr(gpu_train, "PROBE_STEPS", 8)

    def stage(limit_s: float, *more: str) -> None:
        command = ["gpu_train", "base", "--work", str(work), "--minutes", "1", "--toy"]
        monkeypatch.setattr(sys, "argv", [*command, "--limit-s", str(limit_s), *more])
        gpu_train.main()

    with pytest.raises(SystemExit) as stopped:
        stage(0.0, "--steps", "4")
    assert stopped.value.code == gpu_train.TRY_AGAIN
    assert "goes on from the checkpoint" in capsys.readouterr().out
    checkpoints = [path.name for path in (work / "base" / "checkpoints").glob("checkpoint-*")]
    assert checkpoints == ["checkpoint-1"]
    assert not (work / "probe").exists() and not (work / "base" / "draftless.json").exists()
    plan = json.loads((work / "plan-base.json").read_text())
    assert plan["steps"] == 4 and plan["step_s"] > 0

    stage(600.0, "--steps", "9")  # what was planned holds
    assert "base: 4 steps" in capsys.readouterr().out
    log = json.loads((work / "base" / "training_log.json").read_text())
    assert log[-1]["step"] == 4
    assert (work / "base" / "model.safetensors").exists()


def test_steps_follow_from_the_minutes(
    work: Path, recipes: tuple[ModuleType, ModuleType], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The control makes MSN's steps, whatever its own ones cost."""
    gpu_train = recipes[1]
    probed: list[str] = []

    def fake_train(config: object, callbacks: list[object]) -> None:
        probed.append(config.data)  # type: ignore[attr-defined]
        assert config.clean_share == 0.0 and config.max_steps == gpu_train.PROBE_STEPS  # type: ignore[attr-defined]
        (work / "probe").mkdir()
        callbacks[0].times = [0.5 * n for n in range(gpu_train.PROBE_STEPS)]  # type: ignore[attr-defined]

    monkeypatch.setattr(gpu_train, "train", fake_train)
    monkeypatch.setattr(gpu_train, "prepare", lambda config: config)
    args = gpu_train.argparse.Namespace(work=work, minutes=3.0, toy=True, steps=None)
    assert gpu_train.planned_steps("control", args) == 360
    assert gpu_train.planned_steps("msn", args) == 360
    assert probed == [str(work / "probe.jsonl.gz")]


def test_shapes_are_what_the_recipe_promises(recipes: tuple[ModuleType, ModuleType]) -> None:
    """100M to 300M parameters with the embedded model's vocabulary."""
    import torch
    from transformers import AutoConfig, AutoModelForCausalLM

    gpu_train = recipes[1]
    config = AutoConfig.from_pretrained(gpu_train.EMBEDDED)
    shape = type(config).from_dict({**config.to_dict(), "head_dim": None, **gpu_train.SHAPE})
    with torch.device("meta"):
        model = AutoModelForCausalLM.from_config(shape)
    assert 100e6 < sum(p.numel() for p in model.parameters()) < 300e6


def run_recipe(tmp_path: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        ["bash", str(ROOT / "recipes" / "gpu.sh"), str(SAMPLES), str(tmp_path / "out")],
        env={
            **os.environ, "TOY": "1", "WORK": str(tmp_path / "work"), "PYTHON": sys.executable,
            **environment,
        },
        capture_output=True, text=True, cwd=tmp_path,
    )  # fmt: skip


def test_a_wrong_stage_is_refused(tmp_path: Path) -> None:
    done = run_recipe(tmp_path, STAGE="bass")
    assert done.returncode == 2 and "unknown stage bass" in done.stderr


def test_no_stage_begins_that_has_no_time(tmp_path: Path) -> None:
    done = run_recipe(tmp_path, STAGE="data base", LIMIT_S="50")
    assert done.returncode == 75 and "no time left for data" in done.stdout
    assert not list((tmp_path / "work").iterdir())


@pytest.mark.full
def test_the_whole_recipe_in_two_calls(tmp_path: Path) -> None:
    """What a lent machine's limits ask for: few files, no weights; a stage is done once."""
    first = run_recipe(tmp_path, STAGE="data base control")
    assert first.returncode == 0, first.stdout + first.stderr
    done = run_recipe(tmp_path)
    assert done.returncode == 0, done.stdout + done.stderr
    for name in ("data", "base", "control"):
        assert f"{name}: done before" in done.stdout
    out = tmp_path / "out"
    files = {str(path.relative_to(out)) for path in out.rglob("*") if path.is_file()}
    assert files == {
        "training.json", "replay-toy.json",
        "bench-adaptive/rows.jsonl", "bench-adaptive/sessions.jsonl",
        "bench-control/rows.jsonl", "bench-control/sessions.jsonl",
    }  # fmt: skip
    training = json.loads((out / "training.json").read_text())
    assert list(training["adaptive"]["manifest"]["methods"]) == ["sdsat", "tr-jacobi"]
    assert not training["control"]["manifest"]["methods"]
    rows = [json.loads(row) for row in (out / "bench-adaptive/rows.jsonl").open()]
    methods = {row["case"]["method"] for row in rows}
    assert {"none", "transformers", "sdsat", "tr-jacobi", "recycling", "prompt-lookup"} <= methods
