"""The C++ of `native/`: compiled by the system's compiler once for a machine, then taken from the disk."""

from __future__ import annotations

import contextlib
import hashlib
import os
import platform
import re
import shutil
import stat
import subprocess
import tempfile
import threading
from collections.abc import Mapping, Sequence
from pathlib import Path

from draftless.caches import CACHE_VARIABLE, cache_folder

_FOLDER = Path(__file__).parent / "native"
_FLAGS = (
    "-O3",
    "-march=native",
    "-std=c++20",
    "-ffp-contract=off",
    "-pthread",
    "-fPIC",
    "-shared",
    "-w",
)

_LOCKS: dict[str, threading.Lock] = {}


class NoCompiler(Exception):  # noqa: N818 - a fact about the machine
    """There is no C++ compiler, or it refuses the code."""


def built(file: str, flags: Sequence[str] = (), given: Mapping[str, str] | None = None) -> Path:
    """The shared library of a C++ file.

    Args:
        file: of `native/`.
        flags: more flags of the compiler.
        given: texts of headers that are no files.

    Raises:
        NoCompiler: there is none, or it refuses the file, or its output can be written nowhere.
    """
    with _LOCKS.setdefault(file, threading.Lock()):  # who comes second takes what the first made
        return _built(file, flags, dict(given or {}))


def begin_building() -> None:
    """Compile the kernels of the forward pass in the background, if this machine has not yet."""
    threading.Thread(target=_try_to_build, daemon=True, name="compile forward.cpp").start()


def _try_to_build() -> None:
    with contextlib.suppress(NoCompiler):  # who needs it is told then
        built("forward.cpp")


def _built(file: str, flags: Sequence[str], given: dict[str, str]) -> Path:
    path = compiler()
    if path is None:
        raise NoCompiler("there is no C++ compiler (g++ or clang++)")
    source = _source(file, given)
    parts = (source, path, *_FLAGS, *flags, processor())
    key = hashlib.sha256("\n".join(parts).encode()).hexdigest()[:16]
    name = f"{Path(file).stem}-{key}.so"
    for make_folder in (_in_cache, _of_this_user):
        try:
            found = make_folder() / name
            return found if found.is_file() else _compile([path, *_FLAGS], flags, source, found)
        except OSError as error:
            reason = error
    raise NoCompiler(f"compiled code cannot be written to {cache_folder()}: {reason}")


def _in_cache() -> Path:
    folder = cache_folder() / "native"
    if folder.is_relative_to(tempfile.gettempdir()) and not os.environ.get(CACHE_VARIABLE):
        raise PermissionError(f"{folder} may be of another user")
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def _of_this_user() -> Path:
    """Among the temporary files, where anyone may write: a folder is trusted if it is of this user alone."""
    folder = Path(tempfile.gettempdir()) / f"draftless-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    found = folder.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise PermissionError(f"{folder} is not of this user alone")
    return folder


def compiler() -> str | None:
    """The C++ compiler, or None: `$CXX`, else `g++`, else `clang++`."""
    names = [os.environ.get("CXX"), "g++", "clang++"]
    return next((path for path in map(shutil.which, filter(None, names)) if path), None)


# A process may end while this runs, and its next start finds what came out; a name appears with a whole file.
_COMPILE = """
folder=$1 file=$2; shift 2
"$@" && mv "$folder/library.so" "$file"
code=$?; rm -rf "$folder"; exit $code
"""


def _compile(command: Sequence[str], flags: Sequence[str], source: str, file: Path) -> Path:
    """Compile beside the wanted place and rename, in a process that outlives this one."""
    folder = Path(tempfile.mkdtemp(dir=file.parent))
    text, out = folder / "source.cpp", folder / "library.so"
    text.write_text(source, encoding="utf-8")
    whole = [*command, str(text), "-o", str(out), *flags]
    done = subprocess.run(
        ["/bin/sh", "-c", _COMPILE, "sh", str(folder), str(file), *whole],
        capture_output=True, text=True, check=False, start_new_session=True,
    )  # fmt: skip
    if done.returncode:
        raise NoCompiler(f"{command[0]} refuses {file.stem}: {done.stderr.strip()[:400]}")
    return file


def _source(file: str, given: dict[str, str]) -> str:
    """A file with what it includes of this folder, as one text; each header once."""
    if file in given:
        text, given[file] = given[file], ""
        return text
    given[file] = ""
    text = (_FOLDER / file).read_text(encoding="utf-8").replace("#pragma once\n", "")
    return re.sub(
        r'^#include "(.+)"$', lambda found: _source(found[1], given), text, flags=re.MULTILINE
    )


def processor() -> str:
    """What `-march=native` stands for."""
    try:
        text = Path("/proc/cpuinfo").read_text(encoding="utf-8")
    except OSError:
        return platform.processor()
    return "\n".join(sorted(set(re.findall(r"^(?:flags|Features|model name)\s*:.*$", text, re.M))))
