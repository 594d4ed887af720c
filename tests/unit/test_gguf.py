"""A GGUF file as a checkpoint: the same ids as its weights in a folder, and clear errors."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest
import torch
from transformers import LlamaForCausalLM
from typer.testing import CliRunner

from draftless import ArtifactError, Draftless
from draftless.cli import app

pytest.importorskip("gguf")
from support.gguf import chat_tokenizer, write_tiny_gguf

PROMPTS = ["the cat sat", "äöü 猫 print(a[0])", [{"role": "user", "content": "the dog"}]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A checkpoint folder with a GGUF file of the same weights in it."""
    folder = tmp_path_factory.mktemp("gguf")
    model: LlamaForCausalLM = write_tiny_gguf(folder / "model.gguf")
    model.save_pretrained(folder / "saved")
    chat_tokenizer().save_pretrained(folder / "saved")
    return folder


def test_a_file_says_what_its_folder_says(folder: Path) -> None:
    of_folder = Draftless.from_pretrained(folder / "saved", dtype="float32")
    of_file = Draftless.from_pretrained(folder / "model.gguf", dtype="float32")
    weights = of_folder.target.model.state_dict()
    for name, weight in of_file.target.model.state_dict().items():
        assert torch.equal(weight, weights[name]), name
    assert of_file.eos_token_ids == (1,)
    for prompt in PROMPTS:
        ids = of_folder.encode(prompt)
        assert of_file.encode(prompt) == ids
        expected = of_folder.generate(prompt, max_new_tokens=24)
        assert of_file.generate(prompt, max_new_tokens=24).token_ids == expected.token_ids


def test_it_is_dequantised_to_bfloat16(folder: Path) -> None:
    model = Draftless.from_pretrained(str(folder / "model.gguf"), drafter="none").target.model
    assert {weight.dtype for weight in model.parameters()} == {torch.bfloat16}


def test_beside_the_working_directory_and_in_the_command(
    folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(folder)
    arguments = ["generate", "model.gguf", "--prompt", "the cat", "--max-new-tokens", "4"]
    result = CliRunner().invoke(app, [*arguments, "--drafter", "none"])
    assert result.exit_code == 0, result.output


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    for name in ("no.gguf", str(tmp_path / "no.gguf"), "owner/no.gguf"):
        with pytest.raises(ArtifactError, match=r"there is no file '.*no\.gguf'"):
            Draftless.from_pretrained(name)


@pytest.mark.parametrize("missing", ["gguf", "accelerate"])
def test_without_a_package_the_error_names_the_extra(
    missing: str, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    find = importlib.util.find_spec
    monkeypatch.setattr(
        "draftless.checkpoint.gguf.find_spec", lambda name: None if name == missing else find(name)
    )
    with pytest.raises(ArtifactError, match=r"pip install 'draftless\[gguf\]'"):
        Draftless.from_pretrained(folder / "model.gguf")


def test_an_architecture_that_transformers_cannot_read(tmp_path: Path) -> None:
    write_tiny_gguf(tmp_path / "odd.gguf", architecture="rwkv7")
    with pytest.raises(ArtifactError, match=r"odd\.gguf.*rwkv7.*not supported"):
        Draftless.from_pretrained(tmp_path / "odd.gguf")


def test_a_file_that_is_no_gguf(tmp_path: Path) -> None:
    (tmp_path / "text.gguf").write_text("some text, and more than a header of it")
    with pytest.raises(ArtifactError, match=r"text\.gguf"):
        Draftless.from_pretrained(tmp_path / "text.gguf")
