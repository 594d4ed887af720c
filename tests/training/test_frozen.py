"""Frozen mode trains the adaptive rows and nothing else; adapters merge; checkpoints go on."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, TrainingArguments
from typer.testing import CliRunner

from draftless import Draftless
from draftless.cli import app
from draftless.errors import ConfigError
from draftless.manifest import Manifest, read_manifest, write_manifest
from draftless.prompts import PromptFormat
from draftless.training.config import TrainConfig
from draftless.training.draft_trainer import DraftTrainer, LossSettings
from draftless.training.trainer import prepare, train
from support.training import write_model, write_records

EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"
PROMPTS = ([0, 40, 41, 42], [0, 90, 8, 77, 120, 33])


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_records(tmp_path_factory.mktemp("data") / "data.jsonl")


def config_for(model: Path, data: Path, output: Path, **options: object) -> TrainConfig:
    base = TrainConfig(
        model=str(model), data=str(data), output=str(output), noise=False, adaptive=True,
        max_length=128, row_length=0, batch_size=4, max_steps=3, lr=1e-2, weight_decay=0.5,
        dtype="float32", save_every=100, eval_every=100, log_every=1,
    )  # fmt: skip
    return replace(base, **options)  # type: ignore[arg-type]


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def bits(tensor: torch.Tensor) -> torch.Tensor:
    return tensor.contiguous().view(torch.uint8)


def says(folder: Path) -> list[list[int]]:
    """Greedy and seeded ids in fp32."""
    model = Draftless.from_pretrained(folder, drafter="none", dtype="float32")
    return [
        model.generate(ids, temperature=t, seed=3, max_new_tokens=16).token_ids
        for ids in PROMPTS
        for t in (0.0, 1.0)
    ]


def check_frozen(before_folder: Path, after_folder: Path, num_new: int) -> None:
    before, after = tensors(before_folder), tensors(after_folder)
    assert before.keys() == after.keys()
    for name, old in before.items():
        new = after[name]
        assert new.dtype == old.dtype, name
        if name in (EMBEDDING, HEAD):
            assert len(new) == len(old) + num_new
            new = new[: len(old)]
        assert torch.equal(bits(new), bits(old)), name
    size = len(before[EMBEDDING])
    rows = after[EMBEDDING][size:].float()
    mean = before[EMBEDDING].float().mean(0).to(before[EMBEDDING].dtype).float()
    assert all((row - mean).abs().max() > 1e-3 for row in rows), "the new rows were trained"
    assert says(before_folder) == says(after_folder)
    assert AutoTokenizer.from_pretrained(after_folder).get_vocab() == (
        AutoTokenizer.from_pretrained(before_folder).get_vocab()
    )


@pytest.mark.parametrize(
    ("is_tied", "saved", "computed"),
    [
        (True, torch.float32, "float32"),
        (False, torch.float32, "bfloat16"),
        (True, torch.bfloat16, "bfloat16"),
        (False, torch.bfloat16, "float32"),
    ],
)
def test_frozen_leaves_every_original_byte(
    data: Path, tmp_path: Path, is_tied: bool, saved: torch.dtype, computed: str
) -> None:
    model = write_model(tmp_path / "model", is_tied=is_tied, dtype=saved)
    config = config_for(
        model, data, tmp_path / "out", frozen=True, dtype=computed,
        distinct=is_tied, block_length=3,
    )  # fmt: skip
    metrics = train(prepare(config))
    assert metrics["eval_clean_loss"] > 0 and "eval_adaptive_accuracy_3" in metrics
    check_frozen(model, tmp_path / "out", 3 if is_tied else 1)
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None and manifest.methods["sdsat"]["mode"] == "frozen"


def test_frozen_from_the_command_line(data: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", is_tied=True)
    command = [
        "train", "sdsat", "--model", str(model), "--data", str(data), "--frozen",
        "--output", str(tmp_path / "out"), "--max-length", "128", "--max-steps", "3",
        "--lr", "1e-2",
    ]  # fmt: skip
    done = CliRunner().invoke(app, command)
    assert done.exit_code == 0, done.output
    assert "their rows alone are trained" in " ".join(done.stderr.split())
    assert 0 <= json.loads(done.stdout.splitlines()[-1])["eval_adaptive_accuracy_1"] <= 1
    check_frozen(model, tmp_path / "out", 1)


def test_frozen_rows_may_be_unassigned_ones(data: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model", num_spare=3)
    taken = len(AutoTokenizer.from_pretrained(model)) + 1
    train(prepare(config_for(model, data, tmp_path / "out", frozen=True, adaptive_ids=(taken,))))
    before, after = tensors(model), tensors(tmp_path / "out")
    for name, old in before.items():
        changed = (bits(old) != bits(after[name])).flatten(1).any(1) if old.dim() == 2 else None
        rows = changed.nonzero().flatten().tolist() if changed is not None else []
        assert rows == ([taken] if name == EMBEDDING else []), name
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None and manifest.methods["sdsat"]["adaptive_ids"] == [taken]


@pytest.mark.parametrize("lora", [False, True])
def test_rows_are_a_parameter_of_their_own_outside_weight_decay(
    data: Path, tmp_path: Path, lora: bool
) -> None:
    model = write_model(tmp_path / "model")
    run = prepare(config_for(model, data, tmp_path / "out", frozen=not lora, lora=lora))
    trainer = DraftTrainer(
        model=run.model,
        args=TrainingArguments(str(tmp_path), weight_decay=0.5, use_cpu=True, report_to="none"),
        settings=LossSettings(),
    )
    optimizer = trainer.create_optimizer()
    decay = {id(p): g["weight_decay"] for g in optimizer.param_groups for p in g["params"]}
    trained = {name: p for name, p in run.model.named_parameters() if p.requires_grad}
    rows = [p for name, p in trained.items() if "lora" not in name]
    assert [tuple(p.shape) for p in rows] == [(1, 32)]
    assert decay[id(rows[0])] == 0.0
    assert (len(trained) > 1) == lora
    assert all(decay[id(p)] == 0.5 for name, p in trained.items() if "lora" in name)


@pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
def test_lora_and_rows_are_merged(data: Path, tmp_path: Path, is_tied: bool) -> None:
    model = write_model(tmp_path / "model", is_tied=is_tied)
    train(prepare(config_for(model, data, tmp_path / "out", lora=True)))
    before, after = tensors(model), tensors(tmp_path / "out")
    assert before.keys() == after.keys()
    size = len(before[EMBEDDING])
    for name, old in before.items():
        is_equal = torch.equal(after[name][: len(old)], old)
        assert is_equal == ("proj" not in name), name
    mean = before[EMBEDDING].mean(0)
    assert (after[EMBEDDING][size] - mean).abs().max() > 1e-3
    model_ = Draftless.from_pretrained(tmp_path / "out")
    assert model_.target.input_only_ids == (size,)
    assert model_.generate(PROMPTS[0], max_new_tokens=4).token_ids


def test_a_second_run_goes_on_with_the_ids_of_the_first(data: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    size = len(tensors(model)[EMBEDDING])
    train(prepare(config_for(model, data, tmp_path / "one", frozen=True, max_steps=1)))
    again = config_for(tmp_path / "one", data, tmp_path / "two", frozen=True)
    run = prepare(again)
    assert run.adaptive_ids == (size,)
    row = run.model.get_input_embeddings().weight[size]
    assert torch.equal(row, tensors(tmp_path / "one")[EMBEDDING][size])
    for wrong in ({"distinct": True}, {"adaptive_ids": (size - 1,)}):
        with pytest.raises(ConfigError, match=f"has the adaptive ids {size}: leave --adaptive-ids"):
            prepare(replace(again, **wrong))  # type: ignore[arg-type]


def test_frozen_changes_neither_prompt_format_nor_tokenizer_files(
    data: Path, tmp_path: Path
) -> None:
    """Of a chat model without a `draftless.json`, whose `prompt` records become chats."""
    model = write_model(tmp_path / "model")
    template = "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}<assistant>"
    (model / "chat_template.jinja").write_text(template)
    (model / "tokenizer_config.json").write_text(
        json.dumps({**json.loads((model / "tokenizer_config.json").read_text()), "ours": "x"})
    )
    run = prepare(config_for(model, data, tmp_path / "out", frozen=True, max_steps=1))
    assert run.prompt_format.kind == "chat"
    train(run)
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None and manifest.prompt_format is None
    for name in ("tokenizer.json", "tokenizer_config.json", "chat_template.jinja"):
        assert (tmp_path / "out" / name).read_bytes() == (model / name).read_bytes(), name
    before, after = (Draftless.from_pretrained(f) for f in (model, tmp_path / "out"))
    for prompt in ("the cat", [{"role": "user", "content": "the cat"}]):
        assert before.encode(prompt) == after.encode(prompt)
    plain = prepare(config_for(model, data, tmp_path / "p", frozen=True, format="plain"))
    ids = plain.prompt_format.encode_prompt(plain.tokenizer, "the cat")
    assert ids == list(plain.tokenizer("the cat").input_ids), "as the model reads a text itself"


def test_frozen_keeps_the_format_that_a_checkpoint_has(data: Path, tmp_path: Path) -> None:
    model = write_model(tmp_path / "model")
    given = PromptFormat(prefix="Q: ", suffix="A: ", bos=False)
    write_manifest(model, Manifest(prompt_format=given))
    run = prepare(config_for(model, data, tmp_path / "out", frozen=True, max_steps=1))
    train(run)
    manifest = read_manifest(tmp_path / "out")
    assert manifest is not None and run.prompt_format == manifest.prompt_format == given
    with pytest.raises(ConfigError, match="leave --format chat out"):
        prepare(config_for(model, data, tmp_path / "x", frozen=True, format="chat"))
