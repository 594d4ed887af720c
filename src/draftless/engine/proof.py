"""What was shown of a checkpoint on this machine, so that loading it again does not test it again."""

from __future__ import annotations

import contextlib
import hashlib
import inspect
import json
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import transformers

from draftless.caches import cache_folder
from draftless.engine.build import processor
from draftless.engine.cache import CacheShape
from draftless.jsonl import write_json

_ENGINE = Path(__file__).parent


@dataclass(frozen=True, slots=True)
class Proof:
    """What the tests of a load found; there is none of a model that failed them.

    Attributes:
        windows: per type of layer its sliding window, or None.
        cache_shape: of the model.
        has_stable_bits: the native forward pass is batch-invariant on it.
    """

    windows: dict[str, int | None]
    cache_shape: CacheShape
    has_stable_bits: bool


class ProofFile:
    """The proof of one checkpoint, in the cache folder.

    Its name is a hash of everything that the tests depend on: weights and configuration files (name, size, time),
    our code, the model's code, the versions of torch and transformers, the processor. Weights on the hub never
    change within a commit.

    Args:
        source: checkpoint folder, GGUF file or name on the hub that `model` was just loaded from; None where
            its weights may be other ones, and nothing is read or kept.
        model: as it was loaded, before its attention is switched.
        attention: that it is to have.
    """

    def __init__(self, source: str | Path | None, model: Any, attention: str) -> None:
        first = next(model.parameters())
        self._dtype, self._device = first.dtype, first.device
        files = None if source is None else _files_of(source, model)
        self._path: Path | None = None
        if files is not None:
            facts = [
                torch.__version__, transformers.__version__, processor(), attention, str(first.dtype),
                str(first.device), str(model.config._attn_implementation),
                model.config.to_json_string(use_diff=False), *map(_state_of, [*files, *_code_of(model)]),
            ]  # fmt: skip
            name = hashlib.sha256("\n".join(facts).encode()).hexdigest()[:24]
            self._path = cache_folder() / "proofs" / f"{name}.json"

    def read(self) -> Proof | None:
        """None where nothing was proved, or the file cannot be read."""
        if self._path is None:
            return None
        try:
            found = json.loads(self._path.read_text(encoding="utf-8"))
            num_layers, num_kv_heads, head_dim = found["cache_shape"]
            shape = CacheShape(num_layers, num_kv_heads, head_dim, self._dtype, self._device)
            return Proof(dict(found["windows"]), shape, bool(found["has_stable_bits"]))
        except (OSError, ValueError, KeyError, TypeError):
            return None

    def write(self, proof: Proof) -> None:
        """Keep it; a folder that cannot be written costs the tests of the next load, nothing else."""
        if self._path is None:
            return
        shape = proof.cache_shape
        found = {
            "windows": proof.windows,
            "cache_shape": [shape.num_layers, shape.num_kv_heads, shape.head_dim],
            "has_stable_bits": proof.has_stable_bits,
        }
        with contextlib.suppress(OSError):
            self._path.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._path, found)


def _files_of(source: str | Path, model: Any) -> list[str] | None:
    """The files that a checkpoint consists of; of one on the hub its commit; None if that is unknown."""
    if (path := Path(source).resolve()).exists():
        return _files_in(path) if path.is_dir() else [str(path)]
    commit = getattr(model.config, "_commit_hash", None)
    return commit and [f"{source} {commit}"]


def _files_in(folder: Path) -> list[str]:
    return sorted(one.path for one in os.scandir(folder) if one.is_file())


def _code_of(model: Any) -> Iterator[str]:
    """The files of the code that tests the model and that computes its passes."""
    for folder in (_ENGINE, _ENGINE / "cpu", _ENGINE / "native"):
        yield from _files_in(folder)
    for kind in type(model).__mro__:
        if issubclass(kind, transformers.PreTrainedModel):
            yield inspect.getfile(kind)


def _state_of(file: str) -> str:
    """Its path, size and time, as far as it is a file."""
    try:
        found = Path(file).stat()
    except OSError:
        return file
    return f"{file} {found.st_size} {found.st_mtime_ns}"
