"""How near the forward pass comes to what the machine can do: T(W), prefill, and the two limits.

    python benchmarks/roofline.py --model models/smollm2-135m --output benchmarks/results/roofline/NAME.json

T(W, L) is the time of a pass over W tokens with L in the cache, a chain of random tokens through
`TargetModel.forward`. Its limit is the larger of (bytes of weights, keys and values) over read bandwidth
and (floating-point operations) over the peak rate of a large bf16 product, both measured here, in the
same process, with as many threads. Every thread count is a process of its own. A machine with a large
last-level cache may beat the first limit: the bandwidth is that of memory.
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

sys.path.insert(0, str(Path(__file__).parent / "peers"))

from ours import load_model

from draftless.engine.target import TargetModel
from draftless.jsonl import write_json
from draftless.layout import chain_parents, tree_layout
from draftless.provenance import collect_provenance

WIDTHS = (1, 2, 4, 6, 8, 12, 16, 24, 32)
LENGTHS = (64, 512, 4096)
PROMPT = 512
READ_BYTES = 2**30
PRODUCT = 4096


def best_seconds(call: Callable[[], Any], repeats: int) -> float:
    """The least of some repeats after one that warms up: other load can only add."""
    call()
    times = []
    for _ in range(repeats):
        begin = time.perf_counter()
        call()
        times.append(time.perf_counter() - begin)
    return min(times)


def read_bandwidth(num_bytes: int = READ_BYTES, repeats: int = 7) -> float:
    """Bytes per second that this process reads from memory: the better of a sum and a product."""
    matrix = torch.ones(num_bytes // 4 // 4096, 4096)
    vector = torch.ones(4096)
    seconds = min(
        best_seconds(lambda: matrix.sum(), repeats), best_seconds(lambda: matrix @ vector, repeats)
    )
    return matrix.nbytes / seconds


def peak_rate(size: int = PRODUCT, repeats: int = 5) -> float:
    """Floating-point operations per second of a large bf16 product."""
    left, right = (torch.randn(size, size).bfloat16() for _ in range(2))
    return 2 * size**3 / best_seconds(lambda: left @ right, repeats)


def work_of(target: TargetModel) -> dict[str, int]:
    """What a pass has to read and compute.

    Returns:
        `weight_bytes`: read by every pass: all parameters, but of an embedding that is no head only
        rows. `flops_per_token`: of the products with these weights. `kv_bytes_per_token` and
        `attention_flops_per_pair`: of one cached token, and of one pair of a query and a cached token.
    """
    model, config = target.model, target.model.config.get_text_config()
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    read = {id(p): p for p in model.parameters() if p is not embedding or p is head}
    heads = config.num_attention_heads
    head_dim = getattr(config, "head_dim", None) or config.hidden_size // heads
    num_values = 2 * config.num_hidden_layers * config.num_key_value_heads * head_dim
    return {
        "weight_bytes": sum(p.nbytes for p in read.values()),
        "flops_per_token": sum(2 * p.numel() for p in read.values() if p.dim() > 1),
        "kv_bytes_per_token": num_values * model.dtype.itemsize,
        "attention_flops_per_pair": 4 * config.num_hidden_layers * heads * head_dim,
    }


def limit_s(
    work: dict[str, int], width: int, length: int, bandwidth: float, rate: float
) -> tuple[float, float]:
    """Least seconds to read and to compute what a pass needs; a sliding window is not considered."""
    num_bytes = work["weight_bytes"] + length * work["kv_bytes_per_token"]
    pairs = width * (length + (width + 1) / 2)
    flops = width * work["flops_per_token"] + pairs * work["attention_flops_per_pair"]
    return num_bytes / bandwidth, flops / rate


def pass_seconds(
    target: TargetModel, widths: tuple[int, ...], lengths: tuple[int, ...], repeats: int
) -> dict[tuple[int, int], float]:
    """Median seconds of a pass of each width and cached length.

    Passes of one kind follow each other, as in decoding; the first third of them warms up.
    """
    limit = target.max_positions or 10**9
    lengths = tuple(length for length in lengths if length + widths[-1] <= limit)
    cache = target.make_cache(1, lengths[-1] + widths[-1])
    generator = torch.Generator().manual_seed(0)
    ids = torch.randint(target.vocab_size, (widths[-1],), generator=generator).tolist()
    found = {}
    for length in lengths:
        cache.truncate(0, 0)
        cache.commit(0, range(length))  # zeros, as good as text for the clock
        for width in widths:
            layout, times = tree_layout(chain_parents(width)), []
            for _ in range(repeats):
                begin = time.perf_counter()
                target.forward(cache, [ids[:width]], [layout])
                times.append(time.perf_counter() - begin)
            found[width, length] = statistics.median(times[repeats // 3 :])
    return found


def prefill_rate(target: TargetModel, num_tokens: int, repeats: int = 5) -> float:
    """Tokens per second of a prompt that comes into an empty cache."""
    num_tokens = min(num_tokens, target.max_positions or num_tokens)
    cache = target.make_cache(1, num_tokens)
    ids = torch.randint(target.vocab_size, (num_tokens,)).tolist()

    def prefill() -> None:
        cache.truncate(0, 0)
        target.prefill(cache, 0, ids)

    return num_tokens / best_seconds(prefill, repeats)


def measure(args: argparse.Namespace) -> dict[str, Any]:
    """All of one thread count, in this process."""
    target = load_model(
        args.model, threads=args.worker, dtype=args.dtype, is_compiled=not args.eager
    ).target
    with torch.inference_mode():
        bandwidth, rate = read_bandwidth(args.read_bytes), peak_rate(args.product)
        seconds = pass_seconds(target, WIDTHS, tuple(args.lengths), args.repeats)
        tokens_per_second = prefill_rate(target, PROMPT)
    work = work_of(target)
    rows = []
    for (width, length), spent in seconds.items():
        read_s, compute_s = limit_s(work, width, length, bandwidth, rate)
        least = max(read_s, compute_s)
        rows.append(
            {
                "width": width,
                "cached": length,
                "ms": round(spent * 1e3, 4),
                "read_limit_ms": round(read_s * 1e3, 4),
                "compute_limit_ms": round(compute_s * 1e3, 4),
                "over_limit": round(spent / least, 3),
            }
        )
    flops = work["flops_per_token"] + PROMPT / 2 * work["attention_flops_per_pair"]
    return {
        "threads": args.worker,
        "is_compiled": target.is_compiled,
        "bandwidth_bytes_per_second": round(bandwidth),
        "peak_flops_per_second": round(rate),
        **work,
        "prefill_tokens_per_second": round(tokens_per_second, 2),
        "prefill_limit_tokens_per_second": round(rate / flops, 2),
        "passes": rows,
    }


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True)
    parser.add_argument("--output", type=Path)
    parser.add_argument("--threads", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--lengths", type=int, nargs="+", default=list(LENGTHS))
    parser.add_argument("--repeats", type=int, default=30)
    parser.add_argument("--dtype")
    parser.add_argument("--eager", action="store_true", help="do not compile")
    parser.add_argument("--read-bytes", type=int, default=READ_BYTES)
    parser.add_argument("--product", type=int, default=PRODUCT)
    parser.add_argument("--worker", type=int, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.worker is None and args.output is None:
        parser.error("--output is missing")
    return args


def main() -> None:
    args = arguments()
    if args.worker is not None:
        print(json.dumps(measure(args)))
        return
    found = []
    for threads in args.threads:
        command = [sys.executable, __file__, *sys.argv[1:], "--worker", str(threads)]
        output = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout
        found.append(json.loads(output.splitlines()[-1]))
        for row in found[-1]["passes"]:
            print(
                f"{threads} threads, {row['cached']:5} cached, W={row['width']:2}: "
                f"{row['ms']:8.2f} ms, {row['over_limit']:.2f} of the limit"
            )
    args.output.parent.mkdir(parents=True, exist_ok=True)
    result = {"model": args.model.name, "provenance": collect_provenance(), "threads": found}
    write_json(args.output, result)


if __name__ == "__main__":
    main()
