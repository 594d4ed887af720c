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


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--full", action="store_true", help="run the full product of the equivalence matrix, too"
    )


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--full") or "full" in config.getoption("-m"):
        return
    chosen = [item for item in items if "full" not in item.keywords]
    config.hook.pytest_deselected(items=[item for item in items if "full" in item.keywords])
    items[:] = chosen
