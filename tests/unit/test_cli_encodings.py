"""Terminals, arguments and files that are not plain UTF-8."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

from draftless import InputError, cli
from draftless.cli.encodings import read_text, unicode_line
from draftless.jsonl import read_lines
from draftless.training.config import build_config

BOM = b"\xef\xbb\xbf"
C_LOCALE = {"LC_ALL": "C", "PYTHONCOERCECLOCALE": "0", "PYTHONUTF8": "0"}

WRITE = """
from draftless.cli.answers import painting, write_chunks
from draftless.types import Chunk
write_chunks([Chunk("caf\\u00e9 \\u2022 \\U0001f600 [b]", (1,), 0)])
"""


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PYTHONIOENCODING": "cp1252"}, b"caf\xe9 \x95 ? [b]"),
        ({"PYTHONIOENCODING": "ascii"}, b"caf? ? ? [b]"),
        ({"PYTHONIOENCODING": ""} | C_LOCALE, b"caf? ? ? [b]"),
        ({"PYTHONIOENCODING": "utf-8"}, "café • 😀 [b]".encode()),
    ],
)
def test_what_a_terminal_cannot_show_is_replaced(
    environment: dict[str, str], expected: bytes
) -> None:
    done = subprocess.run(
        [sys.executable, "-c", WRITE], capture_output=True, env={**os.environ, **environment}
    )
    assert done.stderr == b""
    assert done.stdout.strip() == expected


def test_help_and_json_in_the_c_locale(checkpoint: Path) -> None:
    environment = {**os.environ, **C_LOCALE}
    command = [sys.executable, "-m", "draftless"]
    done = subprocess.run([*command, "chat", "--help"], capture_output=True, env=environment)
    assert done.returncode == 0, done.stderr
    arguments = ["generate", checkpoint, "--prompt", "äöü 猫".encode(), "--max-new-tokens", "40"]
    arguments += ["--json", "--no-compile", "--drafter", "none"]
    texts = []
    for one in (environment, {**os.environ, "PYTHONUTF8": "1"}):
        done = subprocess.run([*command, *arguments], capture_output=True, env=one)
        assert done.returncode == 0, done.stderr
        texts.append(json.loads(done.stdout)["text"])
    assert texts[0] == texts[1], "JSON needs no substitutes, and the prompt was the same"


def test_arguments_are_utf8_or_refused() -> None:
    broken = os.fsdecode(b"caf\xe9")
    for flags in (["--prompt", broken], ["--system", broken], ["-p", "x", "--stop", broken]):
        result = CliRunner().invoke(cli.app, ["generate", *flags])
        assert isinstance(result.exception, InputError)
        assert "must be UTF-8" in str(result.exception)
        assert "--" in str(result.exception)
    assert unicode_line("café 猫") == "café 猫"


@pytest.mark.parametrize("mark", [b"", BOM])
def test_a_byte_order_mark_is_no_text(tmp_path: Path, mark: bytes) -> None:
    file = tmp_path / "file"
    file.write_bytes(mark + "Grüße\r\nan\r\n".encode())
    assert read_text(file) == "Grüße\nan\n"
    file.write_bytes(mark + b'{"prompt": "a"}\n{"prompt": "b"}\n')
    assert [line.value["prompt"] for line in read_lines(file)] == ["a", "b"]
    file.write_bytes(mark + "output: Grüße\ndata: there\nmodel: mine\n".encode())
    assert build_config(None, file, {}).output == "Grüße"


def test_other_files_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_bytes("Grüße".encode("latin-1"))
    with pytest.raises(InputError, match="file must be UTF-8, got the byte 0xfc at 2"):
        read_text(file)
    with pytest.raises(InputError, match=r"cannot read .*missing: No such file"):
        read_text(tmp_path / "missing")
