"""Checkpoints that survive a kill: one counts only with a marker that is written last."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

from draftless.errors import ConfigError

COMPLETE = "draftless-complete"


def mark_complete(folder: Path) -> None:
    """Flush every file of a checkpoint to the disk, then mark it."""
    for path in [*folder.rglob("*"), folder]:
        _flush(path)
    marker = folder / COMPLETE
    marker.touch()
    _flush(marker)
    _flush(folder)


def _flush(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def checkpoints(folder: Path) -> list[Path]:
    """Complete checkpoints, the newest first."""
    found = [marker.parent for marker in folder.glob(f"checkpoint-*/{COMPLETE}")]
    return sorted(found, key=step_of, reverse=True)


def step_of(checkpoint: Path) -> int:
    """Optimizer steps that a checkpoint's run had made."""
    return int(checkpoint.name.split("-")[1])


def prepare_folder(folder: Path, *, resume: bool) -> Path | None:
    """The checkpoint to go on from, None for a fresh start; removes what a kill left unfinished.

    Raises:
        ConfigError: if there are checkpoints and nobody asked to resume.
    """
    newest = next(iter(checkpoints(folder)), None)
    if newest is not None and not resume:
        raise ConfigError(
            f"{folder} holds the checkpoints of a run; use --resume, or another --output"
        )
    for path in folder.glob("checkpoint-*"):
        if not (path / COMPLETE).exists():
            shutil.rmtree(path)
    return newest
