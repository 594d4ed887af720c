"""Evaluations as a whole: rows, resuming, failures, comparisons, files."""

from __future__ import annotations

import gzip
import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from draftless import Draftless
from draftless.bench.quality import (
    QualityOptions,
    QualityRecord,
    QualityReport,
    QualityRow,
    compare_quality,
    evaluate_quality,
    prompt_format_of,
    quality_markdown,
    quality_scores,
    read_quality_records,
    write_quality,
)
from draftless.bench.quality.evaluate import weights_digest
from draftless.bench.quality.loss import clean_loss, token_losses
from draftless.errors import ArtifactError, ConfigError, InputError
from draftless.manifest import Manifest
from draftless.prompts import PromptFormat
from support.bench import bench_model, fresh_model, wide_model

RECORDS = [
    QualityRecord("a", "story", "the cat", "sat on the mat"),
    QualityRecord("b", "sql", "Table: t(x, y)", "SELECT x FROM t WHERE y = 1;"),
    QualityRecord("c", "translation", "the dog", "and the log"),
    QualityRecord("d", "story", "on the", "the dog sat"),
    QualityRecord("e", "math", "print", "a\n#### 3"),
]
QUICK = QualityOptions(max_new_tokens=6, batch_size=2)
PLAIN = PromptFormat(bos=True, eos=True)


def evaluate(records: list[QualityRecord] = RECORDS, **more: Any) -> QualityReport:
    arguments = {"options": QUICK, "prompt_format": PLAIN, **more}
    model = arguments.pop("model", None) or bench_model()
    return evaluate_quality(model, records, **arguments)


def test_rows_hold_answers_and_what_they_bring() -> None:
    model = bench_model()
    report = evaluate()
    assert [row.record_id for row in report.rows] == ["a", "b", "c", "d", "e"]
    row = report.rows[0]
    prompt = PLAIN.encode_prompt(model.tokenizer, "the cat")
    alone = model.generate(prompt, max_new_tokens=6)
    assert (row.text, row.num_tokens) == (alone.text, len(alone.token_ids)), "batched or alone"
    assert model.tokenizer is not None
    response = [*model.tokenizer.encode("sat on the mat"), model.tokenizer.eos_token_id]
    loss, count = clean_loss(model.target, prompt + response, len(prompt))
    assert row.scores["clean_loss"] == [pytest.approx(loss), count]
    assert count == len(response)
    assert set(report.rows[1].scores) == {"loop_share", "clean_loss", "sql_exact", "sql_executes"}
    assert set(report.rows[4].scores) == {"loop_share", "clean_loss", "gsm8k", "gsm8k_marked"}


def test_the_loss_is_that_of_a_model_that_never_says_what_is_input_only() -> None:
    ids = list(range(5, 25))
    free, masked = fresh_model(adaptive_ids=()), fresh_model(adaptive_ids=(100, 299))
    losses, _ = token_losses(masked.target, ids, 4)
    with torch.inference_mode():
        logits = free.target.model(torch.tensor([ids[:-1]])).logits[0, 3:]
    kept = [i for i in range(300) if i not in (100, 299)]
    expected = (
        logits[:, kept].logsumexp(-1) - logits.gather(-1, torch.tensor(ids[4:])[:, None])[:, 0]
    )
    assert torch.allclose(losses, expected, atol=1e-4)
    assert not torch.allclose(losses, token_losses(free.target, ids, 4)[0], atol=1e-4)


