"""The methods of the benchmark, and the processes that answer for them."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ADAPTERS = Path(__file__).parents[1] / "peers"
OURS = ("none", "auto", "prompt-lookup", "recycling")
STOCK = ("transformers", "transformers prompt-lookup")
PLAIN = ("none", "transformers", "llama.cpp bf16", "openvino")
"""Autoregressive loops on the same weights: a speed-up is over the fastest of them."""

MODES_DEFAULT = "ngram-simple"
"""Of llama.cpp's n-gram modes; `peers/llama_cpp.py` has their names."""

MOST_DEATHS = 3
"""A peer that has died so often is not started again."""

Request = Mapping[str, Any]


class PeerError(Exception):
    """A peer could not be started, died, or failed at a request."""


@dataclass(frozen=True, slots=True)
class Setting:
    """What the command lines of all peers of a model are made from.

    Attributes:
        model: checkpoint folder; its name is the model's.
        peers: folder that `setup.sh` made.
        gguf: folder with the GGUF files `NAME.gguf` and `NAME-bf16.gguf`.
        threads: of every peer.
        dtype: of the torch peers; None is the checkpoint's.
        is_eager: do not compile our forward pass.
        ngram_modes: of llama.cpp, each a method of its own.
    """

    model: Path
    peers: Path
    gguf: Path
    threads: int = 2
    dtype: str | None = None
    is_eager: bool = False
    ngram_modes: Sequence[str] = (MODES_DEFAULT,)


@dataclass(frozen=True, slots=True)
class PeerCommand:
    """A process and the methods that it answers for.

    Attributes:
        name: of the process.
        methods: names in rows.
        command: argument list.
        needed: files without which it is left out.
    """

    name: str
    methods: tuple[str, ...]
    command: tuple[str, ...]
    needed: tuple[Path, ...] = ()

    @property
    def missing(self) -> Path | None:
        """The first file that is not there."""
        return next((one for one in self.needed if not one.exists()), None)


def peer_commands(setting: Setting) -> list[PeerCommand]:
    """All peers of a model, those too whose files are missing."""
    threads = ("--threads", str(setting.threads))
    name = setting.model.name
    torch_options = ["--model", str(setting.model), *threads]
    torch_options += ["--dtype", setting.dtype] if setting.dtype else []
    ours = [*_adapter("ours"), *torch_options, *(["--eager"] if setting.is_eager else [])]
    found = [
        PeerCommand("ours", OURS, tuple(ours)),
        PeerCommand("transformers", STOCK, (*_adapter("stock"), *torch_options)),
    ]
    server = setting.peers / "llama-server"
    for weights, file in (("bf16", f"{name}-bf16.gguf"), ("4-bit", f"{name}.gguf")):
        gguf = setting.gguf / file
        for mode in ("none", *setting.ngram_modes):
            method = f"llama.cpp {weights}" + ("" if mode == "none" else f" {mode}")
            options = ("--model", str(gguf), "--server", str(server), "--mode", mode, *threads)
            command = (*_adapter("llama_cpp"), *options)
            found.append(PeerCommand(method, (method,), command, (server, gguf)))
    python = setting.peers / "openvino" / "bin" / "python"
    converted = setting.peers / "openvino-models" / name
    for method, more in (("openvino", ()), ("openvino prompt-lookup", ("--lookup",))):
        own = _adapter("openvino_genai_peer", python)
        command = (*own, "--model", str(converted), *threads, *more)
        found.append(PeerCommand(method, (method,), command, (python, converted)))
    return found


def _adapter(name: str, python: Path | None = None) -> tuple[str, ...]:
    return str(python or sys.executable), str(ADAPTERS / f"{name}.py")


class Peer:
    """One adapter process: started at its first request, again after it has died.

    Args:
        command: of the process.
        log: file for what it prints beside its answers.
    """

    def __init__(self, command: PeerCommand, log: Path) -> None:
        self.command = command
        self.deaths = 0
        self.ready: dict[str, Any] = {}
        self._log = log
        self._process: subprocess.Popen[str] | None = None

    def start(self) -> dict[str, Any]:
        """Load the model if it is not loaded; returns load time, peak memory and version.

        Raises:
            PeerError: it ends before it is ready, or has died too often.
        """
        if self._process is not None:
            return self.ready
        if self.deaths >= MOST_DEATHS:
            raise PeerError(
                f"{self.command.name} died {self.deaths} times and is not started again"
            )
        with self._log.open("ab") as log:
            self._process = subprocess.Popen(
                self.command.command,
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
                start_new_session=True,  # so that its own children end with it
                env={**os.environ, "HF_HUB_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"},
            )
        self.ready = self._read()
        return self.ready

    def ask(self, request: Request) -> dict[str, Any]:
        """One answer of the protocol.

        Raises:
            PeerError: the process died, or says that the request failed.
        """
        self.start()
        process = self._process
        assert process is not None and process.stdin is not None
        try:
            process.stdin.write(json.dumps(request) + "\n")
            process.stdin.flush()
        except OSError as error:
            raise self._dead() from error
        answer = self._read()
        if "error" in answer:
            raise PeerError(answer["error"])
        return answer

    def stop(self) -> None:
        """End the process and all that it has started."""
        process, self._process = self._process, None
        if process is None:
            return
        assert process.stdin is not None and process.stdout is not None
        with contextlib.suppress(OSError):
            process.stdin.close()  # an adapter ends by itself and clears up
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(10)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        process.stdout.close()

    def _read(self) -> dict[str, Any]:
        process = self._process
        assert process is not None and process.stdout is not None
        line = process.stdout.readline()
        try:
            found = json.loads(line)
        except json.JSONDecodeError as error:
            raise self._dead() from error
        assert isinstance(found, dict)
        return found

    def _dead(self) -> PeerError:
        process = self._process
        self.stop()
        self.deaths += 1
        code = process.returncode if process is not None else None
        return PeerError(f"{self.command.name} died with exit code {code}; see {self._log.name}")


class Peers(contextlib.AbstractContextManager["Peers"]):
    """The processes of a run, by method; all end with the block."""

    def __init__(self, commands: Sequence[PeerCommand], logs: Path) -> None:
        self._peers = [
            Peer(command, logs / f"{command.name.replace(' ', '-')}.log") for command in commands
        ]
        self.by_method = {method: peer for peer in self._peers for method in peer.command.methods}

    def start(self, on_error: Callable[[str, PeerError], None]) -> None:
        """Load every model, one after another; a peer that fails is asked again with its rows."""
        for peer in self._peers:
            try:
                peer.start()
            except PeerError as error:
                on_error(peer.command.name, error)

    def versions(self) -> dict[str, str]:
        """What each process says it is."""
        return {one.command.name: str(one.ready.get("version", "")) for one in self._peers}

    def __exit__(self, *_: object) -> None:
        for peer in self._peers:
            peer.stop()
