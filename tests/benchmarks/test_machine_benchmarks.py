"""Roofline, busy neighbours and the start of a process, at toy size; the adapter of llama.cpp."""

from __future__ import annotations

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import busy
import pytest
import roofline
import start
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from draftless import embedded_model_path
from draftless.engine.target import TargetModel
from support.small_model import training_tokenizer

sys.path.insert(0, str(Path(roofline.__file__).parent / "peers"))

from llama_cpp import answer_of, completion_of

TOY = {
    "vocab_size": 64, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 128,
}  # fmt: skip

ATTENTION = 32 * 32 + 2 * 32 * 16 + 32 * 32  # queries, keys and values of half the heads, output
LAYER = ATTENTION + 3 * 32 * 48
VECTORS = 2 * 2 * 32 + 32


def toy(*, is_tied: bool) -> TargetModel:
    model = LlamaForCausalLM(LlamaConfig(**TOY, tie_word_embeddings=is_tied)).bfloat16().eval()
    return TargetModel(model)


@pytest.mark.parametrize("is_tied", [True, False])
def test_work_of_a_pass_is_that_of_the_matrices(is_tied: bool) -> None:
    work = roofline.work_of(toy(is_tied=is_tied))
    head = 64 * 32  # an embedding that is no head is looked up, not read
    assert work["weight_bytes"] == 2 * (2 * LAYER + head + VECTORS)
    assert work["flops_per_token"] == 2 * (2 * LAYER + head)
    assert work["kv_bytes_per_token"] == 2 * 2 * 2 * 16
    assert work["attention_flops_per_pair"] == 2 * 4 * 32


def test_limits_add_weights_and_cache_and_count_every_query() -> None:
    work = {
        "weight_bytes": 1000, "flops_per_token": 50,
        "kv_bytes_per_token": 10, "attention_flops_per_pair": 4,
    }  # fmt: skip
    read_s, compute_s = roofline.limit_s(work, width=3, length=100, bandwidth=100.0, rate=10.0)
    assert read_s == pytest.approx(20.0)
    pairs = 101 + 102 + 103  # each query sees the cache, the queries before it and itself
    assert compute_s == pytest.approx((3 * 50 + 4 * pairs) / 10)


def test_passes_are_timed_at_every_place_that_has_room() -> None:
    with torch.inference_mode():
        seconds = roofline.pass_seconds(toy(is_tied=True), (1, 4), (16, 64, 512), repeats=3)
    assert set(seconds) == {(1, 16), (4, 16), (1, 64), (4, 64)}
    assert min(seconds.values()) > 0


def test_roofline_writes_what_it_measured(tmp_path: Path) -> None:
    output = tmp_path / "roofline.json"
    script = Path(roofline.__file__)
    options = ["--threads", "1", "--lengths", "16", "--repeats", "3", "--eager"]
    small = ["--read-bytes", str(2**22), "--product", "64"]
    toy(is_tied=True).model.save_pretrained(tmp_path / "toy")
    training_tokenizer().save_pretrained(tmp_path / "toy")
    model = ["--model", str(tmp_path / "toy"), "--output", str(output)]
    subprocess.run([sys.executable, str(script), *model, *options, *small], check=True, timeout=300)
    (found,) = json.loads(output.read_text())["threads"]
    assert found["threads"] == 1 and not found["is_compiled"]
    assert [row["width"] for row in found["passes"]] == list(roofline.WIDTHS)
    for row in found["passes"]:
        limit = max(row["read_limit_ms"], row["compute_limit_ms"])
        assert row["over_limit"] == pytest.approx(row["ms"] / limit, rel=0.05)
    assert found["prefill_tokens_per_second"] > 0


def test_neighbours_end_with_the_block_and_by_themselves() -> None:
    before, begin = busy_processes(), time.monotonic()
    with pytest.raises(KeyError), busy.neighbours(2, 60.0):
        assert len(busy_processes()) == len(before) + 2
        raise KeyError
    assert busy_processes() == before and time.monotonic() - begin < 50
    with busy.neighbours(1, 0.2):
        deadline = time.monotonic() + 30
        while busy_processes() != before and time.monotonic() < deadline:
            time.sleep(0.05)
        assert busy_processes() == before


def busy_processes() -> set[str]:
    """Neighbours that run."""
    found = set()
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            line = (folder / "cmdline").read_text()
            state = (folder / "stat").read_text().rpartition(")")[2].split()[0]
        except OSError:
            continue
        if "range(10_000)" in line and "import sys, time" in line and state != "Z":
            found.add(folder.name)
    return found


