"""What was proved of a checkpoint is not tested again, and anything else is."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from draftless import engine
from draftless.engine.target import TargetModel
from draftless.errors import CapabilityError
from draftless.layout import chain_parents, tree_layout
from support.models import stock_model

pytestmark = pytest.mark.usefixtures("proofs")
NATIVE: dict[str, Any] = {"compile": True}


class BeganToTest(Exception):  # noqa: N818 - a fact
    """A load began to test."""


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    stock_model("gemma3", "bf16").save_pretrained(tmp_path / "model")
    return tmp_path / "model"


def refuse_tests(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: Any) -> None:
        raise BeganToTest

    monkeypatch.setattr(engine.target, "SelfTest", refuse)
    monkeypatch.setattr(engine.cpu.forward, "refuse_other_passes", refuse)


def logits(target: TargetModel) -> torch.Tensor:
    cache = target.make_cache(1, 9)
    return target.forward(cache, [[*range(9)]], [tree_layout(chain_parents(9))])[0]


def test_a_second_load_tests_nothing_and_computes_the_same(
    checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first = TargetModel.from_pretrained(checkpoint, **NATIVE)
    refuse_tests(monkeypatch)
    again = TargetModel.from_pretrained(checkpoint, **NATIVE)
    assert again.windows == first.windows
    assert set(again.windows.values()) != {None}
    assert again.cache_shape == first.cache_shape
    assert again.is_reproducible
    assert again.is_compiled
    assert torch.equal(logits(again), logits(first))


def _touch(checkpoint: Path) -> None:
    file = checkpoint / "model.safetensors"
    then = file.stat().st_mtime_ns
    os.utime(file, ns=(then, then + 1))


def _configure(checkpoint: Path) -> None:
    file = checkpoint / "config.json"
    file.write_text(file.read_text().replace('"sliding_window": ', '"sliding_window": 1'))


@pytest.mark.parametrize("change", [_touch, _configure])
def test_a_changed_checkpoint_is_tested(
    change: Any, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TargetModel.from_pretrained(checkpoint, **NATIVE)
    change(checkpoint)
    refuse_tests(monkeypatch)
    with pytest.raises(CapabilityError, match="BeganToTest"):
        TargetModel.from_pretrained(checkpoint, **NATIVE)


@pytest.mark.parametrize(
    "how", [{"dtype": "float32"}, {"attention": "sdpa", "compile": "auto"}, {"int8": True}]
)
def test_what_is_loaded_otherwise_is_tested(
    how: dict[str, Any], checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TargetModel.from_pretrained(checkpoint, **NATIVE)
    refuse_tests(monkeypatch)
    with pytest.raises(CapabilityError, match="BeganToTest"):
        TargetModel.from_pretrained(checkpoint, **(NATIVE | how))


def test_another_version_is_tested(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TargetModel.from_pretrained(checkpoint, **NATIVE)
    refuse_tests(monkeypatch)
    monkeypatch.setattr("draftless.engine.proof.transformers.__version__", "0.0")
    with pytest.raises(CapabilityError, match="BeganToTest"):
        TargetModel.from_pretrained(checkpoint, **NATIVE)


def test_other_code_is_tested(
    checkpoint: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TargetModel.from_pretrained(checkpoint, **NATIVE)
    refuse_tests(monkeypatch)
    for folder in ("cpu", "native"):
        (tmp_path / "engine" / folder).mkdir(parents=True)
    monkeypatch.setattr("draftless.engine.proof._ENGINE", tmp_path / "engine")
    with pytest.raises(CapabilityError, match="BeganToTest"):
        TargetModel.from_pretrained(checkpoint, **NATIVE)


def test_a_loaded_model_is_tested(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = TargetModel.from_pretrained(checkpoint, **NATIVE)
    target.model.set_attn_implementation("sdpa")
    refuse_tests(monkeypatch)
    with pytest.raises(CapabilityError, match="BeganToTest"):
        TargetModel(target.model, **NATIVE)


def test_new_weights_are_tested(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    TargetModel.from_pretrained(checkpoint, **NATIVE)
    target = TargetModel.from_pretrained(checkpoint, **NATIVE)
    refuse_tests(monkeypatch)
    with torch.no_grad():
        next(target.model.parameters()).mul_(2)
    with pytest.raises(BeganToTest):
        target.check_unchanged()


def test_a_model_that_fails_proves_nothing(
    checkpoint: Path, proofs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any) -> None:
        raise CapabilityError("other logits")

    monkeypatch.setattr("draftless.engine.self_test.SelfTest.check", fail)
    with pytest.raises(CapabilityError, match="other logits"):
        TargetModel.from_pretrained(checkpoint, **NATIVE)
    assert not proofs.exists()


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"windows": 1, "cache_shape": [1], "has_stable_bits": true}']
)
def test_a_damaged_proof_is_none(
    text: str, checkpoint: Path, proofs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    TargetModel.from_pretrained(checkpoint, **NATIVE)
    (file,) = proofs.iterdir()
    file.write_text(text)
    TargetModel.from_pretrained(checkpoint, **NATIVE)  # and mends it
    refuse_tests(monkeypatch)
    TargetModel.from_pretrained(checkpoint, **NATIVE)


def test_a_folder_that_cannot_be_written_is_no_error(checkpoint: Path, proofs: Path) -> None:
    proofs.parent.mkdir(parents=True)
    proofs.write_text("a file")
    assert TargetModel.from_pretrained(checkpoint, **NATIVE).is_compiled
