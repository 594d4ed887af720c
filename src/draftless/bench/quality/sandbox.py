"""Programs that a model wrote, run in a process of their own under limits.

**A limit, not a security boundary.** It stops what models write by accident: endless loops, memory
and process floods, deleted files, network calls, an `exit` before the tests. The program shares a
kernel with you, may read your files, and somebody who means harm can get out or forge the answer.
Run models that you do not trust in a virtual machine.
"""

from __future__ import annotations

import contextlib
import json
import os
import secrets
import selectors
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from functools import lru_cache
from pathlib import Path

from draftless.errors import ConfigError

_MAX_ANSWER_BYTES = 1024
_END_S = 10.0  # for a killed process to free its memory
_CHILD = Path(__file__).with_name("sandbox_child.py")
# Namespaces without network and with processes of their own, which end with the first one.
_NAMESPACES = (
    ("--net", "--pid", "--fork", "--kill-child"),
    ("--user", "--map-root-user", "--net", "--pid", "--fork", "--kill-child"),
)


@dataclass(frozen=True, slots=True)
class Limits:
    """What a program may use.

    Attributes:
        wall_s: seconds by the clock.
        cpu_s: whole seconds of processor time.
        memory_bytes: of address space.
        file_bytes: of the largest file.
    """

    wall_s: float = 30.0
    cpu_s: int = 5
    memory_bytes: int = 1 << 29
    file_bytes: int = 1 << 20


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of a program.

    Attributes:
        passed: program and test ran to their ends.
        reason: `passed`, the name of the exception, `timeout` or `no answer` (killed, crashed, or
            it ended itself).
    """

    passed: bool
    reason: str


def run_program(program: str, test: str, limits: Limits | None = None) -> Outcome:
    """Run Python text, and a test of it in the same names.

    Raises:
        ConfigError: programs cannot be run on this machine.
    """
    return _run(namespaces(), program, test, limits or Limits())


@lru_cache
def namespaces() -> tuple[str, ...]:
    """The command that takes away network and processes; empty where the system does not permit it.

    Raises:
        ConfigError: not even a harmless program runs (no POSIX system, for example).
    """
    unshare = shutil.which("unshare")
    commands = [(unshare, *options) for options in _NAMESPACES] if unshare else []
    for command in (*commands, ()):
        try:
            outcome = _run(command, "import math, random, typing", "", Limits())
        except OSError:
            continue
        if outcome.passed:
            return command
    raise ConfigError(
        "programs of the model cannot be run under limits on this machine (Linux or macOS is "
        "needed); leave out --run-code"
    )


def _run(command: Sequence[str], program: str, test: str, limits: Limits) -> Outcome:
    token = secrets.token_hex(16)
    task = {"program": program, "test": test, "token": token, **asdict(limits)}
    with tempfile.TemporaryDirectory(prefix="draftless-", ignore_cleanup_errors=True) as folder:
        Path(folder).chmod(0o777)  # root becomes nobody before it runs anything
        process = subprocess.Popen(
            [*command, sys.executable, "-I", "-B", "-c", _CHILD.read_text(encoding="utf-8")],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            cwd=folder,
            env={"PATH": os.defpath, "PYTHONHASHSEED": "0"},
            start_new_session=True,
        )
        try:
            answer = _exchange(process, json.dumps(task).encode(), limits.wall_s)
        finally:
            _end(process)
    if answer is None:
        return Outcome(False, "timeout")
    if secrets.compare_digest(answer, token.encode()):
        return Outcome(True, "passed")
    name = answer.decode("ascii", "replace")
    return Outcome(False, name[:40] if name.isidentifier() else "no answer")


def _exchange(process: subprocess.Popen[bytes], task: bytes, wall_s: float) -> bytes | None:
    """Hand over the task and read the answer; None if the time is up."""
    assert process.stdin is not None
    assert process.stdout is not None
    deadline = time.monotonic() + wall_s
    with contextlib.suppress(BrokenPipeError):  # the process did not start; then it has no answer
        process.stdin.write(task)
        process.stdin.close()
    answer = b""
    with selectors.DefaultSelector() as selector:
        selector.register(process.stdout, selectors.EVENT_READ)
        while len(answer) <= _MAX_ANSWER_BYTES:
            if not selector.select(max(0.0, deadline - time.monotonic())):
                return None
            chunk = os.read(process.stdout.fileno(), _MAX_ANSWER_BYTES)
            if not chunk:
                break
            answer += chunk
    return answer


def _end(process: subprocess.Popen[bytes]) -> None:
    """Kill what is left of a program and wait until it is gone.

    The first process of a namespace ends after all others in it, and `unshare`, its parent, after
    that. So `unshare` is waited for; killed together with it, it would be gone too early.
    """
    children = _children(process.pid)
    for child in children:
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.kill(child, signal.SIGKILL)
    if children:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_END_S)
    with contextlib.suppress(ProcessLookupError, PermissionError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with contextlib.suppress(BrokenPipeError):
                pipe.close()


def _children(process_id: int) -> list[int]:
    """Of a process that was not waited for; none where the system does not list them."""
    try:
        text = Path(f"/proc/{process_id}/task/{process_id}/children").read_text(encoding="ascii")
    except OSError:
        return []
    return [int(child) for child in text.split()]
