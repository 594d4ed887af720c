"""Programs of a model under limits: what harms is stopped, what does not finish has not passed."""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from draftless.bench.quality import sandbox
from draftless.bench.quality.sandbox import Limits, Outcome, run_program
from draftless.errors import ConfigError

if sys.platform == "win32":
    pytest.skip("needs POSIX", allow_module_level=True)

find_namespaces = sandbox.namespaces.__wrapped__
QUICK = Limits(wall_s=60.0, cpu_s=1, memory_bytes=200 << 20, file_bytes=1 << 16)


@pytest.fixture(params=["namespaces", "plain"], autouse=True)
def isolation(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Each test with what this system offers, and with the least that every system has."""
    if request.param == "plain":
        monkeypatch.setattr(sandbox, "namespaces", tuple)
    elif not sandbox.namespaces():
        pytest.skip("this system permits no namespaces")
    yield request.param


def run(program: str, test: str = "", limits: Limits = QUICK) -> Outcome:
    return run_program(program, test, limits)


def test_a_program_passes_if_its_test_returns() -> None:
    assert run("def f(x): return x + 1", "assert f(1) == 2") == Outcome(True, "passed")
    assert run("def f(x): return x + 2", "assert f(1) == 2") == Outcome(False, "AssertionError")


@pytest.mark.parametrize(
    ("program", "reason"),
    [
        ("def f(:", "SyntaxError"),
        ("1 / 0", "ZeroDivisionError"),
        ("exit(0)", "SystemExit"),
        ("import sys; sys.exit(0)", "SystemExit"),
        ("raise KeyboardInterrupt", "KeyboardInterrupt"),
        ("import os; os._exit(0)", "no answer"),
        ("def f(): return f()\nf()", "RecursionError"),
        ("raise type('passed :)', (Exception,), {})", "no answer"),
    ],
)
def test_what_ends_early_has_not_passed(program: str, reason: str) -> None:
    assert run(program, "assert True") == Outcome(False, reason)


def test_words_on_the_outputs_are_no_answer() -> None:
    program = (
        "import os, sys\nfor n in (1, 2): os.write(n, b'passed')\nprint('passed')\nos._exit(0)"
    )
    assert run(program) == Outcome(False, "no answer")


def test_a_busy_loop_ends_at_the_processor_limit() -> None:
    assert run("while True: pass") == Outcome(False, "no answer")


def test_a_sleeper_ends_at_the_clock() -> None:
    assert run("import time; time.sleep(60)", limits=Limits(wall_s=0.5)) == Outcome(
        False, "timeout"
    )


def test_memory_is_limited() -> None:
    assert run("a = bytearray(1 << 30)") == Outcome(False, "MemoryError")
    assert run("a = bytearray(1 << 20)").passed


def test_processes_are_refused() -> None:
    bomb = (
        "import os, time\n"
        "for _ in range(4):\n"  # at most 16 processes, and each ends soon
        "    os.fork()\n"
        "time.sleep(2)\n"
    )
    for program in (
        bomb,
        "import subprocess; subprocess.run(['true'])",
        "import os; os.system('')",
    ):
        assert run(program) == Outcome(False, "PermissionError")


@pytest.mark.skipif(not Path("/proc/self/cwd").exists(), reason="looks into /proc")
def test_after_a_timeout_no_process_is_left(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    # Much memory, so that dying takes a while: who does not wait for it sees the process.
    program = "import time; a = bytes(1) * (1 << 28); time.sleep(60)"
    assert run(program, limits=Limits(wall_s=1.0)).reason == "timeout"
    places = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            places.append(str((process / "cwd").readlink()))
        except OSError:  # it ended, or it is not ours
            continue
    assert places
    assert not [place for place in places if place.startswith(str(tmp_path))]


def test_files_stay_small_and_inside(tmp_path: Path) -> None:
    mine = tmp_path / "mine"
    mine.write_text("kept")
    tmp_path.chmod(0o777)
    mine.chmod(0o666)
    assert run("open('small', 'w').write('x' * 100)").passed
    assert run("with open('large', 'w') as f: f.write('x' * (1 << 20))") == Outcome(
        False, "OSError"
    )
    for program in (
        f"open({str(mine)!r}, 'w')",
        f"import os; os.remove({str(mine)!r})",
        f"import os; os.rename({str(mine)!r}, 'here')",
        f"import os; os.open({str(tmp_path / 'new')!r}, os.O_CREAT)",
        f"import shutil; shutil.rmtree({str(tmp_path)!r})",
        f"import os; os.chdir('/'); open({str(mine)!r}[1:], 'w')",
    ):
        assert run(program) == Outcome(False, "PermissionError")
    assert [file.name for file in tmp_path.iterdir()] == ["mine"]
    assert mine.read_text() == "kept"


def test_the_working_folder_is_empty_and_goes_away() -> None:
    assert run("import os\nassert os.listdir() == []\nopen('a', 'w').close()").passed
    assert run("import os\nassert os.listdir() == []").passed


def test_a_flood_of_output_is_dropped() -> None:
    assert run("for _ in range(200): print('x' * 100_000)").passed
    flood = "import os\nfor n in range(3, 64):\n    try: os.write(n, b'x' * 60_000)\n    except OSError: pass"
    outcome = run(flood)
    assert not outcome.passed
    assert len(outcome.reason) <= 40


def test_standard_input_is_empty_and_the_environment_is_not_passed_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("DRAFTLESS_SECRET", "s")
    assert run("import sys\nassert sys.stdin.read() == ''").passed
    assert run("import os\nassert 'DRAFTLESS_SECRET' not in os.environ").passed


def test_there_is_no_network() -> None:
    """Nothing is sent: the connection is to a port of this machine on which nobody listens."""
    call = "import socket; socket.create_connection(('127.0.0.1', 9), 1)"
    assert run(call) == Outcome(False, "PermissionError")


def test_a_machine_that_cannot_run_programs_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "_run", lambda *_: Outcome(False, "no answer"))
    with pytest.raises(ConfigError, match="--run-code"):
        find_namespaces()
