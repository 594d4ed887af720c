"""The run on real models: rows, resuming, peers that die; with peers that know arithmetic only."""

from __future__ import annotations

import argparse
import contextlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from real.peers import PLAIN, PeerCommand, PeerError, Peers, Setting, peer_commands
from real.rows import RealRow, read_rows, read_sessions
from real.suites import FILES, LIMITS, load_suite

from draftless import embedded_model_path
from draftless.errors import ConfigError, InputError
from real import run

FAKE = Path(__file__).parents[1] / "support" / "fake_peer.py"
ROOT = Path(__file__).parents[2]


@pytest.fixture
def data(tmp_path: Path) -> Path:
    """A folder with six questions of Spec-Bench and two of MT-Bench."""
    folder = tmp_path / "data"
    folder.mkdir()
    questions = [
        {"question_id": n, "category": name, "turns": [f"count to {n}", "and back"]}
        for n, name in enumerate(["qa", "qa", "qa", "rag", "rag", "math"], start=1)
    ]
    for suite in ("spec_bench", "mt_bench"):
        text = "\n".join(json.dumps(one) for one in questions)
        (folder / f"{suite}_question.jsonl").write_text(text)
    return folder


def arguments(data: Path, output: Path, **changed: Any) -> argparse.Namespace:
    """What the command line would give."""
    values: dict[str, Any] = {
        "model": embedded_model_path(), "suite": "spec-bench", "data": data, "limit": None,
        "methods": None, "samplings": "0", "max_new_tokens": 5, "threads": 1, "minutes": None,
        "seed": 0, "dtype": None, "eager": True, "ngram_modes": "", "peers": data / "none",
        "gguf": None, "output": output,
    }  # fmt: skip
    return argparse.Namespace(**{**values, **changed})


def fakes(log: Path, *, other: tuple[str, ...] = ()) -> list[PeerCommand]:
    """Two processes, one of ours and another's with options."""
    python = (sys.executable, str(FAKE))
    return [
        PeerCommand("ours", ("none", "auto"), (*python, f"{log}-ours")),
        PeerCommand("other", ("transformers",), (*python, f"{log}-other", *other)),
    ]


