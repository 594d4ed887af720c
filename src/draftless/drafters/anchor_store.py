"""What `knn-ssd` routes with: labelled anchor vectors, one skip setting per label, one for the rest.

Source: KNN-SSD (Findings of EACL 2026), section 3. Differs from its released code, which keeps pickled
arrays without a version: a store knows its model, is refused when it is damaged or another model's,
and every label must have a setting (theirs falls back to every odd layer, whatever the depth).
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors

from draftless.errors import ArtifactError, ConfigError
from draftless.jsonl import write_file
from draftless.skip_set import SkipSetting

FORMAT_VERSION = 1
FACTS_NAME = "anchors.json"
VECTORS_NAME = "anchors.safetensors"
GENERAL = "general"
"""What the set of far requests is called; no domain may be."""

AnchorKind = Literal["samples", "centroids"]

_REBUILD = "build it again with draftless calibrate anchors"


@dataclass(frozen=True, eq=False)
class Anchors:
    """What a prompt is routed with.

    Attributes:
        vectors: `[A, H]` float32 of unit length, on the CPU.
        labels: `A` domain names.
        max_distance: cosine distance (0 to 2) beyond which a prompt is far from every anchor.

    Raises:
        ArtifactError: they do not fit together.
    """

    vectors: torch.Tensor
    labels: tuple[str, ...]
    max_distance: float

    def __post_init__(self) -> None:
        if not 0.0 <= self.max_distance <= 2.0:
            raise ArtifactError(f"max_distance={self.max_distance} is no cosine distance (0 to 2)")
        if GENERAL in self.labels:
            raise ArtifactError(f"{GENERAL!r} is reserved for far requests and cannot be a label")
        shape, count = tuple(self.vectors.shape), len(self.labels)
        if len(shape) != 2 or shape[0] != count or not count or self.vectors.dtype != torch.float32:
            raise ArtifactError(
                f"vectors of shape {shape} ({self.vectors.dtype}) do not fit {count} labels; "
                "[labels, hidden] in float32 is wanted"
            )
        wrong = [i for i, n in enumerate(self.vectors.norm(dim=1).tolist()) if not _is_one(n)]
        if wrong:
            raise ArtifactError(f"anchors {wrong} are not of length 1 (or hold NaN)")


@dataclass(frozen=True, eq=False)
class AnchorStore(Anchors):
    """Anchors of one model, and how requests are drafted.

    Attributes:
        settings: how requests of each label are drafted.
        general: how requests far from every anchor are drafted, and prompts of one token.
        kind: `samples`, the real prompts nearest to the centroids (paper), or `centroids` (its code).
        model_fingerprint: `TargetModel.fingerprint()` of the model that the vectors come from.
        facts: how it was built and how well it routed held-out prompts, for people.
        provenance: command, commit, versions, machine.

    Raises:
        ArtifactError: parts do not fit together.
    """

    settings: Mapping[str, SkipSetting]
    general: SkipSetting
    kind: AnchorKind
    model_fingerprint: str
    facts: Mapping[str, Any] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.kind not in get_args(AnchorKind):
            raise ArtifactError(f"anchors of the unknown kind {self.kind!r}")
        without = sorted(set(self.labels) - set(self.settings))
        if without:
            raise ArtifactError(f"anchors with the labels {without} have no skip setting")
        unused = sorted(set(self.settings) - set(self.labels))
        if unused:
            raise ArtifactError(f"the skip settings of {unused} have no anchor")

    def save(self, folder: str | Path) -> None:
        """Write `anchors.safetensors`, then `anchors.json` with its hash, each in one piece.

        After a kill between the two `load` refuses the pair, because the hash is that of the other.

        Raises:
            ArtifactError: the folder cannot be written.
        """
        tensors = save_tensors({"vectors": self.vectors.contiguous()})
        data = {
            "format_version": FORMAT_VERSION,
            "sha256": hashlib.sha256(tensors).hexdigest(),
            "model_fingerprint": self.model_fingerprint,
            "kind": self.kind,
            "max_distance": self.max_distance,
            "labels": list(self.labels),
            "settings": {name: setting.to_dict() for name, setting in self.settings.items()},
            "general": self.general.to_dict(),
            "facts": dict(self.facts),
            "provenance": dict(self.provenance),
        }
        text = json.dumps(data, indent=2, allow_nan=False) + "\n"
        try:
            Path(folder).mkdir(parents=True, exist_ok=True)
            for name, content in ((VECTORS_NAME, tensors), (FACTS_NAME, text)):
                write_file(Path(folder) / name, content)
        except OSError as error:
            raise ArtifactError(f"cannot write an anchor store to {folder}: {error}") from error

    @classmethod
    def load(cls, folder: str | Path) -> AnchorStore:
        """Read a store.

        Raises:
            ArtifactError: a file is missing, damaged, too new or of another store, or its parts do
                not fit together.
        """
        facts_file, vectors_file = Path(folder) / FACTS_NAME, Path(folder) / VECTORS_NAME
        data = _read_facts(facts_file)
        tensors = _read_bytes(vectors_file)
        if hashlib.sha256(tensors).hexdigest() != data.pop("sha256", None):
            raise ArtifactError(
                f"{vectors_file} is damaged or does not belong to {facts_file} (its SHA-256 is "
                f"another one; a save may have been interrupted); {_REBUILD}"
            )
        try:
            data["settings"] = {
                name: SkipSetting.from_dict(setting) for name, setting in data["settings"].items()
            }
            data["general"] = SkipSetting.from_dict(data["general"])
            data["labels"] = tuple(data["labels"])
            return cls(vectors=load_tensors(tensors)["vectors"], **data)
        except ArtifactError as error:
            raise ArtifactError(
                f"{folder} is no usable anchor store: {error}; {_REBUILD}"
            ) from error
        except (ConfigError, KeyError, TypeError, ValueError, AttributeError) as error:
            raise ArtifactError(f"{facts_file} is damaged: {error!r}; {_REBUILD}") from error

    def check_model(self, fingerprint: str) -> None:
        """Refuse another model than the one that the anchors come from.

        Raises:
            ArtifactError: it is another one.
        """
        if fingerprint != self.model_fingerprint:
            raise ArtifactError(
                f"the anchor store was made for the model {self.model_fingerprint}, this one is "
                f"{fingerprint}; its vectors mean nothing here: {_REBUILD}"
            )

    def check_layers(self, num_layers: int) -> None:
        """Refuse skip sets that go beyond a model.

        Raises:
            ArtifactError: one names a layer that the model does not have.
        """
        for name, setting in {**self.settings, GENERAL: self.general}.items():
            try:
                setting.skip_set.check(num_layers)
            except ConfigError as error:
                raise ArtifactError(f"anchor store, setting {name!r}: {error}") from error


def _is_one(length: float) -> bool:
    return math.isclose(length, 1.0, abs_tol=1e-4)


def _read_bytes(file: Path) -> bytes:
    try:
        return file.read_bytes()
    except OSError as error:
        raise ArtifactError(
            f"{file} cannot be read ({error.strerror or error}), and an anchor store needs it; "
            f"{_REBUILD}"
        ) from error


def _read_facts(file: Path) -> dict[str, Any]:
    """The object in `anchors.json`, without its version."""
    try:
        data = json.loads(_read_bytes(file))
        version = data.pop("format_version")
    except (ValueError, KeyError, AttributeError, TypeError) as error:
        raise ArtifactError(f"{file} is damaged: {error!r}; {_REBUILD}") from error
    if version != FORMAT_VERSION:
        raise ArtifactError(
            f"{file} has format version {version}, this Draftless reads {FORMAT_VERSION}; "
            f"update Draftless, or {_REBUILD}"
        )
    assert isinstance(data, dict)
    return data
