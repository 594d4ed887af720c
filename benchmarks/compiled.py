"""What compiling buys and costs on the embedded model: T(W) of each kind of forward, start-up, memory.

    python benchmarks/compiled.py --output benchmarks/results/compiled.json

`cold` loads the model in a process of its own with an empty compiler cache, `warm` once more with the
cache that it left. Times of forwards are medians over interleaved calls, 512 cached tokens.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import torch

from draftless.engine.target import TargetModel
from draftless.engine.threads import use_threads
from draftless.jsonl import write_json
from draftless.layout import chain_parents, tree_layout
from draftless.model import embedded_model_path
from draftless.provenance import collect_provenance

KINDS: dict[str, dict[str, bool]] = {
    "eager": {},
    "compiled": {"compile": True},
    "compiled int8": {"compile": True, "int8": True},
    "compiled strict": {"compile": True, "strict": True},
}
WIDTHS = (1, 2, 4, 8, 16, 32)
CACHED = 512


def forward_ms(repeats: int) -> dict[str, dict[int, float]]:
    """Median milliseconds of each kind at each width."""
    models = {
        name: TargetModel.from_pretrained(embedded_model_path(), **options)
        for name, options in KINDS.items()
    }
    prompt = [3 + index % 5000 for index in range(CACHED)]
    times: dict[str, dict[int, list[float]]] = {name: {} for name in KINDS}
    with torch.inference_mode():
        caches = {name: model.make_cache(1, CACHED + 64) for name, model in models.items()}
        for name, model in models.items():
            model.prefill(caches[name], 0, prompt)
        for repeat in range(repeats + 3):
            for width in WIDTHS:
                layout = tree_layout(chain_parents(width))
                for name, model in models.items():
                    started = time.perf_counter()
                    model.forward(caches[name], [prompt[:width]], [layout])
                    if repeat >= 3:  # the first rounds warm up
                        seconds = time.perf_counter() - started
                        times[name].setdefault(width, []).append(seconds * 1e3)
    return {
        name: {width: statistics.median(values) for width, values in by_width.items()}
        for name, by_width in times.items()
    }


def load_and_report() -> None:
    """What a process of its own does: load once, and print seconds and bytes."""
    before = TargetModel.from_pretrained(embedded_model_path())
    weights = sum(p.nbytes for p in before.model.parameters())
    started = time.perf_counter()
    model = TargetModel(before.model, compile=True)
    seconds = time.perf_counter() - started
    assert model._compiled is not None
    print(
        json.dumps(
            {
                "seconds": seconds,
                "pieces": model._compiled.num_compiled,
                "weight_bytes": weights,
                "packed_bytes": model._compiled.packed_bytes,
                "peak_rss_bytes": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
            }
        )
    )


def start_up() -> dict[str, dict[str, float]]:
    """Loading with an empty compiler cache, and again with what that left there."""
    found = {}
    with tempfile.TemporaryDirectory() as folder:
        environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": folder}
        for name in ("cold", "warm"):
            command = [sys.executable, __file__, "--load"]
            output = subprocess.run(
                command, env=environment, check=True, capture_output=True, text=True
            ).stdout
            found[name] = json.loads(output.splitlines()[-1])
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--repeats", type=int, default=60)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--load", action="store_true", help=argparse.SUPPRESS)
    arguments = parser.parse_args()
    use_threads(arguments.threads)
    if arguments.load:
        load_and_report()
        return
    if arguments.output is None:
        parser.error("--output is missing")
    result = {
        "unit": "ms",
        "cached": CACHED,
        "forward": forward_ms(arguments.repeats),
        "start_up": start_up(),
        "provenance": collect_provenance(),
    }
    write_json(arguments.output, result)
    for name, by_width in result["forward"].items():
        print(f"{name:16s}", "  ".join(f"{w}: {ms:6.2f}" for w, ms in by_width.items()))
    print(json.dumps(result["start_up"], indent=1))


if __name__ == "__main__":
    main()
