"""`draftless calibrate skip`, from records to an installed setting."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from draftless import ConfigError, Draftless, DraftlessError, InputError
from draftless.calibration import skip_search
from draftless.calibration.costs import CostTable
from draftless.cli import app
from draftless.cli.calibrate_common import read_prompts
from draftless.drafters.layer_skip import LayerSkipDrafter
from draftless.manifest import read_manifest
from support.bench import save_bench_model

COSTS = CostTable(2, 10, tuple(20.0 + w for w in range(12)), 2.0, 2.0, 1.0, 0.0)
SMALL = (
    "--no-protect-ends", "--limit", "2", "--text-tokens", "6", "--trials", "4", "--depth", "3",
    "--random", "2", "--threads", "1",
)  # fmt: skip


def write_records(file: Path, records: list[dict[str, Any]]) -> None:
    file.parent.mkdir(parents=True, exist_ok=True)
    text = "".join(json.dumps(record) + "\n" for record in records)
    file.write_bytes(gzip.compress(text.encode()) if file.suffix == ".gz" else text.encode())


def prompts(*texts: str, **more: str) -> list[dict[str, Any]]:
    return [{"prompt": text, "response": "x", **more} for text in texts]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    write_records(tmp_path / "data/cats/train.jsonl", prompts("the cat sat", "on the mat", "cat"))
    write_records(tmp_path / "data/dogs/train.jsonl.gz", prompts("and the dog", "the log"))
    return tmp_path / "data"


@pytest.fixture(autouse=True)
def fixed_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skip_search, "measure_costs", lambda *_: COSTS)


def run(model: Path, data: Path, output: Path, *options: str) -> Result:
    command = ["calibrate", "skip", "--model", str(model), "--data", str(data)]
    return CliRunner().invoke(app, [*command, "--output", str(output), *SMALL, *options])


def test_search_resume_and_install(tmp_path: Path, data: Path) -> None:
    model, output = save_bench_model(tmp_path / "model"), tmp_path / "skip"
    before = read_manifest(model)
    done = run(model, data, output)
    assert done.exit_code == 0, done.output
    said = json.loads(done.stdout.splitlines()[-1])
    found = json.loads((output / "skip.json").read_text())
    assert said["setting"] == found["setting"] and found["tried"]["num_trials"] == 4
    assert found["options"]["domains"] == ["cats", "dogs"] and found["options"]["num_texts"] == 4
    assert "4 texts of 2 domains" in done.stderr and "random sets of its size" in done.stderr
    assert ("not clear of 0" in done.stderr) != said["is_clear_of_chance"]
    assert read_manifest(model) == before  # nothing is installed unasked

    assert isinstance(run(model, data, output).exception, ConfigError)
    other = run(model, data, output, "--resume", "--domain", "cats")
    assert isinstance(other.exception, ConfigError) and "prompts=" in str(other.exception)
    more = run(model, data, output, "--resume", "--install", "--trials", "6")
    assert more.exit_code == 0, more.output
    found = json.loads((output / "skip.json").read_text())
    assert found["tried"]["num_trials"] == 6
    manifest = read_manifest(model)
    assert before is not None and manifest is not None
    assert manifest.methods == {**before.methods, "layer-skip": found["setting"]}
    assert manifest.default_drafter == before.default_drafter
    loaded = Draftless.from_pretrained(model, drafter="layer-skip")
    assert isinstance(loaded.drafter, LayerSkipDrafter)
    assert loaded.drafter.setting.to_dict() == found["setting"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--install", "--model", "some/hub-id"], "some/hub-id"),
        (["--domain", "birds"], "no domain birds; it has cats, dogs"),
        (["--objective", "speed"], "'speed' is unknown"),
    ],
)
def test_what_cannot_work_is_said_before_a_model_is_loaded(
    tmp_path: Path, data: Path, options: list[str], message: str
) -> None:
    failed = run(tmp_path / "no-model", data, tmp_path / "out", *options)
    assert isinstance(failed.exception, DraftlessError) and message in str(failed.exception)
    assert not (tmp_path / "out").exists()


def domains(source: Path, *wanted: str) -> list[tuple[str, Any]]:
    return [(one.domain, one.content) for one in read_prompts(str(source), "train", wanted)]


def test_domains_come_from_records_folders_and_files(tmp_path: Path) -> None:
    mixed = tmp_path / "mixed"
    write_records(mixed / "a/train.jsonl", [*prompts("p"), *prompts("q", domain="own")])
    write_records(mixed / "a/valid.jsonl", prompts("never"))
    write_records(mixed / "b/train-1.jsonl", prompts("r", category="kind"))
    assert domains(mixed) == [("a", "p"), ("own", "q"), ("kind", "r")]
    assert domains(mixed, "own", "a") == [("a", "p"), ("own", "q")]
    write_records(tmp_path / "birds.jsonl.gz", prompts("s"))
    assert domains(tmp_path / "birds.jsonl.gz") == [("birds", "s")]
    with pytest.raises(InputError, match="does not exist"):
        domains(tmp_path / "none.jsonl")


def test_of_a_chat_the_first_question_counts(tmp_path: Path) -> None:
    chat = [{"role": r, "content": r} for r in ("system", "user", "assistant", "user", "assistant")]
    write_records(tmp_path / "chat.jsonl", [{"messages": chat}])
    ((domain, content),) = domains(tmp_path / "chat.jsonl")
    assert (domain, content) == ("chat", chat[:2])
