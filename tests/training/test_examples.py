"""The examples run as they stand, and what they write loads without Draftless."""

from __future__ import annotations

import importlib.util
import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM, AutoTokenizer

from draftless import Draftless
from draftless.manifest import read_manifest
from support.small_model import PHRASES, save_training_model

pytestmark = pytest.mark.slow

EXAMPLES = Path(__file__).parents[2] / "examples"


def load_example(name: str) -> Any:
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    return save_training_model(tmp_path / "model")


def write_records(path: Path, response_key: str) -> Path:
    rows = [
        {"prompt": f"{PHRASES[i % 5]} {i}", response_key: " ".join(PHRASES[: 3 + i % 4])}
        for i in range(8)
    ]
    path.write_text("\n".join(map(json.dumps, rows)), encoding="utf-8")
    return path


@pytest.mark.parametrize(
    ("name", "response_key", "flags"),
    [
        ("trl_sft_msn", "completion", []),
        ("trl_sft_msn", "completion", ["--packing"]),
        ("trainer_msn", "response", []),
        pytest.param("trl_sft_sdsat", "completion", [], marks=pytest.mark.full),
        ("trl_sft_sdsat", "completion", ["--packing"]),
        ("trainer_sdsat", "response", []),
    ],
)
def test_example(
    checkpoint: Path, tmp_path: Path, name: str, response_key: str, flags: list[str]
) -> None:
    data = write_records(tmp_path / "data.jsonl", response_key)
    output = tmp_path / "output"
    load_example(name).main(str(checkpoint), str(data), str(output), *flags)
    model = AutoModelForCausalLM.from_pretrained(output)
    AutoTokenizer.from_pretrained(output)
    manifest = read_manifest(output)
    assert manifest is not None
    if "sdsat" not in name:
        assert manifest.default_drafter == "tr-jacobi"
        return
    assert manifest.default_drafter == "sdsat"
    (token_id,) = manifest.methods["sdsat"]["adaptive_ids"]
    assert model.config.vocab_size == token_id + 1
    assert model.generation_config.suppress_tokens == [token_id]
    row = model.get_input_embeddings().weight[token_id].detach()
    start = AutoModelForCausalLM.from_pretrained(checkpoint).get_input_embeddings().weight.mean(0)
    assert (row - start).abs().max() > 1e-5, "its row was trained"
    assert Draftless.from_pretrained(output).generate([0, 40], max_new_tokens=3).token_ids