@pytest.fixture
def as_peers(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Sets the processes that a run starts."""

    def use(commands: list[PeerCommand]) -> None:
        monkeypatch.setattr(run, "peer_commands", lambda _: commands)

    yield use


def asked(log: Path) -> list[tuple[str, int]]:
    """Method and tokens of the requests that a fake got, those that warm up apart."""
    requests = [json.loads(line) for line in log.read_text().splitlines()]
    return [
        (one["method"], one["seed"])
        for one in requests
        if one["max_new_tokens"] != run.WARM_UP_TOKENS
    ]


def test_every_method_answers_every_question_once(
    data: Path, tmp_path: Path, as_peers: Any
) -> None:
    as_peers(fakes(tmp_path / "log"))
    out = tmp_path / "out"
    assert run.run(arguments(data, out, samplings="0,0.7:0.95", limit=4)) == 0
    rows = read_rows(out)
    assert len(rows) == 4 * 2 * 3
    assert {row.error for row in rows.values()} == {None}
    assert {row.sampling for row in rows.values()} == {"greedy", "T=0.7 top-p=0.95"}
    assert [row.question_id for row in list(rows.values())[:18:6]] == ["1", "4", "6"]  # in turn
    starts = [one.method for one in rows.values()][::3]
    assert set(starts) == {"none", "auto", "transformers"}  # the order rotates
    by_question = {}
    for row in rows.values():
        by_question.setdefault(row.question_id, set()).add(tuple(row.token_ids))
    assert all(len(ids) == 1 for ids in by_question.values())  # equal prompts for all
    (session,) = read_sessions(out)
    assert session["peers"] == {"ours": "fake 1", "other": "fake 1"}
    assert session["commit"] and session["cpu"] and session["options"]["threads"] == 1


def test_a_run_goes_on_where_it_was_and_repeats_nothing(
    data: Path, tmp_path: Path, as_peers: Any
) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    as_peers(fakes(log))
    run.run(arguments(data, out, limit=2))
    before = asked(log.with_name("log-ours"))
    assert len(before) == 4
    run.run(arguments(data, out, limit=2))
    assert asked(log.with_name("log-ours")) == before
    run.run(arguments(data, out))
    assert len(asked(log.with_name("log-ours"))) == 12
    assert len(set(read_rows(out))) == 18 == len((out / "rows.jsonl").read_text().splitlines())


def test_other_options_do_not_mix(data: Path, tmp_path: Path, as_peers: Any) -> None:
    as_peers(fakes(tmp_path / "log"))
    run.run(arguments(data, tmp_path / "out", limit=1))
    for changed in ({"threads": 2}, {"max_new_tokens": 9}, {"dtype": "float32"}, {"eager": False}):
        with pytest.raises(ConfigError, match="was measured with"):
            run.run(arguments(data, tmp_path / "out", limit=2, **changed))


def test_a_peer_that_dies_leaves_a_row_and_comes_back(
    data: Path, tmp_path: Path, as_peers: Any
) -> None:
    log, out = tmp_path / "log", tmp_path / "out"
    as_peers(fakes(log, other=("--die-at", "3")))  # warm-up, one answer, and then
    assert run.run(arguments(data, out)) == 0
    rows = read_rows(out)
    failed = [row for row in rows.values() if row.error]
    assert len(rows) == 18
    assert [row.method for row in failed] == ["transformers"]
    assert "exit code 7" in failed[0].error and not failed[0].token_ids
    run.run(arguments(data, out))  # what failed is measured again
    assert not [row for row in read_rows(out).values() if row.error]


def test_a_peer_that_always_dies_is_given_up_and_others_go_on(
    data: Path, tmp_path: Path, as_peers: Any
) -> None:
    command = fakes(tmp_path / "log")
    command[1] = PeerCommand(
        "other", ("transformers",), (sys.executable, "-c", "raise SystemExit(3)")
    )
    as_peers(command)
    assert run.run(arguments(data, tmp_path / "out")) == 0
    rows = read_rows(tmp_path / "out").values()
    errors = [row.error for row in rows if row.error]
    assert len(errors) == 6 and "died 3 times" in errors[-1]
    assert sum(row.error is None for row in rows) == 12


def test_a_request_that_fails_is_a_row(data: Path, tmp_path: Path, as_peers: Any) -> None:
    as_peers(fakes(tmp_path / "log", other=("--fail", "transformers")))
    run.run(arguments(data, tmp_path / "out", limit=2))
    errors = [row.error for row in read_rows(tmp_path / "out").values() if row.error]
    assert errors == ["ValueError: no such luck"] * 2


def test_no_question_begins_after_the_time(data: Path, tmp_path: Path, as_peers: Any) -> None:
    as_peers(fakes(tmp_path / "log"))
    assert run.run(arguments(data, tmp_path / "out", minutes=0.0)) == 6
    assert not read_rows(tmp_path / "out")


KILLED = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
import test_real_run as tests
from real import run
run.peer_commands = lambda _: tests.fakes(Path({log!r}), other=("--slow", "0.3"))
run.run(tests.arguments(Path({data!r}), Path({out!r})))
"""


def test_a_killed_run_leaves_whole_rows_and_no_process(
    data: Path, tmp_path: Path, as_peers: Any
) -> None:
    out, log = tmp_path / "out", tmp_path / "log"
    paths = [str(ROOT / name) for name in ("benchmarks", "tests", "tests/benchmarks")]
    code = KILLED.format(paths=paths, log=str(log), data=str(data), out=str(out))
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.DEVNULL)
    wait_until(lambda: len(read_rows(out)) >= 4 or process.poll() is not None)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = read_rows(out)
    assert 4 <= len(found) < 18
    wait_until(lambda: not running(str(log)))
    assert not running(str(log))
    with (out / "rows.jsonl").open("a") as rows:
        rows.write('{"model": "ti')  # what a kill may leave of a row
    as_peers(fakes(log))
    run.run(arguments(data, out))
    text = [
        json.loads(line)
        for line in (out / "rows.jsonl").read_text().splitlines()
        if line[-1] == "}"
    ]
    assert len(text) == len(read_rows(out)) == 18  # and none twice
    assert len(read_sessions(out)) == 2


def wait_until(is_true: Callable[[], bool], seconds: float = 90.0) -> None:
    """Until it is true or the time is up."""
    deadline = time.monotonic() + seconds
    while not is_true() and time.monotonic() < deadline:
        time.sleep(0.05)


def running(word: str) -> list[str]:
    """Command lines of processes that hold a word, this one apart."""
    found = []
    for file in Path("/proc").glob("[0-9]*/cmdline"):
        with contextlib.suppress(OSError):
            line = file.read_text().replace("\0", " ")
            found += [line] if word in line and int(file.parent.name) != os.getpid() else []
    return found


