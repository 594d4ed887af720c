"""`draftless train msn`: what it writes, shows and refuses."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM
from typer.testing import CliRunner

from draftless import Draftless
from draftless.cli import app
from draftless.errors import DraftlessError
from draftless.manifest import read_manifest
from draftless.training.config import PRESETS, TrainConfig, build_config
from support.training import train_by_command

msn = partial(train_by_command, "msn")


def test_the_result_is_a_plain_checkpoint_that_drafts(folder: Path, tmp_path: Path) -> None:
    done = msn(folder, tmp_path, "--max-steps", "3", "--lr", "1e-2", "--dtype", "float32")
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert 0 < metrics["eval_clean_loss"] < 10
    assert 0 <= metrics["eval_denoising_accuracy_5"] <= 1
    assert "% noise tokens per response token" in done.stderr
    stock = AutoModelForCausalLM.from_pretrained(tmp_path)
    model = Draftless.from_pretrained(tmp_path)
    assert "tr-jacobi" in model.manifest.methods
    assert type(model.drafter).__name__ == "AutoDrafter"
    ids = model.encode("the cat")
    assert ids[0] == 0 and len(ids) > 1
    expected = stock.generate(torch.tensor([ids]), max_new_tokens=8, do_sample=False)[0, len(ids) :]
    assert model.generate("the cat", max_new_tokens=8).token_ids == expected.tolist()
    manifest = read_manifest(tmp_path)
    assert manifest is not None and manifest.methods["tr-jacobi"]["noise_length"] == 5
    assert str(tmp_path) not in (tmp_path / "draftless.json").read_text()


def test_noise_can_learn_what_the_model_says_itself(folder: Path, tmp_path: Path) -> None:
    same = ("--max-steps", "3", "--lr", "1e-2", "--dtype", "float32")
    for targets in ("labels", "model"):
        done = msn(folder, tmp_path / targets, *same, "--block-targets", targets)
        assert done.exit_code == 0, done.output
    labels, model = (load_file(tmp_path / t / "model.safetensors") for t in ("labels", "model"))
    assert any(not torch.equal(labels[name], model[name]) for name in labels)
    manifest = read_manifest(tmp_path / "model")
    assert manifest is not None and manifest.methods["tr-jacobi"]["block_targets"] == "model"
    with pytest.raises(DraftlessError, match="block_targets='model' needs mode='branch'"):
        TrainConfig("m", "d", "o", mode="inline", block_targets="model")


def test_without_noise_the_clean_loss_is_what_is_evaluated(folder: Path, tmp_path: Path) -> None:
    file = tmp_path / "plain.yaml"
    file.write_text("noise: false\neval_share: 0.3\n")
    done = msn(folder, tmp_path / "out", "--max-steps", "1", "--config", str(file))
    assert done.exit_code == 0, done.output
    metrics = json.loads(done.stdout.splitlines()[-1])
    assert set(metrics) == {"output", "eval_clean_loss"}
    assert 0 < metrics["eval_clean_loss"] < 10


def test_clean_share_one_is_plain_fine_tuning(folder: Path, tmp_path: Path) -> None:
    done = msn(folder, tmp_path, "--max-steps", "1", "--clean-share", "1")
    assert done.exit_code == 0, done.output
    assert "0.0% noise tokens" in done.stderr
    manifest = read_manifest(tmp_path)
    assert manifest is not None and manifest.default_drafter is None and not manifest.methods


def test_lora_is_merged_and_leaves_embeddings_alone(folder: Path, tmp_path: Path) -> None:
    done = msn(folder, tmp_path, "--max-steps", "3", "--lora", "--lr", "1e-2", "--dtype", "float32")
    assert done.exit_code == 0, done.output
    before = load_file(folder / "model" / "model.safetensors")
    after = load_file(tmp_path / "model.safetensors")
    assert before.keys() == after.keys()
    changed = {name for name in before if not torch.equal(before[name], after[name])}
    assert changed and all("proj" in name for name in changed)


def test_the_preset_trains_from_scratch_on_the_packaged_samples(tmp_path: Path) -> None:
    model = PRESETS["tiny-sample"]["model"]
    if not (Path(model) / "config.json").exists():
        pytest.skip("the embedded model is not built yet")
    arguments = ["train", "msn", "--preset", "tiny-sample", "--output", str(tmp_path)]
    done = CliRunner().invoke(app, [*arguments, "--max-steps", "2"])
    assert done.exit_code == 0, done.output
    trained = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert trained.config.num_hidden_layers == 4
    assert Draftless.from_pretrained(tmp_path).generate("Once upon a time", max_new_tokens=4).text


@pytest.mark.parametrize("mode", ["branch", "inline"])
def test_the_preview_shows_noise_and_writes_nothing(
    folder: Path, tmp_path: Path, mode: str
) -> None:
    done = msn(folder, tmp_path / "none", "--preview", "2", "--mode", mode)
    assert done.exit_code == 0, done.output
    assert "⟨" in done.stderr and not (tmp_path / "none").exists()


def test_yaml_flags_and_presets_in_order(tmp_path: Path) -> None:
    file = tmp_path / "run.yaml"
    file.write_text("lr: 1e-3\nbatch_size: 2\noutput: here\n")
    config = build_config("tiny-sample", file, {"batch_size": 3, "epochs": None})
    assert (config.lr, config.batch_size, config.epochs) == (
        1e-3,
        3,
        PRESETS["tiny-sample"]["epochs"],
    )


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("learning_rate: 1", "unknown option learning_rate"),
        ("batch_size: two", "batch_size='two' is not a whole number"),
        ("lr: fast", "lr='fast' is not a number"),
        ("mode: noisy", "noise mode 'noisy'"),
        ("dtype: int8", "dtype='int8'"),
        ("row_length: 100", "row_length=100 is below max_length=256"),
        ("- 1", "must hold a mapping"),
        ("max_steps: 0", "max_steps=0 is below 1; leave it out"),
        ("max_steps: -1", "max_steps=-1 is below 1"),
        ("noise: maybe", "noise='maybe' is neither true nor false"),
        ("from_scratch: 7", "from_scratch=7 is no mapping"),
    ],
)
def test_bad_options_are_named(tmp_path: Path, content: str, message: str) -> None:
    file = tmp_path / "run.yaml"
    file.write_text(content + "\n")
    with pytest.raises(DraftlessError, match=message):
        build_config("tiny-sample", file, {"output": "x"})


def test_what_is_missing_is_named() -> None:
    with pytest.raises(DraftlessError, match="missing --data, --output"):
        build_config(None, None, {"model": "m"})
    with pytest.raises(DraftlessError, match="known are tiny-sample"):
        build_config("huge", None, {})


def test_windowed_models_train_inline_only(folder: Path, tmp_path: Path) -> None:
    from transformers import Gemma2Config, Gemma2ForCausalLM

    from draftless.training.trainer import prepare
    from support.tokenizer import small_tokenizer

    tokenizer = small_tokenizer()
    shape = Gemma2Config(
        vocab_size=len(tokenizer), hidden_size=16, intermediate_size=16, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, head_dim=8,
    )  # fmt: skip
    Gemma2ForCausalLM(shape).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    config = TrainConfig(
        str(tmp_path), str(folder / "data.jsonl"), "x", max_length=128, row_length=0
    )
    with pytest.raises(DraftlessError, match="--mode inline"):
        prepare(config)


def test_what_is_left_out_and_resumed_is_told(folder: Path, tmp_path: Path) -> None:
    (tmp_path / "model").symlink_to(folder / "model")
    far = json.dumps({"prompt": "the " * 300, "response": "cat"})
    lines = (folder / "data.jsonl").read_text()
    (tmp_path / "data.jsonl").write_text(lines + f"{far}\n{far}\n")
    options = ("--max-steps", "1", "--resume", "--save-every", "1", "--format", "plain")
    for told in ("has no complete checkpoint; training begins anew", "going on from step 1"):
        done = msn(tmp_path, tmp_path / "out", *options)
        assert done.exit_code == 0, done.output
        said = " ".join(done.stderr.split())
        assert told in said
        assert "2 of 50 records are left out: 2 (no response token within 128 tokens" in said
    done = msn(tmp_path, tmp_path / "chat", "--format", "chat")
    assert "--format chat (or records with 'messages') needs a chat template" in str(done.exception)


@pytest.mark.slow
def test_ctrl_c_ends_with_a_checkpoint_and_the_command_that_goes_on(
    folder: Path, tmp_path: Path
) -> None:
    command = [
        sys.executable, "-m", "draftless", "train", "msn", "--model", str(folder / "model"),
        "--data", str(folder / "data.jsonl"), "--output", str(tmp_path / "out"),
        "--max-length", "128", "--epochs", "1000",
    ]  # fmt: skip
    run = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert run.stderr is not None
    told = ""
    while "noise tokens per response token" not in told:
        line = run.stderr.readline()
        assert line, told
        told += line
    time.sleep(3)
    run.send_signal(signal.SIGINT)
    rest = " ".join(run.communicate(timeout=120)[1].split())
    assert run.returncode == 130, rest
    (step,) = re.findall(r"stopped at step (\d+), which is saved; to go on: .* --resume", rest)
    assert (tmp_path / "out" / "checkpoints" / f"checkpoint-{step}").is_dir()
    assert "Traceback" not in rest and "FutureWarning" not in told
