"""JSON lines: one object per line, plain or gzipped; files that are replaced in one piece."""

from __future__ import annotations

import errno
import gzip
import json
import os
import re
import secrets
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, cast

from draftless.errors import ArtifactError, InputError

_SURROGATE = re.compile(r"\\u[dD][89a-fA-F]|[\ud800-\udfff]")


@dataclass(frozen=True, slots=True)
class Line:
    """One object, and where it stands.

    Attributes:
        file: its name.
        number: of the line, from 1.
        value: the object.
    """

    file: str
    number: int
    value: dict[str, Any]

    @property
    def place(self) -> str:
        """What errors call it."""
        return f"{self.file}, line {self.number}"


def read_lines(file: Path, *, may_be_cut: bool = False) -> Iterator[Line]:
    """The objects of a file; blank lines are skipped.

    Args:
        file: UTF-8, with or without a byte order mark; `.gz` is unpacked.
        may_be_cut: for a file that `append_lines` writes and a kill may interrupt: a missing file has
            no lines, and lines that are not JSON are skipped.

    Raises:
        InputError: the file cannot be read, or a line is not a JSON object, or holds half a surrogate
            pair, which is no text.
    """
    if may_be_cut and not file.exists():
        return
    opener = gzip.open if file.suffix == ".gz" else open
    errors = "replace" if may_be_cut else "strict"
    try:
        with cast("IO[str]", opener(file, "rt", encoding="utf-8-sig", errors=errors)) as lines:
            yield from parse_lines(lines, str(file), may_be_cut=may_be_cut)
    except (OSError, EOFError, UnicodeDecodeError) as error:
        raise InputError(f"{file} cannot be read: {error}") from error


def parse_lines(lines: Iterable[str], name: str, *, may_be_cut: bool = False) -> Iterator[Line]:
    """As `read_lines`, from lines that `name` names in errors."""
    for number, text in enumerate(lines, start=1):
        if not text.strip():
            continue
        try:
            value = json.loads(text)
        except json.JSONDecodeError as error:
            if may_be_cut:
                continue
            raise InputError(f"{name}, line {number} is not JSON: {error}") from error
        if not isinstance(value, dict):
            raise InputError(
                f"{name}, line {number} is no JSON object but of type {type(value).__name__}"
            )
        if _SURROGATE.search(text):
            _check_unicode(value, f"{name}, line {number}")
        yield Line(name, number, value)


def _check_unicode(value: Mapping[str, Any], place: str) -> None:
    try:
        json.dumps(value, ensure_ascii=False).encode()
    except UnicodeEncodeError as error:
        half = error.object[error.start]
        raise InputError(
            f"{place} holds half of a surrogate pair, \\u{ord(half):04x}, which is no text; "
            "write the whole character"
        ) from error


def append_lines(file: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Add lines in one piece and force them to the disk, or raise the `OSError` of a full disk.

    A line that an earlier kill left unfinished is closed first; `read_lines(may_be_cut=True)` skips it.
    """
    with file.open("ab+") as lines:
        lines.seek(max(0, lines.seek(0, os.SEEK_END) - 1))
        is_cut = lines.read(1) not in (b"", b"\n")
        lines.write(b"\n" * is_cut + _encoded(values))
        lines.flush()
        os.fsync(lines.fileno())


def write_lines(file: Path, values: Iterable[Mapping[str, Any]]) -> None:
    """Write lines as a whole file, as `write_file` does."""
    write_file(file, _encoded(values))


def _encoded(values: Iterable[Mapping[str, Any]]) -> bytes:
    return "".join(json.dumps(value, ensure_ascii=False) + "\n" for value in values).encode()


def cut_half_line(file: Path) -> None:
    """Cut off what a kill left behind the last complete line."""
    with file.open("rb+") as lines:
        lines.truncate(lines.read().rfind(b"\n") + 1)


def write_json(file: Path, data: Mapping[str, Any]) -> None:
    """Write one object as a file, as `write_file` does."""
    write_file(file, json.dumps(data, indent=2) + "\n")


def write_file(file: Path, content: str | bytes) -> None:
    """Write a file in one piece: a reader sees the old file or the new one.

    Of several that write at once one wins; each has a temporary file of its own.
    """
    temporary = file.with_name(f"{file.name}.{secrets.token_hex(8)}.tmp")
    try:
        temporary.write_bytes(content.encode() if isinstance(content, str) else content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def unwritable(file: Path, error: OSError) -> ArtifactError:
    """What a run that can go on says when its file cannot be written."""
    mend = "make room" if error.errno == errno.ENOSPC else "make it writable"
    return ArtifactError(
        f"cannot write {file}: {error.strerror or error}; what was written so far is whole: {mend} and "
        "go on with --resume"
    )
