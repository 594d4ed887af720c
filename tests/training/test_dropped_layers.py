"""`--layer-dropout`: what a step drops, when, and what follows for optimizer, adapters and manifest."""

from __future__ import annotations

from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import nn
from transformers import TrainerCallback

from draftless.errors import ConfigError
from draftless.manifest import Manifest, read_manifest, write_manifest
from draftless.prompts import PromptFormat
from draftless.training.config import TrainConfig
from draftless.training.layer_dropout import LayerDropout
from draftless.training.trainer import Run, prepare, train
from support.training import train_by_command, write_model

STEPS, RATE = 6, 0.6
msn, sdsat = partial(train_by_command, "msn"), partial(train_by_command, "sdsat")


@pytest.fixture
def config(folder: Path, tmp_path: Path) -> TrainConfig:
    return TrainConfig(
        str(folder / "model"), str(folder / "data.jsonl"), str(tmp_path / "out"),
        layer_dropout=RATE, max_length=128, row_length=0, batch_size=2, accumulate=2,
        max_steps=STEPS, lr=1e-2, weight_decay=0.5, dtype="float32", eval_every=1, save_every=100,
    )  # fmt: skip


def sublayers(run: Run) -> list[nn.Module]:
    """Attention and MLP of the second layer: the first one is never dropped."""
    layer = run.model.model.layers[1]
    return [layer.self_attn, layer.mlp]


class Watch(TrainerCallback):
    """For each step and sub-layer: forward passes in training and evaluation, and its first weight."""

    def __init__(self, parts: list[nn.Module]) -> None:
        self.trained: list[list[int]] = []
        self.evaluated: list[list[int]] = []
        self.weights: list[list[torch.Tensor]] = []
        self._parts = parts
        self._calls = [[0, 0] for _ in parts]
        for part, calls in zip(parts, self._calls, strict=True):
            part.register_forward_hook(partial(self._count, calls))
        self._keep()

    @staticmethod
    def _count(calls: list[int], part: nn.Module, *_: object) -> None:
        calls[part.training] += 1

    def _keep(self) -> None:
        self.weights.append([next(part.parameters()).detach().clone() for part in self._parts])

    def on_step_end(self, *_: object, **__: object) -> None:
        self._keep()

    def on_evaluate(self, *_: object, **__: object) -> None:
        """Behind each step (`eval_every`)."""
        self.evaluated.append([calls[0] for calls in self._calls])
        self.trained.append([calls[1] for calls in self._calls])
        for calls in self._calls:
            calls[:] = [0, 0]


def test_a_step_drops_alike_in_all_batches_and_an_evaluation_nothing(config: TrainConfig) -> None:
    run = prepare(config)
    watch = Watch(sublayers(run))
    train(run, callbacks=[watch])
    dropout = LayerDropout(run.model.model.layers, RATE, config.seed)
    chosen = [dropout.choose(step)[1].tolist() for step in range(STEPS)]
    assert {part for step in chosen for part in step} == {True, False}
    assert watch.trained == [[0 if dropped else 2 for dropped in step] for step in chosen]
    (num_batches,) = {calls for step in watch.evaluated for calls in step}
    assert num_batches > 0
    # No gradient: neither weight decay nor moments move what was dropped; all else moves.
    for step, (before, after) in enumerate(zip(watch.weights, watch.weights[1:], strict=False)):
        same = [torch.equal(b, a) for b, a in zip(before, after, strict=True)]
        assert step == 0 or same == chosen[step]  # in step 0 the warm-up's learning rate is 0


def test_checkpointed_layers_are_computed_again_as_they_were(
    config: TrainConfig, tmp_path: Path
) -> None:
    weights = []
    for name in ("stored", "computed again"):
        run = prepare(replace(config, output=str(tmp_path / name), eval_every=100))
        if name != "stored":
            run.model.gradient_checkpointing_enable()
        train(run)
        weights.append(load_file(tmp_path / name / "model.safetensors"))
    assert all(torch.equal(weights[0][name], weights[1][name]) for name in weights[0])


def test_adapters_keep_to_the_whole_original(config: TrainConfig) -> None:
    both = replace(config, lora=True, adaptive=True, kl_weight=1.0, max_steps=2)
    run = prepare(both)
    assert run.original is not None
    assert not any("lora" in name for name, _ in run.original.named_parameters())
    train(run)
    before, after = (
        load_file(Path(name) / "model.safetensors") for name in (both.model, both.output)
    )
    changed = {n for n, w in before.items() if not torch.equal(w, after[n][: len(w)])}
    assert changed and all("proj" in name for name in changed)
    assert prepare(replace(both, layer_dropout=0.0)).original is None  # adapters are switched off


@pytest.mark.parametrize("method", [msn, sdsat])
def test_the_command_says_and_records_it(method: partial, folder: Path, tmp_path: Path) -> None:
    done = method(folder, tmp_path, "--max-steps", "1", "--layer-dropout", "0.4")
    assert done.exit_code == 0, done.output
    assert "layer dropout: up to 40% of the steps" in done.stderr
    manifest = read_manifest(tmp_path)
    assert manifest is not None and manifest.provenance["config"]["layer_dropout"] == 0.4


def test_what_cannot_work_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"layer_dropout=1\.0 lies outside"):
        TrainConfig("m", "d", "o", layer_dropout=1.0)
    with pytest.raises(ConfigError, match="frozen trains none"):
        TrainConfig("m", "d", "o", adaptive=True, noise=False, frozen=True, layer_dropout=0.4)


def test_skip_sets_outlive_frozen_training_only(folder: Path, tmp_path: Path) -> None:
    """Of the start's methods: a skip set is for the same weights, a store for the same folder too."""
    start = write_model(tmp_path / "start" / "model")
    found = {
        "layer-skip": {"skip_set": {"attention": [1], "mlp": []}, "threshold": 0.5, "depth": 4},
        "knn-ssd": {"store": "store"},
    }
    write_manifest(start, Manifest(found, "layer-skip", PromptFormat()))
    (tmp_path / "start" / "data.jsonl").write_bytes((folder / "data.jsonl").read_bytes())
    for options, kept in ((["--frozen"], ["sdsat", "layer-skip"]), ([], ["sdsat"])):
        output = tmp_path / kept[-1]
        done = sdsat(tmp_path / "start", output, "--max-steps", "1", *options)
        assert done.exit_code == 0, done.output
        manifest = read_manifest(output)
        assert manifest is not None
        assert (list(manifest.methods), manifest.default_drafter) == (kept, None)
