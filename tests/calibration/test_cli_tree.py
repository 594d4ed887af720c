"""`draftless calibrate tree`, from records to an installed template."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner, Result

from draftless import ArtifactError, ConfigError, Draftless, DraftlessError
from draftless.calibration import tree_search
from draftless.calibration.margins import Margin
from draftless.cli import app
from draftless.manifest import Manifest, read_manifest, write_manifest
from draftless.prices import PriceList, write_price_list
from support.bench import save_bench_model

SMALL = ("--limit", "4", "--text-tokens", "8", "--threads", "1")


@pytest.fixture
def data(tmp_path: Path) -> Path:
    texts = ["the cat sat", "on the mat", "and the dog", "print(a[0])", "the log"]
    for domain in ("cats", "dogs"):
        file = tmp_path / "data" / domain / "train.jsonl"
        file.parent.mkdir(parents=True)
        lines = [json.dumps({"prompt": f"{domain} {text}", "response": "x"}) for text in texts]
        file.write_text("\n".join(lines))
    points = {(1, 0, 1): 1.0, (128, 0, 1): 7.35}
    write_price_list(tmp_path / "prices.json", PriceList.from_points(points))
    return tmp_path / "data"


@pytest.fixture
def model(tmp_path: Path) -> Path:
    return save_bench_model(tmp_path / "model")


def run(model: Path, data: Path, *options: str, output: str = "tree") -> Result:
    command = ["calibrate", "tree", "--model", str(model), "--data", str(data)]
    command += ["--output", str(data.parent / output), "--prices", str(data.parent / "prices.json")]
    return CliRunner().invoke(app, [*command, *SMALL, *options])


def said(result: Result) -> list[dict[str, Any]]:
    assert result.exit_code == 0, result.output
    return [json.loads(line) for line in result.stdout.splitlines()]


def plant_margin(monkeypatch: pytest.MonkeyPatch, low: float) -> None:
    compare = tree_search.compare
    monkeypatch.setattr(
        tree_search,
        "compare",
        lambda *given: replace(compare(*given), over_best=Margin(0.1, low, 0.2)),
    )


def test_templates_are_found_and_kept(data: Path, model: Path) -> None:
    before = read_manifest(model)
    found = said(run(model, data))
    assert [one["drafter"] for one in found] == ["recycling", "tr-jacobi"]
    assert read_manifest(model) == before  # nothing is installed unasked
    files = {name: data.parent / f"tree/{name}.json" for name in ("recycling", "tr-jacobi")}
    content = files["recycling"].read_text()
    drafted = Draftless.from_pretrained(
        model, drafter="recycling", drafter_options={"template": str(files["recycling"])}
    )
    assert drafted.generate("the cat", max_new_tokens=4).token_ids

    refused = run(model, data)
    assert isinstance(refused.exception, ConfigError) and "--resume" in str(refused.exception)
    files["tr-jacobi"].unlink()
    again = run(model, data, "--resume")
    assert said(again) == found and "recycling.json is there already" in again.stderr
    assert files["recycling"].read_text() == content

    other = run(model, data, "--resume", "--temperature", "1")
    assert isinstance(other.exception, ConfigError) and "temperatures=[0.0]" in str(other.exception)
    files["recycling"].write_text("{}")
    assert isinstance(run(model, data, "--resume").exception, ArtifactError)


def test_what_is_faster_is_installed_beside_what_was_there(
    data: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_margin(monkeypatch, 0.05)
    manifest = read_manifest(model) or Manifest()
    trained = {**manifest.methods, "tr-jacobi": {"noise_source": "prefix"}}
    write_manifest(model, replace(manifest, methods=trained))
    done = run(model, data, "--install")
    assert said(done) and "tr-jacobi: installed" in done.stderr
    installed = read_manifest(model)
    assert installed is not None and installed.default_drafter == manifest.default_drafter
    kept = json.loads((data.parent / "tree/tr-jacobi.json").read_text())
    learned = {"template": kept["template"], "budget": kept["budget"]}
    assert installed.methods["tr-jacobi"] == {"noise_source": "prefix", **learned}
    assert set(installed.methods) == {*trained, "recycling"}


def test_what_is_not_shown_to_be_faster_is_not_installed(
    data: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plant_margin(monkeypatch, -0.01)
    before = read_manifest(model)
    done = run(model, data, "--install", "--drafters", "recycling")
    assert [one["is_better"] for one in said(done)] == [False]
    assert "not clear of 0" in done.stderr and "not installed" in done.stderr
    assert read_manifest(model) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--drafters", "sdsat"], "'sdsat' has no template"),
        (["--temperature", "warm"], "not numbers"),
        (["--temperature", "-1"], "numbers from 0"),
        (["--install", "--model", "some/hub-id"], "some/hub-id"),
        (["--domain", "birds"], "no domain birds"),
    ],
)
def test_what_cannot_work_is_said_before_a_model_is_loaded(
    tmp_path: Path, data: Path, options: list[str], message: str
) -> None:
    failed = run(tmp_path / "no-model", data, *options)
    assert isinstance(failed.exception, DraftlessError) and message in str(failed.exception)
    assert not (tmp_path / "tree").exists()


def test_ctrl_c_says_how_to_go_on(data: Path, model: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(tree_search, "search_template", interrupt)
    stopped = run(model, data)
    assert stopped.exit_code and "the same command with --resume" in stopped.stderr
    assert (data.parent / "tree/texts.json").exists()
    monkeypatch.undo()
    assert len(said(run(model, data, "--resume"))) == 2
