"""What a checkpoint brings beside its weights: options of the hub, tokenizer, `draftless.json`."""

from __future__ import annotations

from collections.abc import Mapping
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any

from transformers import AutoTokenizer

from draftless.checkpoint.gguf import is_gguf, source_keywords
from draftless.errors import ArtifactError, ConfigError
from draftless.hub import hub_folder
from draftless.manifest import Manifest, read_manifest

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

HUB_OPTIONS = ("revision", "token", "cache_dir", "local_files_only", "trust_remote_code")
"""Options of `from_pretrained` that mean what they mean in `transformers`."""

_INSTEAD = {
    "torch_dtype": "use dtype=",
    "device_map": "use device= (a model on several devices is not supported)",
    "attn_implementation": "use attention=",
    "quantization_config": "quantised models are not supported; int8=True rounds the weights",
    "load_in_8bit": "quantised models are not supported; int8=True rounds the weights",
    "load_in_4bit": "quantised models are not supported; int8=True rounds the weights",
}


def check_hub_options(
    options: Mapping[str, Any], path: str | Path | None, known: tuple[str, ...]
) -> None:
    """Refuse what `from_pretrained` does not take.

    Args:
        options: keywords beside its own.
        path: what is loaded; None is a loaded model.
        known: its own keywords, for suggestions.

    Raises:
        ConfigError: names the option and the way out.
    """
    for name in options:
        if name in _INSTEAD:
            raise ConfigError(f"from_pretrained does not take {name}; {_INSTEAD[name]}")
        if name not in HUB_OPTIONS:
            near = get_close_matches(name, (*known, *HUB_OPTIONS), 1)
            hint = (
                f"did you mean {near[0]}?"
                if near
                else ("load the model with transformers and give it instead of its name")
            )
            raise ConfigError(f"from_pretrained does not know {name}; {hint}")
    if path is None and options:
        raise ConfigError(f"a loaded model needs no {', '.join(options)}; leave it out")
    if path is not None and options.get("revision") is not None and Path(path).exists():
        raise ConfigError(
            f"revision={options['revision']!r} goes with a name on the hub, not with the folder or file "
            f"{str(path)!r}; leave it out"
        )


def checkpoint_folder(
    path: str | Path, options: Mapping[str, Any]
) -> tuple[Path | None, Manifest | None]:
    """The folder of a checkpoint, local or from the hub, and its `draftless.json`."""
    if is_gguf(path):
        return None, None
    if Path(path).is_dir():
        return Path(path), read_manifest(path)
    asked = {name: value for name, value in options.items() if name != "trust_remote_code"}
    folder = hub_folder(str(path), **asked)
    return folder, read_manifest(folder) if folder else None


def load_tokenizer(path: str | Path, options: Mapping[str, Any]) -> PreTrainedTokenizerBase:
    """The checkpoint's tokenizer.

    Raises:
        ArtifactError: it cannot be loaded.
    """
    try:
        tokenizer: PreTrainedTokenizerBase = AutoTokenizer.from_pretrained(
            **source_keywords(path), **options
        )
    except Exception as error:
        raise ArtifactError(f"cannot load a tokenizer from {str(path)!r}: {error}") from error
    return tokenizer


def load_adapters_tokenizer(
    path: str | Path, base: str, options: Mapping[str, Any]
) -> PreTrainedTokenizerBase:
    """The tokenizer that was saved with an adapter, else that of its base model."""
    try:
        return load_tokenizer(path, options)
    except ArtifactError:
        of_base = {name: value for name, value in options.items() if name != "revision"}
        return load_tokenizer(base, of_base)


ENTRY = {"auto": "sdsat"}
"""The method whose entry in `draftless.json` tells a drafter that has none itself."""

_FROM_MANIFEST = {
    "auto": {"adaptive_ids": "adaptive_ids"},
    "recycling": {"template": "template", "budget": "budget"},
    "tr-jacobi": {
        "noise_source": "noise_source",
        "template": "template",
        "budget": "budget",
    },
    "sdsat": {"adaptive_ids": "adaptive_ids", "block_length": "k"},
    "layer-skip": {name: name for name in ("skip_set", "threshold", "depth", "siblings")},
    "knn-ssd": {"store": "store"},
}
"""Per method, what its entry in `draftless.json` says that is an option of its drafter."""


def decoding_options(
    drafter: str, manifest: Manifest | None, folder: Path | None
) -> dict[str, Any]:
    """Those parameters of a checkpoint's method that its drafter takes; files lie in its folder."""
    method = manifest.methods.get(ENTRY.get(drafter, drafter), {}) if manifest else {}
    names = _FROM_MANIFEST.get(drafter, {})
    options = {option: method[name] for name, option in names.items() if name in method}
    if "store" in options and folder is not None:
        options["store"] = folder / options["store"]
    return options


def adaptive_ids(manifest: Manifest | None) -> tuple[int, ...]:
    """The ids of a checkpoint that are input only.

    Raises:
        ArtifactError: its `draftless.json` names something else than ids.
    """
    ids = manifest.methods.get("sdsat", {}).get("adaptive_ids", ()) if manifest else ()
    if not isinstance(ids, list | tuple) or not all(type(one) is int for one in ids):
        raise ArtifactError(f"adaptive_ids of sdsat in draftless.json is no list of ids: {ids!r}")
    return tuple(ids)
