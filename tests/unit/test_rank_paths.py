"""Templates: what is one, and the file that holds one."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from draftless import ArtifactError, ConfigError
from draftless.rank_paths import read_template


def test_lists_become_paths_in_their_order() -> None:
    assert read_template([[1], [0], [1, 0], [0, 3]]) == ((1,), (0,), (1, 0), (0, 3))
    assert read_template(((0,), (0, 0))) == ((0,), (0, 0))


@pytest.mark.parametrize(
    ("given", "told"),
    [
        ([], "no list of rank paths"),
        (5, "no list of rank paths"),
        ({"template": [[0]]}, "no list of rank paths"),
        ([0, 1], "no list of rank paths"),
        ([[]], "no list of ranks"),
        ([[-1]], "no list of ranks"),
        ([[0.0]], "no list of ranks"),
        ([[True]], "no list of ranks"),
        (["0"], "no list of ranks"),
        ([[0], [0]], "twice"),
        ([[0, 0], [0]], "before the path"),
        ([[1], [0, 1]], "before the path"),
    ],
)
def test_what_is_no_template(given: Any, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        read_template(given)


def test_a_file(tmp_path: Path) -> None:
    file = tmp_path / "recycling.json"
    file.write_text(json.dumps({"format_version": 1, "template": [[0], [0, 2]], "more": 1}))
    assert read_template(file) == read_template(str(file)) == ((0,), (0, 2))


@pytest.mark.parametrize("text", [None, "{", "[]", '{"template": [[0]]}', '{"format_version": 1}'])
def test_a_damaged_file(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "recycling.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ArtifactError, match=r"recycling\.json is no file of draftless calibrate"):
        read_template(file)


def test_a_file_with_no_template(tmp_path: Path) -> None:
    file = tmp_path / "recycling.json"
    file.write_text(json.dumps({"format_version": 1, "template": [[0, 1]]}))
    with pytest.raises(ArtifactError, match=r"recycling\.json: rank path \[0, 1\]"):
        read_template(file)


def test_a_newer_file(tmp_path: Path) -> None:
    file = tmp_path / "recycling.json"
    file.write_text(json.dumps({"format_version": 2, "template": [[0]]}))
    with pytest.raises(ArtifactError, match="format version 2"):
        read_template(file)
