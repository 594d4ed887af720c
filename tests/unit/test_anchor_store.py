"""A store comes back as it was; damage, mixtures and stores of other models are refused by name."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from draftless.drafters.anchor_store import FACTS_NAME, VECTORS_NAME, AnchorStore
from draftless.errors import ArtifactError
from draftless.skip_set import SkipSet, SkipSetting
from support.anchors import small_store


def edit(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], None]:
    """A change of the object in `anchors.json`."""

    def damage(folder: Path) -> None:
        data = json.loads((folder / FACTS_NAME).read_text())
        change(data)
        (folder / FACTS_NAME).write_text(json.dumps(data))

    return damage


def cut(name: str) -> Callable[[Path], None]:
    """A file that ends too early."""

    def damage(folder: Path) -> None:
        content = (folder / name).read_bytes()
        (folder / name).write_bytes(content[:-5])

    return damage


def flip_a_bit(folder: Path) -> None:
    content = bytearray((folder / VECTORS_NAME).read_bytes())
    content[-1] ^= 1
    (folder / VECTORS_NAME).write_bytes(bytes(content))


def other_vectors(folder: Path) -> None:
    save_file({"vectors": small_store().vectors.flip(0).contiguous()}, folder / VECTORS_NAME)


def test_a_store_comes_back(tmp_path: Path) -> None:
    store = small_store()
    store.save(tmp_path / "new" / "store")
    back = AnchorStore.load(tmp_path / "new" / "store")
    assert torch.equal(back.vectors, store.vectors) and back.vectors.dtype == torch.float32
    for name in set(AnchorStore.__dataclass_fields__) - {"vectors"}:
        assert getattr(back, name) == getattr(store, name), name
    assert sorted(f.name for f in (tmp_path / "new" / "store").iterdir()) == [
        FACTS_NAME,
        VECTORS_NAME,
    ]


@pytest.mark.parametrize(
    ("damage", "file", "reason"),
    [
        (lambda f: (f / FACTS_NAME).unlink(), FACTS_NAME, "No such file"),
        (lambda f: (f / VECTORS_NAME).unlink(), VECTORS_NAME, "No such file"),
        (cut(FACTS_NAME), FACTS_NAME, "damaged"),
        (cut(VECTORS_NAME), VECTORS_NAME, "damaged"),
        (flip_a_bit, VECTORS_NAME, "SHA-256"),
        (other_vectors, VECTORS_NAME, "SHA-256"),
        (lambda f: (f / FACTS_NAME).write_text("[]"), FACTS_NAME, "damaged"),
        (edit(lambda d: d.update(format_version=2)), FACTS_NAME, "format version 2"),
        (edit(lambda d: d.pop("format_version")), FACTS_NAME, "format_version"),
        (edit(lambda d: d.pop("sha256")), VECTORS_NAME, "SHA-256"),
        (edit(lambda d: d.pop("general")), FACTS_NAME, "general"),
        (edit(lambda d: d.update(more=1)), FACTS_NAME, "more"),
        (edit(lambda d: d["general"].pop("depth")), FACTS_NAME, "depth"),
        (edit(lambda d: d["settings"].pop("sql")), "", r"labels \['sql'\] have no skip setting"),
        (edit(lambda d: d["labels"].__setitem__(0, "tales")), "", r"\['tales'\] have no skip"),
        (edit(lambda d: d.update(labels=["math"] * 5)), "", r"of \['sql'\] have no anchor"),
        (edit(lambda d: d["labels"].append("sql")), "", r"\(5, 4\).* do not fit 6 labels"),
        (edit(lambda d: d.update(max_distance=2.5)), "", "max_distance=2.5"),
        (edit(lambda d: d.update(max_distance=float("nan"))), "", "max_distance=nan"),
        (edit(lambda d: d.update(max_distance="far")), FACTS_NAME, "damaged"),
        (edit(lambda d: d.update(kind="medoids")), "", "'medoids'"),
    ],
)  # fmt: skip
def test_what_is_wrong_is_named(
    damage: Callable[[Path], None], file: str, reason: str, tmp_path: Path
) -> None:
    small_store().save(tmp_path)
    damage(tmp_path)
    with pytest.raises(ArtifactError, match=reason) as raised:
        AnchorStore.load(tmp_path)
    assert str(tmp_path / file) in str(raised.value)
    assert "draftless calibrate anchors" in str(raised.value)


@pytest.mark.parametrize(
    ("vectors", "reason"),
    [
        (torch.eye(5, 4), "not of length 1"),  # the last row is zero
        (torch.full((5, 4), torch.nan), "NaN"),
        (2 * small_store().vectors, r"anchors \[0, 1, 2, 3, 4\] are not of length 1"),
        (small_store().vectors.double(), "float64"),
        (small_store().vectors[:4], "do not fit 5 labels"),
        (small_store().vectors[0], "do not fit"),
    ],
)
def test_vectors_that_cannot_be_anchors(vectors: torch.Tensor, reason: str) -> None:
    with pytest.raises(ArtifactError, match=reason):
        replace(small_store(), vectors=vectors)


def test_a_domain_cannot_be_called_general() -> None:
    store = small_store()
    with pytest.raises(ArtifactError, match="'general' is reserved"):
        replace(
            store,
            labels=(*store.labels[:-1], "general"),
            settings={**store.settings, "general": store.general},
        )


@pytest.mark.parametrize("name", [VECTORS_NAME, FACTS_NAME])
@pytest.mark.parametrize("is_second", [False, True])
def test_a_kill_while_saving(
    name: str, is_second: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whichever file was about to be put in place: the old store, or a refusal."""
    old, new = small_store(), small_store(seed=1)
    if is_second:
        old.save(tmp_path)
    put = Path.replace

    def kill(self: Path, target: Path) -> Path:
        if target.name == name:
            raise KeyboardInterrupt
        return put(self, target)

    monkeypatch.setattr(Path, "replace", kill)
    with pytest.raises(KeyboardInterrupt):
        new.save(tmp_path)
    monkeypatch.undo()
    if name == VECTORS_NAME and is_second:
        assert torch.equal(AnchorStore.load(tmp_path).vectors, old.vectors)
    else:
        with pytest.raises(ArtifactError, match=r"interrupted|cannot be read"):
            AnchorStore.load(tmp_path)
    new.save(tmp_path)
    assert torch.equal(AnchorStore.load(tmp_path).vectors, new.vectors)


def test_an_unwritable_folder(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ArtifactError, match=r"cannot write .* to .*file"):
        small_store().save(tmp_path / "file")


def test_a_store_belongs_to_one_model() -> None:
    store = small_store()
    store.check_model("tiny")
    store.check_layers(5)
    with pytest.raises(
        ArtifactError, match=r"for the model tiny, this one is other.*calibrate anch"
    ):
        store.check_model("other")
    with pytest.raises(ArtifactError, match=r"'sql'.* layers \[4\]"):
        store.check_layers(4)
    deep = replace(store, general=SkipSetting(SkipSet(mlp=(9,)), 0.5, 4))
    with pytest.raises(ArtifactError, match=r"'general'.* layers \[9\]"):
        deep.check_layers(5)
