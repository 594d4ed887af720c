"""The kernels' library: compiled once, kept, never met half; without a compiler a clear error."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from draftless.engine.cpu import library as module
from draftless.engine.cpu.library import NoCompiler, compiler

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DRAFTLESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "tmp"))
    (tmp_path / "tmp").mkdir()
    yield


def program(path: Path, text: str) -> str:
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return str(path)


def quick(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A compiler that writes a file and counts its calls."""
    calls = tmp_path / "calls"
    text = f'echo x >> {calls}\nwhile [ "$1" != -o ]; do shift; done\necho whole > "$2"'
    monkeypatch.setenv("CXX", program(tmp_path / "quick", text))
    return calls


def test_no_compiler(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.delenv("CXX", raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(NoCompiler, match=r"no C\+\+ compiler"):
        module._compiled(())
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NoCompiler, match=r"no C\+\+ compiler"):
        module._compiled(())


def test_the_compiler_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = program(tmp_path / "mine", "exit 0")
    monkeypatch.setenv("CXX", mine)
    assert compiler() == mine


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "echo 'what is -march=native' >&2; exit 3"
    monkeypatch.setenv("CXX", program(tmp_path / "failing", text))
    with pytest.raises(NoCompiler, match="failing refuses the kernels: what is -march=native"):
        module._compiled(())
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_compiler_that_cannot_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    with pytest.raises(NoCompiler, match="broken cannot be started"):
        module._compiled(())


def test_a_file_that_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quick(tmp_path, monkeypatch)
    with pytest.raises(NoCompiler, match="cannot be loaded"):
        module._load(())


def test_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = quick(tmp_path, monkeypatch)
    first = module._compiled(())
    assert first.read_text() == "whole\n"
    assert first.parent == tmp_path / "cache" / "native"
    assert module._compiled(()) == first
    assert calls.read_text() == "x\n"
    assert [path.name for path in first.parent.iterdir()] == [first.name]  # nothing is left behind


def test_other_flags_sources_and_compilers_are_other_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quick(tmp_path, monkeypatch)
    files = {module._compiled(()), module._compiled(("-mno-amx-bf16",))}
    monkeypatch.setattr(module, "_processor", lambda: "another")
    files.add(module._compiled(()))
    source = module._source("forward.cpp", set())
    monkeypatch.setattr(module, "_source", lambda *_: source + "\n")
    files.add(module._compiled(()))
    monkeypatch.setenv("CXX", program(tmp_path / "other", (tmp_path / "quick").read_text()))
    files.add(module._compiled(()))
    assert len(files) == 5


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = quick(tmp_path, monkeypatch)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DRAFTLESS_CACHE", str(tmp_path / "file"))
    first = module._compiled(())
    assert first.is_relative_to(tmp_path / "tmp")
    assert module._compiled(()) == first
    assert calls.read_text() == "x\n"


def test_no_folder_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quick(tmp_path, monkeypatch)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DRAFTLESS_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(module.tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(NoCompiler, match="cannot be written"):
        module._compiled(())


def test_the_folder_of_someone_else_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Anyone may make a folder in the folder of temporary files, and a library in it."""
    quick(tmp_path, monkeypatch)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DRAFTLESS_CACHE", str(tmp_path / "file"))
    folder = module._compiled(()).parent
    assert folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o777)
    with pytest.raises(NoCompiler, match="cannot be written"):
        module._compiled(())
    folder.chmod(0o700)
    monkeypatch.setattr(module.os, "getuid", lambda: os.stat(folder).st_uid + 1)  # noqa: PTH116
    folder.rename(folder.with_name(f"draftless-{os.getuid()}"))
    with pytest.raises(NoCompiler, match="cannot be written"):
        module._compiled(())


def test_two_processes_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The slow compiler writes half, waits, and writes the rest: no one may see the half."""
    text = 'while [ "$1" != -o ]; do shift; done\nprintf half > "$2"\nsleep 0.4\nprintf " whole" >> "$2"'
    monkeypatch.setenv("CXX", program(tmp_path / "slow", text))
    code = "from draftless.engine.cpu.library import _compiled\nprint(_compiled(()).read_text())"
    source = Path(module.__file__).parents[3]
    environment = {**os.environ, "PYTHONPATH": str(source)}
    runs = [
        subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, env=environment)
        for _ in range(2)
    ]
    seen: set[str] = set()
    while any(run.poll() is None for run in runs):
        seen |= {path.read_text() for path in (tmp_path / "cache" / "native").glob("*.so")}
    assert [run.communicate()[0] for run in runs] == [b"half whole\n"] * 2
    assert seen <= {"half whole"}


@needs_compiler
def test_it_compiles_and_loads_without_amx() -> None:
    """What a CPU gets whose system does not allow the tiles."""
    loaded = (
        module._load(("-mno-amx-bf16",)) if os.uname().machine == "x86_64" else module._load(())
    )
    assert loaded.is_usable() == 1
    assert loaded.bytes_of_packed(64, 32, 0) > 0
