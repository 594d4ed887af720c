"""`draftless calibrate latency`: measured in full, kept, shown, and not measured twice."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from draftless.bench.price_tables import measured_on, rows_table, width_table
from draftless.cli import app
from draftless.engine import latency
from draftless.engine.latency import LatencyOptions
from draftless.prices import PriceList, read_price_list, write_price_list
from support.bench import save_bench_model

TINY = LatencyOptions((1, 4), (16,), (1, 2), (1,), (2, 2))


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(latency.CACHE_VARIABLE, str(tmp_path / "cache"))
    monkeypatch.setattr(latency, "FULL", TINY)
    return tmp_path / "cache"


def run(*arguments: str) -> Result:
    return CliRunner().invoke(
        app, ["calibrate", "latency", *arguments, "--threads", "1", "--no-compile"]
    )


def test_measured_once_and_again_by_force(tmp_path: Path, folder: Path) -> None:
    model = str(save_bench_model(tmp_path / "model"))
    done = run(model)
    assert done.exit_code == 0, done.output
    (file,) = (folder / "prices").iterdir()
    said, kept = json.loads(done.stdout), read_price_list(file)
    assert said["file"] == str(file) and set(said["forward_ms"]) == {"1", "4"}
    assert kept.facts["is_full"] and kept.facts["num_threads"] == 1
    assert "timing 3 kinds of passes: about" in done.stderr
    assert "16 cached, ms" in done.stderr and kept.hardware in done.stderr

    again = run(model, "--output", str(tmp_path / "new/prices.json"))
    assert "measured before" in again.stderr and "timing" not in again.stderr
    assert read_price_list(tmp_path / "new/prices.json") == kept
    forced = run(model, "--force")
    assert "measured before" not in forced.stderr
    assert read_price_list(file) != kept  # other times, to all digits


def test_a_short_list_does_not_stand_for_a_full_one(tmp_path: Path, folder: Path) -> None:
    model = str(save_bench_model(tmp_path / "model"))
    run(model)
    (file,) = (folder / "prices").iterdir()
    full = read_price_list(file)
    short = PriceList.from_dict({**full.to_dict(), "facts": {**full.facts, "is_full": False}})
    write_price_list(file, short)
    assert "measured before" not in run(model).stderr
    assert read_price_list(file).facts["is_full"]


@pytest.mark.parametrize("output", [".", "file/prices.json"])
def test_the_output_is_checked_before_anything_is_measured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, output: str
) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.delattr(latency, "measure")
    done = run("no-model", "--output", str(tmp_path / output))
    assert done.exit_code != 0
    assert "--output must be a file" in done.stderr + str(done.exception)


@pytest.mark.parametrize(("noise", "is_told"), [(0.5, True), (0.02, False)])
def test_a_busy_machine_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, noise: float, is_told: bool
) -> None:
    monkeypatch.setattr(latency, "_noise", lambda _: noise)
    done = run(str(save_bench_model(tmp_path / "model")))
    assert ("other load on this machine" in done.stderr) == is_told


def test_tables_of_a_price_list() -> None:
    points = {(1, 10, 1): 0.002, (4, 10, 1): 0.003, (1, 90, 1): 0.004, (4, 90, 1): 0.005}
    points |= {(w, length, 8): 2 * s for (w, length, _), s in points.items()}
    facts = {
        "num_threads": 2,
        "torch": "2.13",
        "num_rounds": 7,
        "noise": 0.031,
        "load": 1.25,
        "date": "today",
    }
    prices = PriceList.from_points(points, hardware="cpu x", dtype="bfloat16", facts=facts)
    assert width_table(prices).headings == ("width", "10 cached, ms", "90 cached, ms")
    assert width_table(prices).lines == (
        ("1", "2.00 (1.00)", "4.00 (1.00)"),
        ("4", "3.00 (1.50)", "5.00 (1.25)"),
    )
    assert rows_table(prices).lines == (("8", "8.00 (2.00)", "10.00 (2.50)", "18.00 (4.50)"),)
    assert measured_on(prices) == (
        "cpu x, 2 threads, bfloat16, eager, torch 2.13; 7 rounds, noise 3.1%, load 1.2, today"
    )
