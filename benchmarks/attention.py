"""Time one attention call of our packed attention against the stock masked path.

    python benchmarks/attention.py --output benchmarks/results/attention-cpu.json

Shapes are those of an 8-billion Llama layer: 32 query heads on 8 KV heads of 128, bf16, a tree of
8 nodes behind 512 and 4,096 cached positions; and W = 1, the plain loop's shape.
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import torch
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.models.llama.modeling_llama import eager_attention_forward

from draftless.engine.attention import packed_attention
from draftless.provenance import collect_provenance

HEADS, KV_HEADS, HEAD_DIM = 32, 8, 128


def median_ms(calls: dict[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Median milliseconds of each call, the calls interleaved."""
    times: dict[str, list[float]] = {name: [] for name in calls}
    for repeat in range(repeats + 3):
        for name, call in calls.items():
            started = time.perf_counter()
            call()
            if repeat >= 3:  # the first rounds warm up
                times[name].append((time.perf_counter() - started) * 1e3)
    return {name: statistics.median(values) for name, values in times.items()}


def measure(width: int, cached: int, repeats: int) -> dict[str, float | int]:
    """One shape, all implementations, in the same process."""
    context = cached + width
    module = SimpleNamespace(num_key_value_groups=HEADS // KV_HEADS, is_causal=True, training=False)
    generator = torch.Generator().manual_seed(0)
    query, key, value = (
        torch.randn(1, heads, length, HEAD_DIM, generator=generator).bfloat16()
        for heads, length in ((HEADS, width), (KV_HEADS, context), (KV_HEADS, context))
    )
    mask = torch.zeros(1, 1, width, context, dtype=torch.bfloat16)
    mask[..., cached:] = torch.full((width, width), -torch.inf).triu(1)
    scaling = HEAD_DIM**-0.5
    implementations = {
        "eager": eager_attention_forward,
        "sdpa": sdpa_attention_forward,
        "draftless": packed_attention,
    }
    with torch.inference_mode():
        outputs = {
            name: call(module, query, key, value, mask, scaling=scaling)[0].float()
            for name, call in implementations.items()
        }
        for name, output in outputs.items():
            difference = (output - outputs["eager"]).abs().max().item()
            if difference > 0.02:
                raise AssertionError(f"{name} differs from eager by {difference}")
        calls = {
            name: lambda call=call: call(module, query, key, value, mask, scaling=scaling)
            for name, call in implementations.items()
        }
        return {"width": width, "cached": cached, **median_ms(calls, repeats)}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--repeats", type=int, default=50)
    arguments = parser.parse_args()
    rows = [measure(w, c, arguments.repeats) for c in (512, 4096) for w in (1, 8, 16)]
    result = {"unit": "ms", "rows": rows, "provenance": collect_provenance()}
    arguments.output.write_text(json.dumps(result, indent=2) + "\n")
    for row in rows:
        print(row)


if __name__ == "__main__":
    main()
