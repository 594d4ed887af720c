"""Runs one program and its test inside the sandbox. `sandbox.py` starts it as `python -I -c TEXT`.

Standard input brings one JSON object: `program`, `test`, `token` and the limits. If both run to
their ends, the token is the answer on what was standard output; anything else is a reason.
"""

from __future__ import annotations

import json
import os
import sys
from pathlib import Path
from typing import Any

_NOBODY = 65534
# Audit events that no solution of a puzzle needs; the hook cannot be taken away again.
_REFUSED = (
    "ctypes.", "fcntl.", "gc.get_objects", "gc.get_referrers", "os.chdir", "os.chflags", "os.chmod",
    "os.chown", "os.exec", "os.fork", "os.kill", "os.link", "os.mkdir", "os.posix_spawn", "os.remove",
    "os.rename", "os.rmdir", "os.spawn", "os.startfile", "os.symlink", "os.system", "os.truncate",
    "os.utime", "pty.", "resource.", "shutil.", "signal.pthread_kill", "socket.", "subprocess.",
    "syslog.", "webbrowser.",
)  # fmt: skip
_WRITES = os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND


def main() -> None:
    """Read the task, give up what is not needed, run it and answer."""
    task = json.loads(sys.stdin.buffer.read())
    answer = os.dup(1)
    nothing = os.open(os.devnull, os.O_RDWR)
    for stream in (0, 1, 2):
        os.dup2(nothing, stream)
    _become_nobody()
    _limit(task)
    _refuse()
    names: dict[str, Any] = {"__name__": "program"}
    try:
        exec(compile(task["program"], "program.py", "exec"), names)
        exec(compile(task["test"], "test.py", "exec"), names)
        text = str(task["token"])
    except BaseException as error:  # noqa: BLE001 - SystemExit and KeyboardInterrupt fail, too
        text = type(error).__name__[:100]
    os.write(answer, text.encode("ascii", "replace"))
    os._exit(0)  # no exit handlers and no waiting for threads of the program


def _become_nobody() -> None:
    """Root gives up its rights, if the library can still be imported then."""
    library = Path(os.__file__).resolve()
    if os.geteuid() != 0 or not all(p.stat().st_mode & 0o001 for p in library.parents):
        return
    try:
        os.setgroups([])
        os.setgid(_NOBODY)
        os.setuid(_NOBODY)
    except OSError:  # root of a user namespace has nobody else to become
        return


def _limit(task: dict[str, Any]) -> None:
    import resource

    limits = {
        "RLIMIT_CPU": task["cpu_s"],
        "RLIMIT_AS": task["memory_bytes"],
        "RLIMIT_FSIZE": task["file_bytes"],
        "RLIMIT_NOFILE": 64,
        "RLIMIT_CORE": 0,
        "RLIMIT_NPROC": 0,  # no new process or thread; root is exempt, hence the hook
    }
    for name, value in limits.items():
        if hasattr(resource, name):
            _, most = resource.getrlimit(getattr(resource, name))
            value = value if most == resource.RLIM_INFINITY else min(value, most)
            resource.setrlimit(getattr(resource, name), (value, value))


def _refuse() -> None:
    home = os.path.realpath(Path.cwd()) + os.sep

    def hook(event: str, arguments: tuple[Any, ...]) -> None:
        if event.startswith(_REFUSED):
            raise PermissionError(f"{event} is refused")
        if event == "open" and arguments[2] & _WRITES:
            path = arguments[0]
            if isinstance(path, int) or not os.path.realpath(os.fsdecode(path)).startswith(home):
                raise PermissionError("writing outside the working folder is refused")

    sys.addaudithook(hook)


if __name__ == "__main__":
    main()
