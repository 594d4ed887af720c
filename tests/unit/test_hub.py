"""A checkpoint by its name on the hub brings its `draftless.json`, as its folder does."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import (
    LocalEntryNotFoundError,
    RemoteEntryNotFoundError,
    RepositoryNotFoundError,
)

from draftless import ArtifactError, hub
from draftless.hub import hub_folder
from draftless.manifest import Manifest, write_manifest

NOT_FOUND: Any = SimpleNamespace(headers={}, request=None)
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
    write_manifest(folder, Manifest({"knn-ssd": {"store": "knn-ssd"}, "msn": {}}))

    def fetch(name: str, file: str) -> str:
        return hf_hub_download(name, file, cache_dir=cached, local_files_only=True)

    monkeypatch.setattr(hub, "hf_hub_download", fetch)
    monkeypatch.setattr(
        hub,
        "snapshot_download",
        lambda name, *, allow_patterns: asked.append((name, allow_patterns)),
    )
    assert hub_folder("someone/tiny") == folder
    assert asked == [("someone/tiny", ["knn-ssd/*"])]
    (folder / "draftless.json").write_text("{")
    with pytest.raises(ArtifactError, match="not a valid manifest"):
        hub_folder("someone/tiny")


@pytest.mark.parametrize("name", ["someone/else", "not/a/name", "./missing"])
def test_what_is_not_there_is_for_the_loader_to_say(name: str) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert hub_folder(name) is None


@pytest.mark.parametrize(
    ("error", "is_known"),
    [
        (RuntimeError("reset by peer"), False),
        (LocalEntryNotFoundError("no connection, and nothing kept"), False),
        (RemoteEntryNotFoundError("404", response=NOT_FOUND), True),
        (RepositoryNotFoundError("404", response=NOT_FOUND), True),
    ],
    ids=lambda value: type(value).__name__,
)
def test_an_unreachable_hub_is_no_reason_to_forget_in_silence(
    monkeypatch: pytest.MonkeyPatch, error: Exception, is_known: bool
) -> None:
    def fetch(*_: object) -> None:
        raise error

    monkeypatch.setattr(hub, "hf_hub_download", fetch)
    with warnings.catch_warnings(record=True) as told:
        warnings.simplefilter("always")
        monkeypatch.setattr(hub, "is_offline_mode", lambda: True)
        assert hub_folder("someone/tiny") is None
        assert not told, "it was asked for"
        monkeypatch.setattr(hub, "is_offline_mode", lambda: False)
        assert hub_folder("someone/tiny") is None
    assert bool(told) != is_known
    assert is_known or "is not known" in str(told[0].message)
