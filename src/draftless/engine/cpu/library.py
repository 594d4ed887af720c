"""`native/forward.cpp`: compiled by the system's C++ compiler once for a machine, then taken from the disk."""

from __future__ import annotations

import ctypes
import hashlib
import os
import re
import shutil
import stat
import subprocess
import tempfile
from functools import cache
from pathlib import Path
from typing import Any

from draftless.caches import cache_folder
from draftless.engine.cpu.structures import Request, Step

_FOLDER = Path(__file__).parents[1] / "native"
_FLAGS = ("-O3", "-march=native", "-std=c++17", "-ffp-contract=off", "-pthread", "-fPIC", "-shared")
_WITHOUT_AMX = "-mno-amx-bf16"

_P, _I, _L = ctypes.c_void_p, ctypes.c_int32, ctypes.c_int64
_SIGNATURES: dict[str, tuple[Any, list[Any]]] = {
    "is_usable": (_I, []),
    "set_threads": (None, [_I]),
    "bytes_of_packed": (_L, [_L, _L, _I]),
    "pack_weight": (None, [_P, _L, _L, _L, _I, _L, _P]),
    "new_program": (_P, [_I, _L, ctypes.POINTER(Step), _L]),
    "delete_program": (None, [_P]),
    "run_program": (_I, [_P, ctypes.POINTER(Request)]),
    "move_slots": (None, [_P, _L, _L, _L, _L, _L, _L, _L, _P, _L]),
}


class NoCompiler(Exception):  # noqa: N818 - a fact about the machine
    """There is no C++ compiler, or it refuses the kernels."""


@cache
def library() -> ctypes.CDLL:
    """The kernels.

    Raises:
        NoCompiler: they cannot be compiled here.
    """
    found = _load(())
    if not found.is_usable():  # the CPU has AMX, the system does not allow it
        found = _load((_WITHOUT_AMX,))
    return found


def _load(more_flags: tuple[str, ...]) -> ctypes.CDLL:
    file = _compiled(more_flags)
    try:
        found = ctypes.CDLL(str(file))
    except OSError as error:  # a file system that runs nothing, or a file that is damaged
        raise NoCompiler(f"{file} cannot be loaded: {error}") from error
    for name, (result, arguments) in _SIGNATURES.items():
        function = getattr(found, name)
        function.restype, function.argtypes = result, arguments
    return found


def compiler() -> str | None:
    """The C++ compiler, or None: `$CXX`, else `g++`, else `clang++`."""
    names = [os.environ.get("CXX"), "g++", "clang++"]
    return next((path for path in map(shutil.which, filter(None, names)) if path), None)


def _compiled(more_flags: tuple[str, ...]) -> Path:
    path = compiler()
    if path is None:
        raise NoCompiler("there is no C++ compiler (g++ or clang++)")
    source = _source("forward.cpp", set())
    key = hashlib.sha256(
        "\n".join((source, path, *_FLAGS, *more_flags, _processor())).encode()
    ).hexdigest()[:16]
    for make_folder in (_in_cache, _of_this_user):
        try:
            file = make_folder() / f"forward-{key}.so"
            return file if file.is_file() else _compile(path, source, more_flags, file)
        except OSError:
            continue
    raise NoCompiler(f"the compiled kernels cannot be written to {cache_folder()}")


def _in_cache() -> Path:
    folder = cache_folder() / "native"
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _of_this_user() -> Path:
    """Among the temporary files, where anyone may write: only a folder that is ours alone is trusted."""
    folder = Path(tempfile.gettempdir()) / f"draftless-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not of this user alone")
    return folder


def _compile(path: str, source: str, more_flags: tuple[str, ...], file: Path) -> Path:
    """Compile beside the wanted place and rename, so that no process meets half of a file."""
    with tempfile.TemporaryDirectory(dir=file.parent) as folder:
        text, out = Path(folder, "forward.cpp"), Path(folder, "forward.so")
        text.write_text(source, encoding="utf-8")
        command = [path, *_FLAGS, *more_flags, str(text), "-o", str(out)]
        try:
            done = subprocess.run(command, capture_output=True, text=True, check=False)
        except OSError as error:
            raise NoCompiler(f"{path} cannot be started: {error}") from error
        if done.returncode:
            raise NoCompiler(f"{path} refuses the kernels: {done.stderr.strip()[:400]}")
        out.replace(file)
    return file


def _source(file: str, seen: set[str]) -> str:
    """A file with what it includes of this folder, as one text."""
    if file in seen:
        return ""
    seen.add(file)
    text = (_FOLDER / file).read_text(encoding="utf-8").replace("#pragma once\n", "")
    return re.sub(
        r'^#include "(.+)"$', lambda found: _source(found[1], seen), text, flags=re.MULTILINE
    )


def _processor() -> str:
    """What `-march=native` stands for."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        import platform

        return platform.processor()
    return "\n".join(sorted(set(re.findall(r"^(?:flags|Features|model name)\s*:.*$", text, re.M))))
