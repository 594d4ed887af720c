"""`draftless train sdsat`: what it writes, shows and refuses."""

from __future__ import annotations

import json
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, MistralConfig, MistralForCausalLM
from typer.testing import CliRunner

from draftless import Draftless
from draftless.cli import app
from draftless.errors import ConfigError, DraftlessError
from draftless.manifest import read_manifest
from draftless.training.config import TrainConfig, build_config
from draftless.training.trainer import prepare
from support.tokenizer import small_tokenizer
from support.training import train_by_command

sdsat = partial(train_by_command, "sdsat")


def test_one_run_teaches_both_methods(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("eval_share: 0.3\n")  # one document may have no block of full length
    done = sdsat(
        folder, tmp_path, "--config", str(file), "--max-steps", "3", "--noise", "--noise-length", "2", "--block-length",
        "4", "--distinct", "--block-targets", "model", "--lr", "1e-2", "--dtype", "float32",
    )  # fmt: skip
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout.splitlines()[-1])
    depths = {"denoising": 2, "adaptive": 4}
    for kind, deepest in depths.items():
        found = {name for name in metrics if name.startswith(f"eval_{kind}_accuracy_")}
        assert found == {f"eval_{kind}_accuracy_{d}" for d in range(1, deepest + 1)}
    told = " ".join(done.stderr.split())
    size = len(small_tokenizer())
    ids = list(range(size, size + 4))
    assert "noise tokens per response token" in told and "all weights are trained" in told
    assert f"adaptive ids {', '.join(map(str, ids))}: " in told
    manifest = read_manifest(tmp_path)
    assert manifest is not None and set(manifest.methods) == {"sdsat", "tr-jacobi"}
    assert manifest.methods["sdsat"]["adaptive_ids"] == ids
    assert manifest.methods["sdsat"]["block_length"] == 4
    assert manifest.methods["tr-jacobi"]["noise_length"] == 2
    assert manifest.default_drafter is None, "auto takes what there is"
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert stock.config.vocab_size == size + 4
    assert stock.generation_config.suppress_tokens == ids
    rows = load_file(tmp_path / "model.safetensors")["model.embed_tokens.weight"][size:]
    assert len({tuple(row.tolist()) for row in rows}) == 4, "every slot has learnt its own row"
    plain = Draftless.from_pretrained(tmp_path, drafter="none").generate("the", max_new_tokens=6)
    for drafter in (None, "tr-jacobi"):
        model = Draftless.from_pretrained(tmp_path, drafter=drafter)
        assert model.generate("the", max_new_tokens=6).token_ids == plain.token_ids


def test_adaptive_tokens_alone_by_default(folder: Path, tmp_path: Path) -> None:
    done = sdsat(folder, tmp_path, "--max-steps", "1")
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert not any("denoising" in name for name in metrics) and metrics["eval_clean_loss"] > 0
    manifest = read_manifest(tmp_path)
    assert manifest is not None and list(manifest.methods) == ["sdsat"]
    assert manifest.methods["sdsat"]["adaptive_ids"] == [len(small_tokenizer())]


def test_the_preview_shows_both_kinds_and_writes_nothing(folder: Path, tmp_path: Path) -> None:
    done = sdsat(folder, tmp_path / "none", "--preview", "3", "--noise", "--block-length", "4")
    assert done.exit_code == 0, done.output
    assert "⟨4 adaptive⟩" in done.stderr
    assert done.stderr.count("⟨") > done.stderr.count(" adaptive⟩") > 0
    assert "red: noise, cyan: adaptive tokens" in done.stderr
    assert not (tmp_path / "none").exists()


def test_the_preview_explains_only_colours_that_it_shows(folder: Path, tmp_path: Path) -> None:
    done = sdsat(folder, tmp_path / "none", "--preview", "1")
    assert done.exit_code == 0, done.output
    assert "cyan: adaptive tokens" in done.stderr and "red" not in done.stderr


