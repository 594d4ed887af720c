"""Adapter of llama.cpp: a `llama-server` of its own, plain or with one of its n-gram modes.

The server speaks HTTP on a port of this machine. Prompts are ids, its cache of earlier prompts is off,
and its own clocks tell prefill from decoding. `wall_s` is measured here and has the HTTP call in it.
"""

from __future__ import annotations

import argparse
import http.client
import json
import socket
import subprocess
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from protocol import Answer, Answerer, serve, until_eos

# The defaults look for 12 and 24 equal tokens and suit long repeats; these are prompt lookup's sizes.
MODES: dict[str, tuple[str, ...]] = {
    "none": (),
    "ngram-simple": ("--spec-ngram-simple-size-n", "3", "--spec-ngram-simple-size-m", "10"),
    "ngram-map-k": ("--spec-ngram-map-k-size-n", "3", "--spec-ngram-map-k-size-m", "10"),
    "ngram-mod": (
        *("--spec-ngram-mod-n-match", "3"),
        *("--spec-ngram-mod-n-min", "1", "--spec-ngram-mod-n-max", "10"),
    ),
    "ngram-cache": (),
}

START_S = 600.0


class Server:
    """A `llama-server` process that ends with this one."""

    def __init__(self, binary: Path, model: Path, mode: str, threads: int, context: int) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        command = [
            *(str(binary), "--model", str(model), "--host", "127.0.0.1", "--port", str(self.port)),
            *("--threads", str(threads), "--threads-batch", str(threads), "--parallel", "1"),
            *("--ctx-size", str(context), "--cache-ram", "0", "--no-webui", "--offline"),
            *(() if mode == "none" else ("--spec-type", mode)),
            *MODES[mode],
        ]
        self.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
        )
        deadline = time.monotonic() + START_S
        while not self._is_ready():
            if self.process.poll() is not None:
                raise RuntimeError(
                    f"llama-server ended with {self.process.returncode}; run: {' '.join(command)}"
                )
            if time.monotonic() > deadline:
                self.process.kill()
                raise RuntimeError(f"llama-server was not ready after {START_S:.0f} s")
            time.sleep(0.05)

    def _is_ready(self) -> bool:
        try:
            return self._call("GET", "/health", None)[0] == 200
        except OSError:
            return False

    def _call(self, verb: str, path: str, body: Mapping[str, Any] | None) -> tuple[int, Any]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=3600)
        try:
            text = None if body is None else json.dumps(body)
            connection.request(verb, path, text, {"Content-Type": "application/json"})
            response = connection.getresponse()
            return response.status, json.loads(response.read() or b"null")
        finally:
            connection.close()

    def peak_memory(self) -> int:
        """Most bytes that the server has held, the pages of the mapped file included."""
        status = Path(f"/proc/{self.process.pid}/status").read_text(encoding="utf-8")
        line = next(one for one in status.splitlines() if one.startswith("VmHWM:"))
        return int(line.split()[1]) * 1024

    def answer(self, request: Mapping[str, Any]) -> Answer:
        """One completion."""
        begin = time.perf_counter()
        status, found = self._call("POST", "/completion", completion_of(request))
        wall_s = time.perf_counter() - begin
        if status != 200:
            raise RuntimeError(f"llama-server answered {status}: {found}")
        return answer_of(found, wall_s, list(request["eos_token_ids"]))


def completion_of(request: Mapping[str, Any]) -> dict[str, Any]:
    """The same request in llama-server's words; its own penalties and cuts are off."""
    return {
        "prompt": request["ids"],
        "n_predict": request["max_new_tokens"],
        "temperature": request["temperature"],
        "top_p": request["top_p"],
        "top_k": 0,
        "min_p": 0.0,
        "repeat_penalty": 1.0,
        "samplers": ["temperature", "top_p"],  # in the order of `transformers`
        "seed": request["seed"] % 2**32,
        "cache_prompt": False,
        "return_tokens": True,
    }


def answer_of(found: Mapping[str, Any], wall_s: float, eos_token_ids: list[int]) -> Answer:
    """llama-server's answer in the words of the protocol."""
    timings = found["timings"]
    num_tokens = timings["predicted_n"]
    return {
        "token_ids": until_eos(list(found["tokens"]), eos_token_ids),
        "wall_s": wall_s,
        "prefill_s": timings["prompt_ms"] / 1e3,
        "decode_s": timings["predicted_ms"] / 1e3,
        "decode_tokens": num_tokens - 1,
        # A step brings its accepted drafts and one token of the model's own.
        "steps": num_tokens - timings.get("draft_n_accepted", 0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=Path, required=True, help="a GGUF file")
    parser.add_argument("--server", type=Path, required=True, help="the program llama-server")
    parser.add_argument("--mode", choices=MODES, default="none")
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--context", type=int, default=8192)
    args = parser.parse_args()
    started: list[Server] = []

    def load() -> tuple[Answerer, str]:
        server = Server(args.server, args.model, args.mode, args.threads, args.context)
        started.append(server)
        version = args.server.with_name("llama-server.version")
        name = version.read_text(encoding="utf-8").strip() if version.exists() else "unknown"
        return server.answer, f"llama-server of {name}"

    try:
        serve(load, memory=lambda: started[0].peak_memory())
    finally:
        for server in started:
            server.process.kill()
            server.process.wait()


if __name__ == "__main__":
    main()
