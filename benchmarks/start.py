"""The first answer of a fresh process: seconds, silence and memory, on a first and a second run.

    python benchmarks/start.py --model models/smollm2-135m --output benchmarks/results/start/NAME.json

Runs `draftless generate MODEL --prompt Hi --max-new-tokens 16` twice with compiler and Draftless caches
of their own, empty at first. Silence is the longest time without a byte on stdout or stderr, the
begin and the end of the process included. Peak memory is that of the process and its children.
"""

from __future__ import annotations

import argparse
import os
import selectors
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from draftless.jsonl import write_json
from draftless.provenance import collect_provenance

CACHES = ("TORCHINDUCTOR_CACHE_DIR", "DRAFTLESS_CACHE")


def watch(command: Sequence[str], environment: Mapping[str, str]) -> dict[str, Any]:
    """Run a command and note when it writes.

    Returns:
        `seconds` until it ended, `first_text_s` until its first byte on stdout (None: it wrote
        nothing), `longest_silence_s` and `silence_at_s` where that began, `peak_rss_bytes`,
        `exit_code`, and `output`, what it wrote on stdout.
    """
    begin = last = time.perf_counter()
    first: float | None = None
    longest, longest_at, text = 0.0, 0.0, b""
    with selectors.DefaultSelector() as ready:
        process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=environment, bufsize=0
        )
        assert process.stdout is not None and process.stderr is not None
        for stream in (process.stdout, process.stderr):
            ready.register(stream, selectors.EVENT_READ)
        while ready.get_map():
            for key, _ in ready.select():
                data = os.read(key.fd, 65536)
                now = time.perf_counter()
                if now - last > longest:
                    longest, longest_at = now - last, last - begin
                last = now
                if not data:
                    ready.unregister(key.fileobj)
                elif key.fileobj is process.stdout:
                    first = first or now - begin
                    text += data
    _, status, usage = os.wait4(process.pid, 0)
    process.returncode = os.waitstatus_to_exitcode(status)  # the object would wait for it, too
    process.stdout.close()
    process.stderr.close()
    return {
        "seconds": round(time.perf_counter() - begin, 3),
        "first_text_s": None if first is None else round(first, 3),
        "longest_silence_s": round(longest, 3),
        "silence_at_s": round(longest_at, 3),
        "peak_rss_bytes": usage.ru_maxrss * 1024,
        "exit_code": process.returncode,
        "output": text.decode(errors="replace"),
    }


def weight_bytes(model: Path) -> int:
    """Bytes of the checkpoint's weights; a head that is tied and saved twice counts once."""
    config_is_tied = '"tie_word_embeddings": true' in (model / "config.json").read_text("utf-8")
    files = list(model.glob("*.safetensors"))
    total = sum(file.stat().st_size for file in files)
    if config_is_tied:
        total -= sum(_head_bytes(file) for file in files)
    return total


def _head_bytes(file: Path) -> int:
    from safetensors import safe_open

    with safe_open(file, framework="pt") as tensors:
        if "lm_head.weight" not in tensors.keys():  # noqa: SIM118 - no mapping
            return 0
        return int(tensors.get_tensor("lm_head.weight").nbytes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("options", nargs="*", help="more options of generate, after --")
    args = parser.parse_args()
    generate = [sys.executable, "-m", "draftless", "generate", str(args.model)]
    command = [*generate, "--prompt", "Hi", "--max-new-tokens", "16", *args.options]
    weights, runs = weight_bytes(args.model), {}
    with tempfile.TemporaryDirectory() as folder:
        environment = {
            **os.environ,
            **{name: str(Path(folder) / name) for name in CACHES},
            "PYTHONUNBUFFERED": "1",
            "HF_HUB_OFFLINE": "1",
            "OMP_NUM_THREADS": str(args.threads),
        }
        for name in ("first", "second"):
            run = watch(command, environment)
            run["memory_over_weights"] = round(run["peak_rss_bytes"] / weights, 3)
            runs[name] = run
            print(
                f"{name}: {run['seconds']:.1f} s, first text after {run['first_text_s']} s, longest "
                f"silence {run['longest_silence_s']:.1f} s at {run['silence_at_s']:.1f} s, peak "
                f"{run['peak_rss_bytes'] / 2**20:.0f} MiB, {run['memory_over_weights']:.2f} of the weights"
            )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    facts = {"model": args.model.name, "options": args.options, "weight_bytes": weights}
    write_json(args.output, {**facts, "runs": runs, "provenance": collect_provenance()})
    if any(run["exit_code"] for run in runs.values()):
        sys.exit("draftless generate failed; its exit code and output are in the result")


if __name__ == "__main__":
    main()