def test_ours_and_transformers_answer_on_the_embedded_model(data: Path, tmp_path: Path) -> None:
    methods = "none,prompt-lookup,transformers,transformers prompt-lookup"
    out = tmp_path / "out"
    chosen = arguments(
        data, out, suite="mt-bench", limit=1, methods=methods, dtype="float32",
        samplings="0,0.7:0.95", max_new_tokens=12,
    )  # fmt: skip
    assert run.run(chosen) == 0
    rows = {(row.sampling, row.method): row for row in read_rows(out).values()}
    assert len(rows) == 8 and {row.error for row in rows.values()} == {None}
    greedy = [row.token_ids for (sampling, _), row in rows.items() if sampling == "greedy"]
    assert len(greedy) == 4 and all(ids == greedy[0] for ids in greedy) and greedy[0]
    sampled = [rows["T=0.7 top-p=0.95", name] for name in ("none", "prompt-lookup")]
    assert sampled[0].token_ids == sampled[1].token_ids
    for row in rows.values():
        assert 0 < row.prefill_s < row.wall_s and row.peak_memory_bytes > 2**26
        assert row.wall_s == pytest.approx(row.prefill_s + row.decode_s, abs=1e-4)
        assert row.load_s > 0 and row.steps <= len(row.token_ids)
    assert rows["greedy", "none"].steps == len(greedy[0])
    (prompt,) = [json.loads(line) for line in (out / "prompts.jsonl").read_text().splitlines()]
    assert prompt["first_answer"]  # the second turn is asked, after the answer to the first


def test_second_turns_hold_the_first_answer(data: Path, tmp_path: Path, as_peers: Any) -> None:
    as_peers(fakes(tmp_path / "log"))
    out = tmp_path / "out"
    run.run(arguments(data, out, suite="mt-bench", limit=2))
    prompts = run.Prompts(embedded_model_path(), out)
    for line in (out / "prompts.jsonl").read_text().splitlines():
        one = json.loads(line)
        text = prompts.text(one["ids"])
        assert f"count to {one['question_id']}" in text and text.endswith("and back")
        assert one["first_answer"] and one["first_answer"] in text


def test_a_missing_file_is_named_with_its_source(tmp_path: Path) -> None:
    for suite, names in FILES.items():
        with pytest.raises(InputError, match=rf"{names[0]}.*https://"):
            load_suite(suite, tmp_path)
    with pytest.raises(InputError, match="must be one of"):
        load_suite("other", tmp_path)


def test_suites_have_the_numbers_that_are_asked_for(tmp_path: Path) -> None:
    categories = [f"c{number}" for number in range(13)]
    questions = [
        {"question_id": f"{name}-{n}", "category": name, "turns": ["a", "b"]}
        for name in categories
        for n in range(12)
    ]
    file = tmp_path / "eval" / "spec_bench_question.jsonl"
    file.parent.mkdir()
    file.write_text("\n".join(json.dumps(one) for one in questions))
    found = load_suite("spec-bench", tmp_path)
    assert len(found) == LIMITS["spec-bench"] == 130
    assert {
        name: sum(one.category == name for one in found) for name in categories
    } == dict.fromkeys(categories, 10)


def test_methods_that_are_unknown_or_not_there(tmp_path: Path) -> None:
    setting = Setting(embedded_model_path(), tmp_path, tmp_path)
    commands, left_out = run.chosen_peers(setting, None)
    assert [command.name for command in commands] == ["ours", "transformers"]
    assert {"llama.cpp bf16", "llama.cpp 4-bit ngram-simple", "openvino"} <= set(left_out)
    assert all("make peers" in reason for reason in left_out.values())
    commands, _ = run.chosen_peers(setting, ["recycling"])
    assert [command.methods for command in commands] == [("none", "recycling")]
    with pytest.raises(ConfigError, match="unknown method nome"):
        run.chosen_peers(setting, ["nome"])
    assert set(PLAIN) <= {method for one in peer_commands(setting) for method in one.methods}


def test_samplings() -> None:
    assert [one.name for one in run.parse_samplings("0,0.7:0.95,1")] == [
        "greedy", "T=0.7 top-p=0.95", "T=1",
    ]  # fmt: skip
    with pytest.raises(ConfigError, match="'warm'"):
        run.parse_samplings("0,warm")


def test_a_peer_that_is_stopped_has_no_children(tmp_path: Path) -> None:
    word = f"child-of-{tmp_path.name}"
    code = (
        "import subprocess, sys; subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)', "
        f"{word!r}]); print('{{\"ready\": true}}', flush=True); sys.stdin.read()"
    )
    with Peers([PeerCommand("p", ("m",), (sys.executable, "-c", code))], tmp_path) as peers:
        peers.start(lambda _, error: pytest.fail(str(error)))
        assert len(running(word)) == 2
    wait_until(lambda: not running(word), seconds=20)
    assert not running(word)


def test_a_peer_that_says_nonsense_is_dead(tmp_path: Path) -> None:
    command = PeerCommand("p", ("m",), (sys.executable, "-c", "print('hello')"))
    with Peers([command], tmp_path) as peers, pytest.raises(PeerError, match="died"):
        peers.by_method["m"].ask({})


def test_progress_names_failures() -> None:
    good = RealRow("m", "s", "qa", "1", "greedy", "none", token_ids=[1, 2, 3], wall_s=2.0)
    bad = RealRow("m", "s", "qa", "1", "greedy", "auto", error="no")
    assert run.progress_line(1, 2, [good, bad]) == "1/2 qa 1 greedy: none 1.5, auto failed"
