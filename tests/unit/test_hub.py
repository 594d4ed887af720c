"""A checkpoint by its name on the hub brings its `draftless.json`, as its folder does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from huggingface_hub import snapshot_download

from draftless import hub
from draftless.hub import hub_folder
from draftless.manifest import Manifest, write_manifest

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SCRIPT = """
from draftless import Draftless
model = Draftless.from_pretrained("someone/tiny")
print(type(model.drafter).__name__, model.target.input_only_ids, model.drafters)
"""


@pytest.fixture
def cached(checkpoint: Path, tmp_path: Path) -> Path:
    """The hub's cache, with one checkpoint in it that was trained for adaptive tokens."""
    repository = tmp_path / "models--someone--tiny"
    folder = repository / "snapshots" / COMMIT
    shutil.copytree(checkpoint, folder)
    methods = {"sdsat": {"adaptive_ids": [60]}}
    write_manifest(folder, Manifest(methods, default_drafter="sdsat"))
    (repository / "refs").mkdir()
    (repository / "refs" / "main").write_text(COMMIT)
    return tmp_path


def test_a_name_is_as_good_as_a_folder(cached: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT],
        env={**os.environ, "HF_HUB_CACHE": str(cached), "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("SDSATDrafter (60,) ")


def test_what_the_manifest_names_comes_along(cached: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[object] = []
    folder = cached / "models--someone--tiny" / "snapshots" / COMMIT
    methods = {"knn-ssd": {"store": "knn-ssd"}, "msn": {}}
    write_manifest(folder, Manifest(methods))

    def download(name: str, *, allow_patterns: list[str]) -> str:
        asked.append(allow_patterns)
        return snapshot_download(name, cache_dir=cached, local_files_only=True)

    monkeypatch.setattr(hub, "snapshot_download", download)
    assert hub_folder("someone/tiny") == folder
    assert asked == [["draftless.json"], ["knn-ssd/*"]]
    (folder / "draftless.json").unlink()
    assert hub_folder("someone/tiny") is None, "a model like any other"


@pytest.mark.parametrize("name", ["someone/else", "not/a/name", "./missing"])
def test_what_is_not_there_is_for_the_loader_to_say(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hub_folder(name) is None


def test_an_unreachable_hub_is_no_reason_to_forget_in_silence(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def unreachable(*_: object, **__: object) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(hub, "snapshot_download", unreachable)
    with pytest.warns(UserWarning, match=r"draftless.json is not known \(no route to host\)"):
        assert hub_folder("someone/tiny") is None
