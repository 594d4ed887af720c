"""Set-up of all tests: one thread per worker, no network, the full matrix only with `--full`."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path

os.environ.setdefault("HF_HUB_OFFLINE", "1")
# Price lists of test models: not into the user's own folder, and once for all workers.
os.environ.setdefault("DRAFTLESS_CACHE", str(Path(tempfile.gettempdir()) / "draftless-tests"))

import pytest
import torch
from hypothesis import settings

torch.set_num_threads(1)
# The same examples in every run: a red test stays red until it is mended.
settings.register_profile("draftless", derandomize=True, deadline=None, database=None)
settings.load_profile("draftless")


# Marked tests that run only on request: by an option, or by `-m` that names the marker.
ON_REQUEST = {
    "full": "run the full product of the equivalence matrix, too",
    "real": "run the tests of the pretrained models in models/, too",
}


def pytest_addoption(parser: pytest.Parser) -> None:
    for marker, what in ON_REQUEST.items():
        parser.addoption(f"--{marker}", action="store_true", help=what)


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    left_out = {
        marker
        for marker in ON_REQUEST
        if not config.getoption(f"--{marker}") and marker not in config.getoption("-m")
    }
    deselected = [item for item in items if not left_out.isdisjoint(_markers(item))]
    config.hook.pytest_deselected(items=deselected)
    items[:] = [item for item in items if left_out.isdisjoint(_markers(item))]


def _markers(item: pytest.Item) -> set[str]:
    return {mark.name for mark in item.iter_markers()}  # keywords name folders, too


@pytest.fixture(autouse=True)
def _every_load_is_tested(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tests plant defects that a proof of an earlier load would hide; tests of proofs ask for `proofs`."""
    if "proofs" not in request.fixturenames:
        monkeypatch.setattr("draftless.engine.proof.ProofFile.read", lambda _: None)


@pytest.fixture
def proofs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache folder in which proofs count."""
    folder = tmp_path / "cache"
    monkeypatch.setenv("DRAFTLESS_CACHE", str(folder))
    return folder / "proofs"
