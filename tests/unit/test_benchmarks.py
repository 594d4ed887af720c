"""The arithmetic of the benchmark: what a number in a table means."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from divergence import Judge, bf16_ulp
from rows import Case, Row, append_row, looping_tokens, read_rows, speed_up, summarise
from run import first_difference
from table import rendered
from transformers import LlamaForCausalLM

from draftless import Draftless, SamplingParams
from draftless.noise import KeyedNoise


@pytest.mark.parametrize(
    ("ids", "expected"),
    [
        (list(range(50)), 0),
        ([1] * 20, 20),
        ([1] * 7, 0),  # short repeats are language, not loops
        ([5, 6, *[1, 2, 3] * 4, 9], 12),
        ([*range(8), *range(8)], 16),
        ([*range(9), *range(9)], 0),  # period 9
        ([*range(100, 110), *[1, 2] * 4, *range(10), *[7] * 9], 17),
        ([1], 0),
        ([], 0),
    ],
)
def test_looping_tokens(ids: list[int], expected: int) -> None:
    assert looping_tokens(ids) == expected


def row(case: Case, domain: str, number: int, tokens: int, steps: int, seconds: float) -> Row:
    stages = {"prefill": 0.0, "propose": 0.1, "forward": 0.9 * seconds, "verify": 0.05}
    return Row(
        case,
        domain,
        f"{domain}-{number}",
        num_tokens=tokens,
        num_steps=steps,
        seconds=seconds,
        time_s=stages if case.method in ("none", "tr-jacobi") else {},
        num_nodes=steps * 8,
    )


PLAIN, STOCK, DRAFTED = (
    Case("msn", method, "greedy", "bfloat16") for method in ("none", "transformers", "tr-jacobi")
)


def sample_rows() -> list[Row]:
    """Two domains of unequal size; the stock loop is the faster plain one."""
    rows = []
    for domain, speeds in (("sql", [4.0, 2.0]), ("math", [2.0])):
        for number, speed in enumerate(speeds):
            rows += [
                row(PLAIN, domain, number, 100, 100, 2.0),
                row(STOCK, domain, number, 100, 100, 1.0),
                row(DRAFTED, domain, number, 100, 40, 1.0 / speed),
            ]
    return rows


def test_speed_up_is_a_mean_over_domains_of_token_weighted_values() -> None:
    summary = {s["method"]: s for s in summarise(sample_rows())}
    drafted = summary["tr-jacobi"]
    assert drafted["plain"] == "transformers"
    sql = (200 / 0.75) / (200 / 2.0)  # not the mean of 4 and 2
    assert drafted["speed_up"][0] == pytest.approx((sql + 2.0) / 2)
    assert drafted["acceptance_length"] == pytest.approx(2.5)
    assert summary["transformers"]["speed_up"] == pytest.approx((1.0, 1.0, 1.0))
    assert summary["none"]["speed_up"][0] == pytest.approx(0.5)


def test_looping_outputs_are_left_out_and_counted() -> None:
    rows = sample_rows()
    rows[2].num_looping = 51  # the drafted run of the first SQL prompt
    summary = {s["method"]: s for s in summarise(rows)}
    assert summary["tr-jacobi"]["num_left_out"] == 1
    assert summary["tr-jacobi"]["speed_up"][0] == pytest.approx(2.0)
    assert summary["tr-jacobi"]["loop_share"] == pytest.approx(51 / 300)
    assert summary["none"]["num_left_out"] == 0


def test_failures_are_counted_and_bring_no_numbers() -> None:
    rows = sample_rows()
    rows.append(Row(DRAFTED, "sql", "sql-9", error="ValueError: no"))
    drafted = next(s for s in summarise(rows) if s["method"] == "tr-jacobi")
    assert (drafted["num_failed"], drafted["num_prompts"]) == (1, 3)


def test_overhead_is_all_but_the_forward() -> None:
    plain = next(s for s in summarise(sample_rows()) if s["method"] == "none")
    assert plain["overhead_share"] == pytest.approx(0.15 / (0.15 + 1.8))
    assert plain["efficiency"] == pytest.approx(1.0)


def test_intervals_contain_the_mean_and_shrink() -> None:
    few, many = ([row(PLAIN, "sql", i, 100, 100, 1.0 + i % 5) for i in range(n)] for n in (5, 500))
    base = row(STOCK, "sql", 0, 100, 100, 1.0)
    widths = []
    for rows in (few, many):
        mean, low, high = speed_up([(r, base) for r in rows])
        assert low <= mean <= high
        widths.append(high - low)
    assert widths[1] < widths[0] / 5


def test_rows_survive_a_cut(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    for one in sample_rows():
        append_row(file, one)
    text = file.read_text()
    file.write_text(text[:-20])  # killed while writing
    assert read_rows(file) == sample_rows()[:-1]
    assert read_rows(tmp_path / "none.jsonl") == []


def test_a_cut_line_does_not_swallow_the_next_row(tmp_path: Path) -> None:
    file = tmp_path / "rows.jsonl"
    file.write_text('{"case": {"mod')
    append_row(file, sample_rows()[0])
    assert read_rows(file) == sample_rows()[:1]


@pytest.mark.parametrize(
    ("ids", "plain", "index"),
    [([1, 2], [1, 2], None), ([1, 3], [1, 2], 1), ([1], [1, 2], 1), ([1, 2, 3], [1, 2], 2)],
)
def test_first_difference(ids: list[int], plain: list[int], index: int | None) -> None:
    assert first_difference(ids, plain) == index


@pytest.mark.parametrize("value", [0.7, 1.0, 17.3, -31.9, 40.0])
def test_bf16_ulp_is_the_distance_of_neighbours(value: float) -> None:
    number = torch.tensor(abs(value), dtype=torch.bfloat16)
    above = (number.view(torch.int16) + 1).view(torch.bfloat16)
    assert bf16_ulp(value) == float(above) - float(number)


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_the_margin_is_the_distance_of_the_two_scores(checkpoint: Path, temperature: float) -> None:
    params = SamplingParams(max_new_tokens=6, seed=5, temperature=temperature)
    model = Draftless.from_pretrained(checkpoint, drafter="none")
    prompt = model.encode("the cat")
    plain = model.generate(prompt, params).token_ids
    other = [*plain[:3], (plain[3] + 1) % model.target.vocab_size, 0]
    found = Judge(checkpoint).divergence("p", prompt, (plain, other), params)
    assert found is not None

    stock = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    with torch.inference_mode():
        logits = stock(torch.tensor([prompt + plain[:3]])).logits[0, -1].double()
    pair = torch.tensor([plain[3], other[3]])
    scores, unit = logits[pair], bf16_ulp(float(logits[pair].abs().max()))
    if temperature:
        # The token that follows n ids is drawn with the noise of position n.
        scores = scores / temperature + KeyedNoise(5)(len(prompt) + 3, pair)
        unit /= temperature
    assert (found.index, found.plain_id, found.other_id) == (3, plain[3], other[3])
    assert scores[0] > scores[1]  # plain decoding took the better one
    assert found.margin == pytest.approx(float(scores[0] - scores[1]), abs=1e-5)
    assert found.ulps == pytest.approx(found.margin / unit, rel=1e-4)


def test_equal_outputs_do_not_diverge(checkpoint: Path) -> None:
    assert Judge(checkpoint).divergence("p", [1], ([2, 3], [2, 3]), SamplingParams()) is None


def test_tables_stand_between_their_markers() -> None:
    text = "a\n<!-- benchmark: main -->\nold\n<!-- /benchmark -->\nz"
    new = rendered(text, summarise(sample_rows()), "machine")
    assert new.startswith("a\n<!-- benchmark: main -->\n\n| method |")
    assert new.endswith("<!-- /benchmark -->\nz")
    assert "old" not in new
    assert "2.33 (" in new
    assert rendered(new, summarise(sample_rows()), "machine") == new
