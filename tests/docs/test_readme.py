"""What the README and the docs show exists and runs."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from typer.main import get_command

from draftless import cli
from support.gguf import write_tiny_gguf

ROOT = Path(__file__).parents[2]
PAGES = [
    path
    for path in (*ROOT.glob("*.md"), *ROOT.glob("docs/*.md"), ROOT / "benchmarks" / "README.md")
    if path.exists()
]


def blocks(*languages: str) -> list[tuple[str, str]]:
    """(page, content) of the fenced blocks of these languages; "" is a block without one."""
    found = []
    for page in PAGES:
        # All fences in order, so that the end of one block is not taken for the start of another.
        for match in re.finditer(r"^```(\w*)\n(.*?)^```$", page.read_text(), re.M | re.S):
            if match.group(1) in languages:
                found.append((page.name, match.group(2)))
    return found


def shell_lines(program: str) -> Iterator[str]:
    """Calls of `program` in shell blocks and inline code of the pages, and in the help texts."""
    for module in (ROOT / "src" / "draftless" / "cli").glob("*.py"):
        source = module.read_text()
        yield from (
            s for line in source.splitlines() if (s := line.strip()).startswith(f"{program} ")
        )
        yield from re.findall(rf"(?<!`)`({program} [^`\n]+)`(?!`)", source)
    for _, block in blocks("", "sh", "bash"):
        for line in block.splitlines():
            command = line.split("  #")[0].strip()
            if command.startswith(program + " "):
                yield command
    for page in PAGES:
        yield from re.findall(rf"(?<!`)`({program} [^`\n]+)`(?!`)", page.read_text())


@pytest.mark.parametrize("line", sorted(set(shell_lines("draftless"))))
def test_commands_and_their_options_exist(line: str) -> None:
    command = get_command(cli.app)
    words = shlex.split(line)[1:]
    while words and hasattr(command, "commands"):
        assert words[0] in command.commands, f"{line}: no command {words[0]}"
        command = command.commands[words.pop(0)]
    known = {"--help", "-h"} | {o for p in command.params for o in p.opts + p.secondary_opts}
    for word in words:
        if word.startswith("-"):
            assert word.split("=")[0] in known, f"{line}: no option {word}"


@pytest.mark.parametrize("line", sorted(set(shell_lines("make"))))
def test_make_targets_exist(line: str) -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in line.split()[1:]:
        if "=" not in target:
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), f"no target {target}"


@pytest.mark.parametrize("line", sorted(set(shell_lines("python"))))
def test_scripts_and_their_options_exist(line: str) -> None:
    _, script, *words = line.split()
    source = (ROOT / script).read_text()
    for word in words:
        assert not word.startswith("--") or f'"{word}"' in source, f"{line}: no option {word}"


HUB_NAMES = ("HuggingFaceTB/SmolLM2-135M-Instruct",)


@pytest.mark.parametrize(("page", "source"), blocks("python"))
def test_python_snippets_run(page: str, source: str, tmp_path: Path) -> None:
    """On a tiny chat model in the place of those on the hub."""
    file = tmp_path / "tiny.gguf"
    write_tiny_gguf(file)
    for name in HUB_NAMES:
        source = source.replace(name, str(file))
    compile(source, page, "exec")
    result = subprocess.run(
        [sys.executable, "-c", source],
        capture_output=True,
        text=True,
        timeout=300,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert result.returncode == 0, result.stderr


def test_links_between_pages_point_somewhere() -> None:
    for page in PAGES:
        for link in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text()):
            assert (page.parent / link).exists(), f"{page.name}: {link}"
        for name in re.findall(r"`((?:docs|benchmarks|tests|recipes)/[\w./-]+)`", page.read_text()):
            assert (ROOT / name).exists(), f"{page.name}: {name}"


def test_tables_are_what_the_rows_say() -> None:
    script = ROOT / "benchmarks" / "tables.py"
    result = subprocess.run(
        [sys.executable, script, "--check"], capture_output=True, text=True, timeout=300
    )
    assert result.returncode == 0, result.stderr