def test_every_place_beside_neighbours_is_measured_in_turn(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[tuple[int, int, str]] = []
    now: list[int] = [0]

    class Block:
        def __init__(self, number: int, _: float) -> None:
            now[0] = number

        def __enter__(self) -> None: ...

        def __exit__(self, *_: object) -> None:
            now[0] = -1

    class Peer:
        def __init__(self, threads: int) -> None:
            self.threads = threads

        def ask(self, request: dict[str, Any]) -> dict[str, float]:
            asked.append((self.threads, now[0], request["method"]))
            return {"decode_tokens": 10, "decode_s": float(self.threads)}

    monkeypatch.setattr(busy, "neighbours", Block)
    args = busy.argparse.Namespace(neighbours=[0, 2], repeats=2, seconds=1.0, settle=0.0)
    found = busy.measure({1: Peer(1), 2: Peer(2)}, {}, args)  # type: ignore[dict-item]
    places = [(t, n, m) for t in (1, 2) for n in (0, 2) for m in busy.METHODS]
    assert asked[4:] == places * 2  # after one call each that is not counted
    assert found[2, 0, "none"] == [5.0, 5.0] and found[1, 2, "auto"] == [10.0, 10.0]


def test_a_watched_process_tells_its_first_text_silence_and_memory() -> None:
    code = (
        "import sys, time; time.sleep(0.2); sys.stderr.write('loading'); sys.stderr.flush(); "
        "time.sleep(0.9); hold = bytearray(200 * 2**20); print('text', flush=True); time.sleep(0.1)"
    )
    found = start.watch([sys.executable, "-c", code], {"PATH": ""})
    assert found["output"] == "text\n" and found["exit_code"] == 0
    assert 1.1 <= found["first_text_s"] <= found["seconds"]
    assert found["longest_silence_s"] >= 0.9 and found["silence_at_s"] >= 0.2
    assert found["longest_silence_s"] < found["first_text_s"]  # what stderr says is no silence
    assert found["peak_rss_bytes"] > 200 * 2**20


def test_silence_after_the_last_word_counts_and_so_does_failure() -> None:
    code = "import time; print('text', flush=True); time.sleep(0.8); raise SystemExit(3)"
    found = start.watch([sys.executable, "-c", code], {"PATH": ""})
    assert found["exit_code"] == 3
    assert found["longest_silence_s"] >= 0.8


def test_weight_bytes_are_those_of_the_embedded_model() -> None:
    size = start.weight_bytes(embedded_model_path())
    expected = sum(
        p.nbytes for p in TargetModel.from_pretrained(embedded_model_path()).model.parameters()
    )
    assert size == pytest.approx(expected, rel=0.01)


def test_llama_cpp_is_asked_for_the_same_and_counts_alike() -> None:
    request = {
        "ids": [1, 2], "max_new_tokens": 7, "temperature": 0.7, "top_p": 0.95, "seed": 2**32 + 5,
        "eos_token_ids": [2],
    }  # fmt: skip
    asked = completion_of(request)
    assert asked["prompt"] == [1, 2] and asked["n_predict"] == 7 and asked["seed"] == 5
    assert (asked["temperature"], asked["top_p"], asked["top_k"]) == (0.7, 0.95, 0)
    assert not asked["cache_prompt"]  # a prompt that was seen costs what a new one costs
    timings = {"prompt_ms": 20.0, "predicted_ms": 80.0, "predicted_n": 6, "draft_n_accepted": 3}
    found = answer_of({"tokens": [4, 5, 6, 7, 2, 9], "timings": timings}, 0.11, [2])
    assert found["token_ids"] == [4, 5, 6, 7, 2]
    assert found["steps"] == 3 and found["decode_tokens"] == 5
    assert (found["prefill_s"], found["decode_s"], found["wall_s"]) == (0.02, 0.08, 0.11)


def test_setup_names_its_uses(tmp_path: Path) -> None:
    script = Path(roofline.__file__).parent / "peers" / "setup.sh"
    for arguments, word in (([], "usage"), ([str(tmp_path), "vllm"], "unknown peer")):
        done = subprocess.run(
            [str(script), *arguments], capture_output=True, text=True, check=False
        )
        assert done.returncode == 2 and word in done.stderr
