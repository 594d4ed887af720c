"""What the commands of `draftless calibrate` share: prompts by domain, and the installation."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from draftless.errors import ConfigError, InputError
from draftless.manifest import Manifest, read_manifest, write_manifest

if TYPE_CHECKING:
    from draftless.calibration.texts import Prompt


def read_prompts(source: str, split: str, domains: Collection[str] = ()) -> list[Prompt]:
    """Prompts and the domains they are from.

    A record's domain is its `domain` or `category`; else the name of its file, or of the folder of a
    file that is named after the split. Of chats the first question counts.

    Args:
        source: a folder, a JSONL file or the name of a data set, as for training.
        split: part of a folder or data set.
        domains: the only ones that are wanted; empty is all.

    Raises:
        InputError: nothing to read, a broken record, or one of `domains` does not occur.
    """
    from draftless.calibration.texts import Prompt
    from draftless.dialogue import check_prompt, parts_of
    from draftless.training.data import read_records, split_files

    path = Path(source)
    files = split_files(path, split) if path.is_dir() else []
    found = []
    for place in files or [path]:
        records = read_records(place if files else source, split, check_prompt)
        default = _domain_of_file(place, split)
        for record in records:
            domain = record.get("domain") or record.get("category") or default
            found.append(Prompt(str(domain), parts_of(record)[0]))
    known = {prompt.domain for prompt in found}
    missing = [domain for domain in domains if domain not in known]
    if missing:
        raise InputError(
            f"{source} has no domain {', '.join(missing)}; it has {', '.join(sorted(known))}"
        )
    return [prompt for prompt in found if not domains or prompt.domain in domains]


def _domain_of_file(file: Path, split: str) -> str:
    name = file.name.removesuffix(".gz").removesuffix(".jsonl")
    return file.parent.name if name.startswith(split) and file.parent.name else name


def check_installable(model: str | None) -> Path:
    """The folder that `--install` writes to.

    Raises:
        ConfigError: the model is not a folder.
        ArtifactError: its `draftless.json` is broken.
    """
    from draftless import embedded_model_path

    folder = embedded_model_path() if model is None else Path(model)
    if not folder.is_dir():
        raise ConfigError(
            f"--install writes into the model's folder, and {model} is none; download it, or give "
            "the result as an option of the drafter"
        )
    read_manifest(folder)
    return folder


def install(folder: Path, method: str, parameters: Mapping[str, Any]) -> None:
    """Write a drafter's parameters into the `draftless.json` of a folder, in one piece."""
    manifest = read_manifest(folder) or Manifest()
    methods = {**manifest.methods, method: dict(parameters)}
    write_manifest(folder, replace(manifest, methods=methods))
