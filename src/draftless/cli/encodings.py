"""Text that comes in and goes out: files, arguments, standard input and output."""

from __future__ import annotations

import io
import os
import sys
from pathlib import Path
from typing import Any, TextIO

import typer

from draftless.errors import InputError


def standard_output() -> TextIO:
    """Standard output; what its encoding does not have is replaced and stops no answer."""
    stream = sys.stdout
    if isinstance(stream, io.TextIOWrapper) and stream.errors != "replace":
        stream.reconfigure(errors="replace")
    return stream


def read_text(path: Path) -> str:
    """Content of a file, or of standard input for `-`; a byte order mark is no part of it.

    Raises:
        InputError: it cannot be read, or is not UTF-8.
    """
    if str(path) == "-":
        return read_standard_input()
    try:
        return _decoded(path.read_bytes(), str(path))
    except OSError as error:
        raise InputError(f"cannot read {path}: {error.strerror}") from error


def read_standard_input() -> str:
    """All of standard input, as UTF-8 whatever the locale is.

    Raises:
        InputError: it is not UTF-8.
    """
    return _decoded(sys.stdin.buffer.read(), "standard input")


def _decoded(data: bytes, name: str) -> str:
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InputError(
            f"{name} must be UTF-8, got the byte 0x{data[error.start]:02x} at {error.start}; "
            "convert it, for example with iconv"
        ) from error
    return text.replace("\r\n", "\n").replace("\r", "\n")


def unicode_text(param: typer.CallbackParam, value: Any) -> Any:
    """Callback of options that take text: bytes that the locale could not decode are read as UTF-8.

    Raises:
        InputError: they are not UTF-8.
    """
    if isinstance(value, list):
        return [unicode_text(param, one) for one in value]
    if value is None:
        return None
    return unicode_line(value, max(param.opts, key=len))


def unicode_line(text: str, name: str = "the line") -> str:
    """Text whose undecoded bytes, if there are any, are read as UTF-8.

    Raises:
        InputError: they are not UTF-8.
    """
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as broken:
        try:
            return os.fsencode(text).decode("utf-8")
        except ValueError as error:
            raise InputError(
                f"{name} must be UTF-8, got another encoding at character {broken.start}; convert "
                "it, or read the text from a file"
            ) from error
    return text
