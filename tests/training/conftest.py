"""A folder with a model and data."""

from __future__ import annotations

from pathlib import Path

import pytest

from support.training import write_model, write_records


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`model` and `data.jsonl`."""
    folder = tmp_path_factory.mktemp("train")
    write_model(folder / "model")
    write_records(folder / "data.jsonl")
    return folder
