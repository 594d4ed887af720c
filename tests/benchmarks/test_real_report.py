"""The report on real models: its arithmetic, on rows that are made up."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from real.rows import RealRow, append_row, read_rows

from draftless.errors import ArtifactError
from real import report

SESSION = {
    "command": "real.run --model m",
    "commit": "0123456789abcdef",
    "is_dirty": False,
    "cpu": "a processor",
    "options": {"threads": 2},
    "left_out": {"openvino": "is missing"},
    "peers": {"ours": "draftless 1"},
}


def row(method: str, question: str, seconds: float, **changed: Any) -> RealRow:
    """Ten tokens in `seconds`, a fifth of which is prefill."""
    made = RealRow(
        *("m", "spec-bench", "qa", question, "greedy", method),
        token_ids=list(range(10)),
        text="ten",
        wall_s=seconds,
        prefill_s=seconds / 5,
        decode_s=seconds * 4 / 5,
        decode_tokens=10,
        steps=10,
        peak_memory_bytes=2**20,
        load_s=1.5,
        load=0.5,
    )
    return replace(made, **changed)


def cell(rows: list[RealRow], **wanted: str) -> dict[str, Any]:
    """The one cell with these values."""
    (found,) = report.cells_of(report.aggregate(rows, [SESSION]), **wanted)
    return found


def test_rates_and_acceptance_are_of_totals() -> None:
    rows = [
        row("none", "1", 2.0),
        row("none", "2", 2.0),
        row("auto", "1", 1.0, steps=5),
        row("auto", "2", 0.5, steps=2, token_ids=[1, 2, 3, 4], decode_tokens=3),
    ]
    found = cell(rows, method="auto", category="all")
    assert found["tokens"] == 14 and found["questions"] == 2 and found["failed"] == 0
    assert found["acceptance_length"] == 2.0  # 14 tokens in 7 steps
    assert found["tokens_per_second"] == pytest.approx(14 / 1.5, rel=1e-3)
    assert found["decode_tokens_per_second"] == pytest.approx(13 / 1.2, rel=1e-3)
    assert found["speed_up"] == pytest.approx((14 / 1.5) / (20 / 4), rel=1e-3)
    assert found["over"] == "none"


def test_a_speed_up_is_over_the_fastest_loop_of_the_same_weights() -> None:
    rows = [
        row("none", "1", 2.0),
        row("transformers", "1", 4.0),
        row("llama.cpp bf16", "1", 1.0),
        row("llama.cpp 4-bit", "1", 0.1),  # other weights: no baseline
        row("llama.cpp bf16 ngram-simple", "1", 0.2),  # no plain loop
        row("auto", "1", 0.5),
    ]
    for method, times in (("auto", 2.0), ("none", 0.5), ("llama.cpp 4-bit", 10.0)):
        found = cell(rows, method=method, category="all")
        assert found["over"] == "llama.cpp bf16"
        assert found["speed_up"] == pytest.approx(times)


def test_categories_count_alike_however_many_questions_they_have() -> None:
    rows = [row("none", "1", 1.0), row("auto", "1", 0.5)]
    for number in range(2, 12):
        own = {"category": "rag"}
        rows += [row("none", str(number), 1.0, **own), row("auto", str(number), 1.0, **own)]
    found = cell(rows, method="auto", category="all")
    assert found["speed_up"] == pytest.approx(1.5)  # of 2.0 and 1.0
    assert cell(rows, method="auto", category="qa")["speed_up"] == pytest.approx(2.0)
    assert cell(rows, method="auto", category="rag")["speed_up"] == pytest.approx(1.0)


def test_an_interval_holds_the_value_and_needs_two_questions() -> None:
    rows = []
    for number in range(8):
        rows += [row("none", str(number), 2.0), row("auto", str(number), 0.5 + number / 10)]
    found = cell(rows, method="auto", category="all")
    assert found["low"] < found["speed_up"] < found["high"]
    assert cell(rows[:2], method="auto", category="all")["low"] is None


def test_failures_are_counted_and_their_questions_are_no_part_of_a_speed_up() -> None:
    rows = [
        row("none", "1", 2.0),
        row("none", "2", 100.0),
        row("auto", "1", 1.0),
        RealRow("m", "spec-bench", "qa", "2", "greedy", "auto", error="died"),
    ]
    found = cell(rows, method="auto", category="all")
    assert (found["questions"], found["failed"], found["tokens"]) == (2, 1, 10)
    assert found["speed_up"] == pytest.approx(2.0)


def test_equality_is_of_ids_for_ours_and_of_text_for_others() -> None:
    plain = [row("none", one, 1.0) for one in "123"]
    other = [0, 1, 2, 99]
    rows = [
        *plain,
        row("auto", "1", 1.0),
        row("auto", "2", 1.0, token_ids=other),
        row("auto", "3", 1.0, token_ids=[0, 1]),
        row("llama.cpp bf16", "1", 1.0, token_ids=other),  # other ids, the same text
        row("llama.cpp bf16", "2", 1.0, token_ids=other, text="another"),
    ]
    found = {one[2]: one[3:] for one in report.aggregate(rows, [SESSION])["equal"]}
    assert found == {
        "auto": ["ids", 1, 3, [3, 2]],
        "llama.cpp bf16": ["text", 1, 2, [3]],
    }
    sampled = [replace(one, sampling="T=1") for one in rows]
    found = {one[2]: one[3:] for one in report.aggregate(sampled, [SESSION])["equal"]}
    assert list(found) == ["auto"]  # other peers draw from another source


def test_two_suites_are_also_added_up_together() -> None:
    rows = []
    for suite, category, seconds in (("spec-bench", "qa", 1.0), ("humaneval", "humaneval", 0.5)):
        own = {"suite": suite, "category": category}
        rows += [row("none", "1", 2.0, **own), row("auto", "1", seconds, **own)]
    found = cell(rows, suite="spec-bench+humaneval", method="auto")
    assert found["speed_up"] == pytest.approx(3.0)  # of 2 and 4
    assert found["questions"] == 2
    assert cell(rows, suite="humaneval", method="auto")["speed_up"] == pytest.approx(4.0)


def test_rows_of_two_models_are_refused() -> None:
    with pytest.raises(ArtifactError, match="one model"):
        report.aggregate([row("none", "1", 1.0), row("none", "1", 1.0, model="n")], [SESSION])
    with pytest.raises(ArtifactError, match="no row"):
        report.aggregate([], [])


def test_pages_get_the_tables_and_a_stale_one_is_told(tmp_path: Path) -> None:
    rows = [row("none", "1", 2.0), row("none", "2", 2.0), row("auto", "1", 1.0, steps=4)]
    rows.append(row("auto", "2", 1.0))
    report.write_result(tmp_path / "m.json", report.aggregate(rows, [SESSION]))
    page = tmp_path / "page.md"
    page.write_text(
        "before\n<!-- real: main m spec-bench -->\nold\n<!-- /real -->\nbetween\n"
        "<!-- real: categories m spec-bench -->\n<!-- /real -->\nafter\n"
    )
    with pytest.raises(SystemExit, match="differs from the results"):
        report.write_pages([page], tmp_path, is_check=True)
    report.write_pages([page], tmp_path, is_check=False)
    text = page.read_text()
    assert "old" not in text and text.startswith("before\n") and text.endswith("after\n")
    assert "| `auto` | 10.0 | 12.5 | 2.00x [2.00, 2.00] | 1.43 | 2 of 2 ids | 1 | 1.5 | 0 |" in text
    assert "| all | 2.00x [2.00, 2.00], 1.43 |" in text
    assert "a processor, 2 threads, commit 0123456789" in text
    report.write_pages([page], tmp_path, is_check=True)


def test_a_full_result_is_small(tmp_path: Path) -> None:
    """13 categories and 2 more suites, 3 samplings and 12 methods."""
    methods = ["none", "auto", "prompt-lookup", "recycling", *(f"peer {n}" for n in range(8))]
    suites = {
        "spec-bench": [f"category_{n}" for n in range(13)],
        "humaneval": ["humaneval"],
        "mt-bench": [f"category_{n}" for n in range(8)],
    }
    rows = [
        row(method, str(number), 1.234567 + number, suite=suite, category=name, sampling=sampling)
        for sampling in ("greedy", "T=0.7 top-p=0.95", "T=1")
        for suite, names in suites.items()
        for name in names
        for number in range(2)
        for method in methods
    ]
    file = tmp_path / "m.json"
    result = report.aggregate(rows, [SESSION])
    report.write_result(file, result)
    assert report.read_result("m", tmp_path) == json.loads(json.dumps(result))
    assert file.stat().st_size < 100_000, file.stat().st_size


def test_the_last_row_of_a_key_counts(tmp_path: Path) -> None:
    append_row(tmp_path, row("none", "1", 1.0, error="died"))
    append_row(tmp_path, row("none", "1", 2.0))
    (found,) = read_rows(tmp_path).values()
    assert found.error is None and found.wall_s == 2.0
    with (tmp_path / "rows.jsonl").open("a") as file:
        file.write('{"model": "m", "colour": 1}\n')
    with pytest.raises(ArtifactError, match="line 3"):
        read_rows(tmp_path)