@pytest.mark.full  # the preset itself is tried by `train msn`
def test_the_preset_trains_from_scratch(tmp_path: Path) -> None:
    small = tmp_path / "small.yaml"
    small.write_text("batch_size: 1\neval_records: 2\n")
    arguments = ["train", "sdsat", "--preset", "tiny-sample", "--output", str(tmp_path / "out")]
    done = CliRunner().invoke(app, [*arguments, "--config", str(small), "--max-steps", "3"])
    assert done.exit_code == 0, done.output
    trained = AutoModelForCausalLM.from_pretrained(tmp_path / "out")
    assert trained.config.num_hidden_layers == 4
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None
    (token_id,) = manifest.methods["sdsat"]["adaptive_ids"]
    assert trained.config.vocab_size == token_id + 1
    model = Draftless.from_pretrained(tmp_path / "out")
    assert model.generate("Once upon a time", max_new_tokens=4).token_ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"noise": True, "mode": "inline"}, "use mode='branch'"),
        ({"frozen": True, "noise": True}, "leave noise, lora and kl_weight out"),
        ({"frozen": True, "lora": True}, "leave noise, lora and kl_weight out"),
        ({"frozen": True, "kl_weight": 0.1}, "leave noise, lora and kl_weight out"),
        ({"frozen": True, "from_scratch": {}}, "leave frozen and kl_weight out"),
        ({"kl_weight": 0.1, "from_scratch": {}}, "leave frozen and kl_weight out"),
        ({"adaptive_ids": (7, 8)}, "give 1 distinct id "),
        ({"adaptive_ids": (7, 7), "distinct": True, "block_length": 2}, "give 2 distinct ids "),
        ({"adaptive_ids": (7,), "distinct": True}, "give 5 distinct ids "),
        ({"adaptive_first": 1.0}, r"adaptive_first=1.0 lies outside \[0, 1\)"),
        ({"adaptive_weight": -1.0}, "adaptive_weight=-1.0 is below 0"),
        ({"block_length": 0}, "block_length=0 is below 1"),
        ({"adaptive_spacing": 0}, "adaptive_spacing=0 is below 1"),
        ({"attention": "flash"}, "attention='flash' is unknown; use sdpa, eager"),
        *[
            ({"adaptive": False, **one}, f"{next(iter(one))} needs adaptive tokens; use draftless")
            for one in (
                {"frozen": True}, {"adaptive_first": 0.1}, {"distinct": True},
                {"adaptive_ids": (7,)},
            )
        ],
        ({"adaptive": False, "kl_weight": 0.1}, "kl_weight needs blocks"),
        (
            {"adaptive": False, "noise": True, "clean_share": 1.0, "kl_weight": 0.1},
            "kl_weight needs blocks",
        ),
        (
            {"adaptive": False, "noise": True, "mode": "inline", "kl_weight": 0.1},
            "kl_weight needs blocks",
        ),
    ],
)  # fmt: skip
def test_contradictions_name_the_way_out(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        TrainConfig("m", "d", "o", **{"adaptive": True, "noise": False, **options})


def test_ids_from_flags_and_files(tmp_path: Path) -> None:
    needed = {"model": "m", "data": "d", "output": "o", "adaptive": True, "block_length": 2}
    more = {**needed, "distinct": True}
    assert build_config(None, None, {**more, "adaptive_ids": "7,8"}).adaptive_ids == (7, 8)
    file = tmp_path / "run.yaml"
    file.write_text("adaptive_ids: [7, 8]\n")
    assert build_config(None, file, more).adaptive_ids == (7, 8)
    with pytest.raises(ConfigError, match="is not a list of ids such as 7,8"):
        build_config(None, None, {**more, "adaptive_ids": "seven"})


def test_an_id_of_the_tokenizer_is_refused(folder: Path, tmp_path: Path) -> None:
    done = sdsat(folder, tmp_path / "none", "--adaptive-ids", "45")
    assert done.exit_code != 0
    assert isinstance(done.exception, ConfigError) or "id 45 cannot be" in done.output
    assert not (tmp_path / "none").exists()


@pytest.mark.parametrize(("window", "is_fine"), [(8, False), (128, True)])
def test_a_window_that_documents_outgrow_is_refused(
    folder: Path, tmp_path: Path, window: int, is_fine: bool
) -> None:
    """Mistral names its window, but no layer types; a 4-D mask switches the window off."""
    tokenizer = small_tokenizer()
    shape = MistralConfig(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=1,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8, sliding_window=window,
    )  # fmt: skip
    MistralForCausalLM(shape).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = TrainConfig(
        str(tmp_path), str(folder / "data.jsonl"), "x", noise=False, adaptive=True,
        max_length=128, row_length=0,
    )  # fmt: skip
    if is_fine:
        assert prepare(config).adaptive_ids
        return
    with pytest.raises(DraftlessError, match=r"a window of 8 tokens.*use --max-length 8"):
        prepare(config)
