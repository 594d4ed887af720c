"""Where a result comes from: command, commit, versions, machine, load."""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

_PACKAGES = (
    "draftless",
    "torch",
    "transformers",
    "tokenizers",
    "numpy",
    "trl",
    "peft",
    "accelerate",
    "optuna",
    "scikit-learn",
)


def collect_provenance() -> dict[str, Any]:
    """Facts to store beside a result; no user names, no paths of this machine.

    Returns:
        `date` (UTC), `command`, `commit` and `is_dirty` (None outside a checkout), package
        versions, `python`, `cpu`, `num_cpus`, `num_threads`, `gpu` and `load` (1 minute).
    """
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "command": " ".join([Path(sys.argv[0]).name, *map(_without_home, sys.argv[1:])]),
        "commit": _git("rev-parse", "HEAD"),
        "is_dirty": _is_dirty(),
        "python": platform.python_version(),
        **{name: v for name in _PACKAGES if (v := _version(name)) is not None},
        "cpu": _cpu(),
        "num_cpus": os.cpu_count(),
        "num_threads": torch.get_num_threads(),
        "gpu": torch.cuda.get_device_name() if torch.cuda.is_available() else None,
        "load": round(os.getloadavg()[0], 2),
    }


def hardware_name(device: torch.device) -> str:
    """What passes on this device run on: the GPU's or the processor's name."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else _cpu()


def _without_home(argument: str) -> str:
    """Absolute paths shrink to their last two parts: the rest tells about one machine only."""
    path = Path(argument)
    return str(Path(*path.parts[-2:])) if path.is_absolute() else argument


def _git(*arguments: str) -> str | None:
    """Output of a git command on the checkout that this file belongs to."""
    try:
        done = subprocess.run(
            ["git", *arguments],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
            timeout=10,
        )
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip()


def _is_dirty() -> bool | None:
    status = _git("status", "--porcelain", "--untracked-files=no")
    return None if status is None else bool(status)


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu() -> str:
    """The processor's name, as Linux tells it, and the instruction sets that matter to bf16."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor() or platform.machine()
    fields = dict(line.split(":", 1) for line in text.split("\n\n")[0].splitlines() if ":" in line)
    named = {key.strip(): value.strip() for key, value in fields.items()}
    flags = set(named.get("flags", "").split())
    extras = [flag for flag in ("avx2", "avx512f", "avx512_bf16", "amx_bf16") if flag in flags]
    return " ".join([named.get("model name", platform.machine()), *extras])
