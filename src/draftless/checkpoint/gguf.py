"""A GGUF file as a checkpoint: what `transformers` must be told to read it, dequantised."""

from __future__ import annotations

from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import transformers

from draftless.errors import ArtifactError

SUFFIX = ".gguf"


def is_gguf(path: str | Path) -> bool:
    """Whether `path` names a GGUF file: by its suffix, unless a folder has that name."""
    return Path(path).suffix.lower() == SUFFIX and not Path(path).is_dir()


def source_keywords(path: str | Path) -> dict[str, Any]:
    """Where a checkpoint is, as `from_pretrained` of a configuration or a tokenizer takes it.

    Args:
        path: checkpoint folder, name on the hub, or GGUF file.

    Raises:
        ArtifactError: a GGUF file is not there, or the package that reads it is not installed.
    """
    if not is_gguf(path):
        return {"pretrained_model_name_or_path": path}
    file = Path(path)
    if not file.is_file():
        raise ArtifactError(f"there is no file {str(path)!r}")
    if any(find_spec(name) is None for name in ("gguf", "accelerate")):
        raise ArtifactError(
            f"{str(path)!r} is a GGUF file, and a package that reads it is not installed; "
            "pip install 'draftless[gguf]'"
        )
    return {"pretrained_model_name_or_path": str(file.parent), "gguf_file": file.name}


def model_keywords(path: str | Path, dtype: torch.dtype | None) -> dict[str, Any]:
    """The same for a model: its weights in `dtype`; None is the checkpoint's own dtype.

    A GGUF file's weights are dequantised, to bfloat16 if `dtype` is None: its blocks name no
    dtype that a model could compute in.

    Raises:
        ArtifactError: as `source_keywords`.
    """
    keywords = source_keywords(path)
    if "gguf_file" not in keywords:
        return {**keywords, "dtype": dtype or "auto"}
    # Older versions of transformers always dequantise, and have no such class.
    config = getattr(transformers, "GgufConfig", None)
    if config is not None:
        keywords["quantization_config"] = config(dequantize=True)
    return {**keywords, "dtype": dtype or torch.bfloat16}
