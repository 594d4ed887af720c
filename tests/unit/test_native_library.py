"""The kernels' library: compiled once, kept, never met half; without a compiler a clear error."""

from __future__ import annotations

import copy
import logging
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

from draftless.engine import build
from draftless.engine.build import NoCompiler, built, compiler
from draftless.engine.cpu import forward
from draftless.engine.cpu import library as module
from draftless.engine.target import TargetModel
from support.models import stock_model

needs_compiler = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")


@pytest.fixture(autouse=True)
def fresh(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("DRAFTLESS_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
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
        built("forward.cpp")
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(NoCompiler, match=r"no C\+\+ compiler"):
        built("forward.cpp")


def test_the_compiler_that_is_asked_for(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    mine = program(tmp_path / "mine", "exit 0")
    monkeypatch.setenv("CXX", mine)
    assert compiler() == mine


def test_a_compiler_that_fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    text = "echo 'what is -march=native' >&2; exit 3"
    monkeypatch.setenv("CXX", program(tmp_path / "failing", text))
    with pytest.raises(NoCompiler, match=r"failing refuses forward-.*: what is -march=native"):
        built("forward.cpp")
    assert not list((tmp_path / "cache").rglob("*.so"))


def test_a_compiler_that_cannot_start(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    path = tmp_path / "broken"
    path.write_text("#!/no/such/interpreter\n")
    path.chmod(0o755)
    monkeypatch.setenv("CXX", str(path))
    with pytest.raises(NoCompiler, match="broken refuses"):
        built("forward.cpp")


def test_a_file_that_is_no_library(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quick(tmp_path, monkeypatch)
    with pytest.raises(NoCompiler, match="cannot be loaded"):
        module._load(())


def test_compiled_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = quick(tmp_path, monkeypatch)
    first = built("forward.cpp")
    assert first.read_text() == "whole\n"
    assert first.parent == tmp_path / "cache" / "native"
    assert built("forward.cpp") == first
    assert calls.read_text() == "x\n"
    assert [path.name for path in first.parent.iterdir()] == [first.name]  # nothing is left behind


def test_other_flags_sources_and_compilers_are_other_files(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quick(tmp_path, monkeypatch)
    files = {built("forward.cpp"), built("forward.cpp", ("-mno-amx-bf16",))}
    monkeypatch.setattr(build, "processor", lambda: "another")
    files.add(built("forward.cpp"))
    source = build._source("forward.cpp", {})
    monkeypatch.setattr(build, "_source", lambda *_: source + "\n")
    files.add(built("forward.cpp"))
    monkeypatch.setenv("CXX", program(tmp_path / "other", (tmp_path / "quick").read_text()))
    files.add(built("forward.cpp"))
    assert len(files) == 5


def test_a_cache_that_cannot_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    calls = quick(tmp_path, monkeypatch)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DRAFTLESS_CACHE", str(tmp_path / "file"))
    first = built("forward.cpp")
    assert first.is_relative_to(tmp_path / "tmp")
    assert built("forward.cpp") == first
    assert calls.read_text() == "x\n"


def test_no_folder_can_be_written(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    quick(tmp_path, monkeypatch)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DRAFTLESS_CACHE", str(tmp_path / "file"))
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "file"))
    with pytest.raises(NoCompiler, match="cannot be written"):
        built("forward.cpp")


def test_the_folder_of_someone_else_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Anyone may make a folder in the folder of temporary files, and a library in it."""
    quick(tmp_path, monkeypatch)
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DRAFTLESS_CACHE", str(tmp_path / "file"))
    folder = built("forward.cpp").parent
    assert folder.stat().st_mode & 0o077 == 0
    folder.chmod(0o777)
    with pytest.raises(NoCompiler, match="cannot be written"):
        built("forward.cpp")
    folder.chmod(0o700)
    other = os.getuid() + 1
    monkeypatch.setattr(os, "getuid", lambda: other)
    folder.rename(folder.with_name(f"draftless-{other}"))
    with pytest.raises(NoCompiler, match="cannot be written"):
        built("forward.cpp")


def test_a_cache_among_temporary_files_is_not_trusted(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """A user without a home: anyone may have put a library there before."""
    calls = quick(tmp_path, monkeypatch)
    monkeypatch.delenv("DRAFTLESS_CACHE")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)

    def no_home() -> Path:
        raise RuntimeError("no home")

    monkeypatch.setattr(Path, "home", no_home)
    mine = built("forward.cpp")
    assert mine.parent == tmp_path / "tmp" / f"draftless-{os.getuid()}"
    planted = tmp_path / "tmp" / "draftless" / "native" / mine.name
    planted.parent.mkdir(parents=True)
    planted.write_text("planted")
    assert built("forward.cpp") == mine
    assert calls.read_text() == "x\n"


def test_a_cache_that_may_not_be_looked_into(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    quick(tmp_path, monkeypatch)
    is_file = Path.is_file

    def forbidden(path: Path) -> bool:
        if path.is_relative_to(tmp_path / "cache"):
            raise PermissionError(13, "Permission denied", str(path))
        return is_file(path)

    monkeypatch.setattr(Path, "is_file", forbidden)
    assert built("forward.cpp").is_relative_to(tmp_path / "tmp")


@pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")
def test_a_model_loads_without_the_library(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A library that cannot be loaded is no reason to refuse a model; a line says why."""
    quick(tmp_path, monkeypatch)
    monkeypatch.setattr(module, "library", cache(module.library.__wrapped__))
    monkeypatch.setattr(forward, "library", module.library)
    with caplog.at_level(logging.INFO, logger="draftless"):
        model = TargetModel(copy.deepcopy(stock_model("llama", "fp32")), compile="auto")
    assert not model.is_compiled
    assert any("cannot be loaded" in record.getMessage() for record in caplog.records)


def test_a_process_that_ends_leaves_the_compiler_at_work(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Short runs would otherwise begin anew each time, and never have it."""
    text = 'while [ "$1" != -o ]; do shift; done\nsleep 1\nprintf whole > "$2"'
    monkeypatch.setenv("CXX", program(tmp_path / "slow", text))
    monkeypatch.setenv("DRAFTLESS_CACHE", str(tmp_path / "cache"))
    code = (
        "import time\nfrom draftless.engine.build import begin_building\n"
        "begin_building()\ntime.sleep(0.3)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
    folder = tmp_path / "cache" / "native"
    deadline = time.monotonic() + 20
    while not (found := [*folder.glob("*.so")]) and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [one.read_text() for one in found] == ["whole"]
    while len([*folder.iterdir()]) > 1 and time.monotonic() < deadline:
        time.sleep(0.05)
    assert [*folder.iterdir()] == found


def test_two_processes_at_once(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The slow compiler writes half, waits, and writes the rest: no one may see the half."""
    text = 'while [ "$1" != -o ]; do shift; done\nprintf half > "$2"\nsleep 0.4\nprintf " whole" >> "$2"'
    monkeypatch.setenv("CXX", program(tmp_path / "slow", text))
    code = "from draftless.engine.build import built\nprint(built('forward.cpp').read_text())"
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
