"""Decoding beside busy neighbours: tokens per second with none, one and two of them.

    python benchmarks/busy.py --model models/smollm2-135m --output benchmarks/results/busy.json

A neighbour is a process that computes without a pause, of this program's own, ended with the
measurement and by itself after `--seconds`. Thread counts, neighbours and methods take turns within
every repeat, so that other load hits all alike.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from itertools import product
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))

from real.peers import Peer, Setting, peer_commands
from real.run import Prompts

from draftless.bench.methods import Sampling
from draftless.jsonl import write_json
from draftless.provenance import collect_provenance

NEIGHBOUR = """
import sys, time
end = time.monotonic() + float(sys.argv[1])
while time.monotonic() < end:
    sum(range(10_000))
"""
PROMPT = "Write a short story about a lighthouse keeper who finds a map."
METHODS = ("none", "auto")

Key = tuple[int, int, str]  # threads, neighbours, method


@contextmanager
def neighbours(number: int, seconds: float) -> Iterator[None]:
    """So many busy processes while the block runs, each for at most `seconds`."""
    command = [sys.executable, "-c", NEIGHBOUR, str(seconds)]
    busy = [subprocess.Popen(command) for _ in range(number)]
    try:
        yield
    finally:
        for one in busy:
            one.kill()
        for one in busy:
            one.wait()


def measure(
    peers: Mapping[int, Peer], request: Mapping[str, Any], args: argparse.Namespace
) -> dict[Key, list[float]]:
    """Tokens per second of decoding, prefill left out, of every repeat."""
    found: dict[Key, list[float]] = {}
    for threads, method in product(
        peers, METHODS
    ):  # the first call pays for what later ones do not
        peers[threads].ask({**request, "method": method})
    places: Sequence[Key] = list(product(peers, args.neighbours, METHODS))
    for _ in range(args.repeats):
        for threads, number, method in places:
            with neighbours(number, args.seconds):
                time.sleep(args.settle)
                answer = peers[threads].ask({**request, "method": method})
            rate = answer["decode_tokens"] / answer["decode_s"]
            found.setdefault((threads, number, method), []).append(rate)
    return found


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--neighbours", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--seconds", type=float, default=300.0, help="a neighbour's longest life")
    parser.add_argument("--settle", type=float, default=0.3, help="seconds before the clock starts")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    return parser.parse_args()


def main() -> None:
    args = arguments()
    with tempfile.TemporaryDirectory() as folder:
        logs, peers = Path(folder), {}
        prompts = Prompts(args.model, logs)
        ids = prompts.encode([{"role": "user", "content": PROMPT}])
        request = prompts.request("none", ids, Sampling(), args.tokens, 0)
        try:
            for threads in args.threads:
                setting = Setting(
                    args.model.resolve(), logs, logs, threads=threads, is_eager=args.eager
                )
                peers[threads] = Peer(peer_commands(setting)[0], logs / f"{threads}.log")
            found = measure(peers, request, args)
        finally:
            for peer in peers.values():
                peer.stop()
    rows = [
        {
            "threads": threads,
            "neighbours": number,
            "method": method,
            "tokens_per_second": round(statistics.median(rates), 2),
            "all": [round(rate, 2) for rate in rates],
        }
        for (threads, number, method), rates in found.items()
    ]
    for row in rows:
        print(
            f"{row['threads']} threads, {row['neighbours']} neighbours, {row['method']:5} "
            f"{row['tokens_per_second']:7.1f} tokens/s"
        )
    environment = {name: os.environ.get(name) for name in ("OMP_WAIT_POLICY", "GOMP_SPINCOUNT")}
    args.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"model": args.model.name, "provenance": collect_provenance(), "rows": rows}
    write_json(args.output, {**result, "environment": environment})


if __name__ == "__main__":
    main()
