"""Lines are read strictly, and appended so that a kill leaves nothing but half a line."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest

from draftless.errors import InputError
from draftless.jsonl import Line, append_lines, cut_half_line, read_lines, write_json


@pytest.mark.parametrize("name", ["a.jsonl", "a.jsonl.gz"])
def test_lines_know_where_they_stand(tmp_path: Path, name: str) -> None:
    file = tmp_path / name
    # U+2028 ends a line for `str.splitlines`, but not here.
    data = '{"a": 1}\n\n  \n{"b": "x\u2028y"}'.encode()
    file.write_bytes(gzip.compress(data, mtime=0) if file.suffix == ".gz" else data)
    lines = list(read_lines(file))
    assert lines == [Line(str(file), 1, {"a": 1}), Line(str(file), 4, {"b": "x\u2028y"})]
    assert lines[1].place == f"{file}, line 4"


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.jsonl", b'{"a": 1}\n{', r"a\.jsonl, line 2 is not JSON"),
        ("a.jsonl", b"\n[1]", r"a\.jsonl, line 2 is no JSON object but of type list"),
        ("a.jsonl", b'{"a": "\xff"}', r"a\.jsonl cannot be read"),
        (
            "a.jsonl.gz",
            gzip.compress(b'{"a": 1}\n' * 99, mtime=0)[:-9],
            r"a\.jsonl\.gz cannot be read",
        ),
        ("a.jsonl.gz", b'{"a": 1}', r"a\.jsonl\.gz cannot be read"),
    ],
)
def test_what_is_broken_is_named(tmp_path: Path, name: str, data: bytes, message: str) -> None:
    (tmp_path / name).write_bytes(data)
    with pytest.raises(InputError, match=message):
        list(read_lines(tmp_path / name))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"a\.jsonl cannot be read"):
        list(read_lines(tmp_path / "a.jsonl"))


def test_half_a_line_is_cut_off(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    append_lines(file, [{"a": "猫"}, {"b": 2}])
    append_lines(file, [])
    whole = file.read_bytes()
    assert whole == '{"a": "猫"}\n{"b": 2}\n'.encode()
    for half in (b"", b"{", '{"c": "猫'.encode()[:-1], b'{"c": 3}'):
        file.write_bytes(whole + half)
        cut_half_line(file)
        assert file.read_bytes() == whole
    file.write_bytes(b'{"a')
    cut_half_line(file)
    assert file.read_bytes() == b""


def test_a_line_that_a_kill_cut_is_closed_and_skipped(tmp_path: Path) -> None:
    file = tmp_path / "a.jsonl"
    assert list(read_lines(file, may_be_cut=True)) == []
    file.write_bytes('{"a": 1}\n{"b": "猫'.encode()[:-1])
    append_lines(file, [{"c": 3}])
    lines = list(read_lines(file, may_be_cut=True))
    assert lines == [Line(str(file), 1, {"a": 1}), Line(str(file), 3, {"c": 3})]
    with pytest.raises(InputError, match=r"a\.jsonl"):
        list(read_lines(file))


def test_a_file_is_written_in_one_piece(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "a.json"
    write_json(file, {"a": 1})

    def full(*_: object) -> None:
        raise OSError("No space left on device")

    monkeypatch.setattr(Path, "replace", full)
    with pytest.raises(OSError, match="No space"):
        write_json(file, {"a": 2})
    assert json.loads(file.read_text()) == {"a": 1}
    assert list(tmp_path.iterdir()) == [file]


def test_several_may_write_at_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With one temporary name for all, or for a process, one would rename what the other still writes."""
    file, replace = tmp_path / "a.json", Path.replace
    calls: list[Path] = []

    def replace_after_the_other(self: Path, target: Path) -> Path:
        calls.append(self)
        if len(calls) == 1:
            write_json(file, {"a": "the other"})
            assert json.loads(file.read_text()) == {"a": "the other"}
        return replace(self, target)

    monkeypatch.setattr(Path, "replace", replace_after_the_other)
    write_json(file, {"a": "the first"})
    assert json.loads(file.read_text()) == {"a": "the first"}
    assert list(tmp_path.iterdir()) == [file]
