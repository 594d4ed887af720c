"""Where drafting cannot pay: is `auto` ever slower than plain decoding?

    python benchmarks/never_slower.py [--drafter auto] [--compile] [--output FILE]

Five places: text of random tokens, temperature 1.5, an untrained model (the same architecture with
random weights, greedy and sampled), and a batch of eight. Plain decoding and the drafter answer the
same prompts with the same seeds in turns that alternate; per prompt (or batch) the median of the
repeats counts, and the ratio of tokens per second has its 95 % bootstrap interval over prompts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from draftless import Draftless, Output, SamplingParams, embedded_model_path
from draftless.bench.questions import balanced, load_suite, random_questions
from draftless.bench.statistics import rate_ratio, stratified_interval
from draftless.engine.latency import prices_of
from draftless.engine.threads import use_threads
from draftless.jsonl import write_json
from draftless.provenance import collect_provenance

HERE = Path(__file__).parent
LIMIT = 0.98
BATCH = 8

Prompts = list[list[int]]


def untrained(folder: Path, like: Draftless, how: dict[str, Any]) -> Draftless:
    """The architecture of a checkpoint with random weights, as a stock model that knows no method."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = AutoModelForCausalLM.from_config(
            AutoConfig.from_pretrained(folder), dtype=like.target.model.dtype
        )
    return Draftless.from_pretrained(model, tokenizer=like.tokenizer, drafter="none", **how)


def silent(model: Draftless, drafter: str) -> Draftless:
    """With a drafter, and without a tokenizer: no text is decoded while the clock runs."""
    own = model.with_drafter(drafter)
    return Draftless(own.target, None, own.drafter, own.manifest, own.folder)


def measure(
    model: Draftless,
    drafter: str,
    batches: Sequence[Prompts],
    params: SamplingParams,
    repeats: int,
) -> dict[str, Any]:
    """Tokens per second of the drafter over plain decoding's, batch by batch in turns.

    Every repeat begins with a drafter that has met none of the prompts, and keeps it over them, as a
    server would.
    """
    eos_ids = model.eos_token_ids
    params = replace(params, eos_token_ids=eos_ids)
    names = ("none", drafter)
    seconds: dict[tuple[str, int], list[float]] = defaultdict(list)
    outputs: dict[tuple[str, int], list[Output]] = {}
    for name in names:  # the first call pays for things that later ones do not
        silent(model, name).generate(batches[0], params)
    for repeat in range(repeats):
        methods = {name: silent(model, name) for name in names}
        for index, batch in enumerate(batches):
            for name in names if (index + repeat) % 2 else names[::-1]:
                begin = time.perf_counter()
                outputs[name, index] = methods[name].generate(batch, params)
                seconds[name, index].append(time.perf_counter() - begin)
    numbers, shares, differing = [], [], 0
    for index in range(len(batches)):
        plain, own = outputs["none", index], outputs[drafter, index]
        differing += sum(a.token_ids != b.token_ids for a, b in zip(plain, own, strict=True))
        shares += [output.stats.acceptance_length for output in own]
        row: list[float] = []
        for name, found in ((drafter, own), ("none", plain)):
            row += [sum(len(output.token_ids) for output in found)]
            row += [statistics.median(seconds[name, index])]
        numbers.append(row)
    ratio = stratified_interval([np.array(numbers, dtype=float)], rate_ratio)
    return {
        "num_batches": len(batches),
        "batch_size": len(batches[0]),
        "repeats": repeats,
        "ratio": ratio.value,
        "low": ratio.low,
        "high": ratio.high,
        "is_slower": ratio.value < LIMIT,
        "acceptance_length": statistics.mean(shares),
        "num_differing": differing,  # near-ties in half precision; `bench run` judges them
        "plain_tokens_per_second": sum(n[2] for n in numbers) / sum(n[3] for n in numbers),
        "load": round(os.getloadavg()[0], 2),
    }


def places(
    model: Draftless, fresh: Draftless, num_prompts: int, num_tokens: int
) -> dict[str, tuple[Draftless, list[Prompts], float]]:
    """Model, batches of prompts that leave room for `num_tokens`, and temperature of every place."""
    limit = model.target.max_positions or 10**9
    shipped = [model.encode(q.turns[0]) for q in balanced(load_suite("tiny"))]
    shipped = [ids for ids in shipped if len(ids) + num_tokens <= limit]
    random = [model.encode(q.turns[0]) for q in random_questions(model, 0)]
    alone = [[ids] for ids in shipped[:num_prompts]]
    eights = [shipped[b : b + BATCH] for b in range(0, BATCH * max(3, num_prompts // 4), BATCH)]
    return {
        "random text": (model, [[ids] for ids in random[:num_prompts]], 0.0),
        "T=1.5": (model, alone, 1.5),
        "untrained": (fresh, alone, 0.0),
        "untrained, T=1": (fresh, alone, 1.0),
        "batch of 8": (model, eights, 0.0),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=embedded_model_path())
    parser.add_argument("--drafter", default="auto")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--tokens", type=int, default=64)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--compile", action="store_true")
    parser.add_argument("--output", type=Path, default=HERE / "results" / "never-slower.json")
    args = parser.parse_args()

    use_threads(args.threads)
    how: dict[str, Any] = {"compile": args.compile}
    found = {}
    model = Draftless.from_pretrained(args.model, drafter="none", dtype=args.dtype, **how)
    fresh = untrained(args.model, model, how)
    chosen = places(model, fresh, args.prompts, args.tokens)
    for name, (one, batches, temperature) in chosen.items():
        params = SamplingParams(max_new_tokens=args.tokens, temperature=temperature, seed=0)
        found[name] = measure(one, args.drafter, batches, params, args.repeats)
        own = found[name]
        print(
            f"{name:16} {own['ratio']:.3f} [{own['low']:.3f}, {own['high']:.3f}] of plain, "
            f"{own['acceptance_length']:.2f} tokens a step",
            flush=True,
        )
    result = {
        "provenance": collect_provenance(),
        "drafter": args.drafter,
        "is_compiled": args.compile,
        "limit": LIMIT,
        "places": found,
        "prices": prices_of(model.target).to_dict(),
    }
    args.output.parent.mkdir(parents=True, exist_ok=True)
    write_json(args.output, result)


if __name__ == "__main__":
    main()