def test_a_killed_evaluation_goes_on_without_repeating(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    whole = evaluate(rows_file=file)
    lines = file.read_text().splitlines(keepends=True)
    file.write_text("".join(lines[:3]) + lines[3][:40])  # killed while it wrote the fourth
    seen: list[tuple[int, int]] = []
    again = evaluate(rows_file=file, on_progress=lambda _, *counts: seen.append(counts))
    assert again.rows == whole.rows
    assert seen == [(3, 5), (5, 5)]
    assert [json.loads(line)["record_id"] for line in file.read_text().splitlines()[4:]] == [
        "d",
        "e",
    ]


def test_rows_of_another_model_option_or_text_are_not_taken(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    evaluate(rows_file=file)
    reused: list[int] = []

    def count(_: str, num_done: int, __: int) -> None:
        reused.append(num_done)

    def first(**more: Any) -> int:
        reused.clear()
        evaluate(rows_file=file, on_progress=count, **more)
        return reused[0]

    changed = [replace(RECORDS[0], response="other"), *RECORDS[1:]]
    assert first(records=changed) == 4
    assert first(options=replace(QUICK, max_new_tokens=7)) == 0
    assert first(prompt_format=PromptFormat(suffix="")) == 0
    assert first(model=fresh_model(wide_model(seed=1))) == 0
    assert first() == 5


def test_weights_are_told_apart_by_one_changed_layer() -> None:
    model = wide_model()
    before = weights_digest(model)
    assert before == weights_digest(wide_model())
    with torch.no_grad():
        model.model.layers[1].mlp.down_proj.weight.mul_(1.001)
    assert weights_digest(model) != before


def test_a_file_of_something_else_is_refused(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"case": 1}\n')
    with pytest.raises(ArtifactError, match=r"rows\.jsonl"):
        evaluate(rows_file=file)


def test_a_failed_record_is_a_row_with_its_error_and_is_tried_again(tmp_path: Path) -> None:
    long = QualityRecord("long", "story", "x " * 600, "y")
    file = tmp_path / "rows.jsonl"
    report = evaluate([RECORDS[0], long, *RECORDS[3:4]], rows_file=file)
    assert [row.error is None for row in report.rows] == [True, False, True]
    assert "context" in str(report.rows[1].error)
    assert report.rows[1].scores == {}
    assert [s.num for s in quality_scores(report) if s.metric == "clean_loss"] == [2]
    seen: list[int] = []
    evaluate([long], rows_file=file, on_progress=lambda _, done, __: seen.append(done))
    assert seen[0] == 0


# Comparisons, on rows made by hand


def report(
    name: str, domain: str, metric: str, values: list[float], width: int = 1
) -> QualityReport:
    """One row per value: a share, or a loss of `width` tokens."""
    rows = [
        QualityRow(name, "", str(n), domain, scores={metric: [value, float(width)]})
        for n, value in enumerate(values)
    ]
    return QualityReport(name, {}, rows)


def test_no_change_is_no_clear_change() -> None:
    before = report("m", "sql", "sql_exact", [1, 0, 1, 0, 1])
    (change,) = compare_quality(before, before)
    assert (change.before.value, change.difference.value, change.num) == (0.6, 0.0, 5)
    assert (change.num_better, change.num_worse) == (0, 0)
    assert change.verdict == "no clear change"


@pytest.mark.parametrize(("metric", "verdict"), [("sql_exact", "worse"), ("clean_loss", "better")])
def test_the_direction_of_a_metric_decides(metric: str, verdict: str) -> None:
    before = report("m", "sql", metric, [1.0] * 15 + [0.5] * 5)
    after = report("m", "sql", metric, [0.5] * 20)
    (change,) = compare_quality(before, after)
    assert change.difference.value == pytest.approx(-0.375)
    assert change.difference.low <= -0.375 <= change.difference.high < 0
    assert change.verdict == verdict
    moved = (change.num_better, change.num_worse)
    assert moved == ((0, 15) if verdict == "worse" else (15, 0))


def test_pairs_narrow_the_interval() -> None:
    """Records differ much, the change is the same for all: only pairing can see it."""
    values = [float(n % 10) for n in range(40)]
    before = report("m", "story", "clean_loss", values)
    after = report("m", "story", "clean_loss", [value + 0.1 for value in values])
    (change,) = compare_quality(before, after)
    assert change.difference.low == pytest.approx(0.1) == change.difference.high
    assert change.before.high - change.before.low > 1
    assert change.verdict == "worse"


def test_one_worse_record_of_many_is_not_a_clear_change() -> None:
    before = report("m", "sql", "sql_exact", [1.0] * 30)
    after = report("m", "sql", "sql_exact", [1.0] * 29 + [0.0])
    (change,) = compare_quality(before, after)
    assert (change.num_better, change.num_worse, change.verdict) == (0, 1, "no clear change")


def test_losses_weigh_tokens_and_all_domains_weigh_the_same() -> None:
    def loss(domain: str, total: float, tokens: float) -> QualityRow:
        return QualityRow(
            "m", "", f"{domain}{total}", domain, scores={"clean_loss": [total, tokens]}
        )

    rows = [loss("a", 10, 10), loss("a", 6, 2), loss("b", 12, 4), loss("b", 0, 4)]
    found = {s.domain: s.interval.value for s in quality_scores(QualityReport("m", {}, rows))}
    assert found == {"a": 16 / 12, "b": 1.5, "all domains": pytest.approx((16 / 12 + 1.5) / 2)}


def test_only_records_that_both_have_are_compared() -> None:
    before = report("m", "sql", "sql_exact", [1, 1, 0])
    after = report("m", "sql", "sql_exact", [0, 1, 1, 1])
    before.rows[0].scores, before.rows[0].error = {}, "broken"
    (change,) = compare_quality(before, after)
    assert (change.num, change.before.value, change.after.value) == (2, 0.5, 1.0)


def test_the_table_shows_shares_in_per_cent_and_signs() -> None:
    before = report("old", "sql", "sql_exact", [1.0] * 15 + [0.0] * 5)
    after = report("new", "sql", "sql_exact", [1.0] * 5 + [0.0] * 15)
    text = quality_markdown([before, after])
    assert text.startswith("# Quality: old before, new after\n")
    (line,) = [line for line in text.splitlines() if "same query" in line]
    assert "| 20 | 75.0 | 25.0 | -50.0 [-" in line
    assert line.endswith("| 0 / 10 | worse |")


# Files


def write_data(folder: Path) -> Path:
    """A data folder of two domains, HumanEval and MBPP."""
    for domain in ("sql", "story"):
        (folder / domain).mkdir(parents=True)
        lines = [
            json.dumps({"id": r.record_id, "prompt": r.prompt, "response": r.response})
            for r in RECORDS
            if r.domain == domain
        ]
        with gzip.open(folder / domain / "test.jsonl.gz", "wt", encoding="utf-8") as file:
            file.write("\n".join(lines) + "\n")
    (folder / "eval").mkdir()
    task = {"prompt": "def one():\n", "canonical_solution": "    return 1", "entry_point": "one"}
    task["test"] = "def check(candidate):\n    assert candidate() == 1\n"
    with gzip.open(folder / "eval" / "HumanEval.jsonl.gz", "wt") as file:
        file.write(json.dumps({"task_id": "HumanEval/0", **task}))
    tasks = [json.dumps({"task_id": f"MBPP/{n}", **task}) for n in (10, 11, 510, 511)]
    (folder / "eval" / "mbpp_release_v1.jsonl").write_text("\n".join(tasks))
    return folder


def test_records_of_a_folder(tmp_path: Path) -> None:
    data = write_data(tmp_path)
    assert [r.record_id for r in read_quality_records(data)] == ["b", "a", "d"]
    with_code = read_quality_records(data, with_code=True)
    assert [r.record_id for r in with_code[3:]] == ["HumanEval/0", "MBPP/11", "MBPP/510"]
    assert {r.domain for r in with_code[3:]} == {"humaneval", "mbpp"}
    assert [r.record_id for r in read_quality_records(data, limit=1)] == ["b", "a"]


def test_records_of_gsm8ks_own_file(tmp_path: Path) -> None:
    file = tmp_path / "gsm8k_test.jsonl"
    file.write_text('{"question": "1 + 1?", "answer": "#### 2"}\n\n')
    (record,) = read_quality_records(file)
    assert (record.record_id, record.domain) == ("gsm8k_test-1", "math")
    assert (record.prompt, record.response) == ("1 + 1?", "#### 2")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("{", "line 1 is not JSON"),
        ("[1]", "line 1 is no JSON object"),
        ('{"prompt": "a"}', "no text 'response'"),
        ('{"prompt": 3, "response": "a"}', "no text 'prompt'"),
        ('{"id": 1, "prompt": "a", "response": "b"}\n' * 2, "two records with the id '1'"),
        ("", "no records"),
    ],
)
def test_broken_data_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(text)
    with pytest.raises(InputError, match=message):
        read_quality_records(file)


def test_missing_data_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="does not exist"):
        read_quality_records(tmp_path / "nowhere")


def test_before_and_after_as_files(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    output = tmp_path / "results" / "quality.json"
    model = ("new", fresh_model(wide_model(seed=1)))
    for _ in range(2):  # the second time everything is there already
        assert (
            write_quality(model, data, output, before=("old", bench_model()), options=QUICK)
            == output
        )
    content = json.loads(output.read_text(), parse_constant=pytest.fail)
    assert [m["name"] for m in content["models"]] == ["old", "new"]
    assert content["models"][0]["weights"] != content["models"][1]["weights"]
    assert content["provenance"]["commit"]
    assert content["options"]["max_new_tokens"] == 6
    changes = {(c["domain"], c["metric"]): c for c in content["changes"]}
    assert changes["sql", "sql_exact"]["before"]["low"] is None, "one record has no interval"
    loss = changes["story", "clean_loss"]
    assert loss["difference"]["value"] == pytest.approx(
        loss["after"]["value"] - loss["before"]["value"]
    )
    assert len(output.with_suffix(".rows.jsonl").read_text().splitlines()) == 2 * 3
    assert "| story | clean loss" in output.with_suffix(".md").read_text()


def test_two_models_of_one_name_are_told_apart(tmp_path: Path) -> None:
    data = write_data(tmp_path / "data")
    output = tmp_path / "quality.json"
    write_quality(("m", bench_model()), data, output, before=("m", bench_model()), options=QUICK)
    content = json.loads(output.read_text())
    assert list(content["scores"]) == ["m (before)", "m (after)"]
    assert {c["verdict"] for c in content["changes"]} == {"no clear change"}


def test_the_code_of_a_folder_is_measured_on_request(tmp_path: Path) -> None:
    output = tmp_path / "quality.json"
    options = replace(QUICK, runs_code=True, limit=1)
    write_quality(("m", bench_model()), write_data(tmp_path / "data"), output, options=options)
    content = json.loads(output.read_text())
    scores = {(s["domain"], s["metric"]): s["interval"]["value"] for s in content["scores"]["m"]}
    assert scores["humaneval", "pass_at_1"] == scores["mbpp", "pass_at_1"] == 0.0
    assert content["isolation"] is not None


def test_only_failures_are_no_result(tmp_path: Path) -> None:
    file = tmp_path / "data.jsonl"
    file.write_text(json.dumps({"prompt": "x " * 600, "response": "y"}))
    with pytest.raises(InputError, match="every record"):
        write_quality(("m", bench_model()), file, tmp_path / "quality.json", options=QUICK)
    assert not (tmp_path / "quality.json").exists()


def test_options_are_checked(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="batch_size=0"):
        QualityOptions(batch_size=0)
    with pytest.raises(ConfigError, match=r"\.json"):
        write_quality(("m", bench_model()), tmp_path, tmp_path / "quality.md")


# Prompt formats


def test_a_format_is_the_trained_one_else_the_template_else_plain() -> None:
    model = fresh_model()
    assert prompt_format_of(model) == PromptFormat(bos=False, eos=True), "it adds no BOS by itself"
    assert model.tokenizer is not None
    model.tokenizer.chat_template = "{{ messages[0].content }}"
    assert prompt_format_of(model).kind == "chat"
    trained = PromptFormat(prefix="Q: ")
    model.manifest = Manifest(prompt_format=trained)
    assert prompt_format_of(model) == trained
    model.tokenizer = None
    model.manifest = None
    with pytest.raises(ConfigError, match="tokenizer"):
        prompt_format_of(model)


def test_an_untrained_model_gets_the_prompts_of_the_trained_one(tmp_path: Path) -> None:
    trained = Draftless(
        bench_model().target, bench_model().tokenizer, bench_model().drafter,
        Manifest(prompt_format=PromptFormat(prefix="Q: ")),
    )  # fmt: skip
    file = tmp_path / "data.jsonl"
    file.write_text('{"prompt": "a", "response": "b"}')
    output = tmp_path / "quality.json"
    write_quality(("after", trained), file, output, before=("old", bench_model()), options=QUICK)
    formats = [m["prompt_format"]["prefix"] for m in json.loads(output.read_text())["models"]]
    assert formats == ["Q: ", "Q: "]
