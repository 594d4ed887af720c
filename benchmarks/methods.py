"""The methods under measurement: stock `transformers` loops and ours, each a function of ids."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM

from draftless import Draftless, SamplingParams

SAMPLINGS: dict[str, dict[str, Any]] = {
    "greedy": {},
    "t1": {"temperature": 1.0},
    "t1-p0.9": {"temperature": 1.0, "top_p": 0.9},
}
HF_LOOKUP = {"prompt_lookup_num_tokens": 10, "max_matching_ngram_size": 3}

Result = dict[str, Any]  # `ids` and the measured fields of a `Row`
Method = Callable[[Sequence[int], int], Result]  # (prompt ids, seed) -> result


def our_method(model: Draftless, sampling: str, max_new_tokens: int) -> Method:
    """Our loop with the drafter that `model` carries."""

    def run(prompt_ids: Sequence[int], seed: int) -> Result:
        params = SamplingParams(max_new_tokens=max_new_tokens, seed=seed, **SAMPLINGS[sampling])
        started = time.perf_counter()
        output = model.generate(list(prompt_ids), params)
        seconds = time.perf_counter() - started
        stats = output.stats
        return {
            "ids": output.token_ids,
            "seconds": seconds,
            "num_steps": stats.num_steps,
            "time_s": {stage: round(s, 6) for stage, s in stats.time_s.items()},
            "num_nodes": stats.num_steps + stats.num_draft_tokens,
            "acceptance_histogram": stats.acceptance_histogram,
            "finish_reason": output.finish_reason,
        }

    return run


def stock_method(model: Any, max_new_tokens: int, eos_ids: Sequence[int], **options: Any) -> Method:
    """`transformers` greedy `generate`; forward passes are counted from outside."""
    num_passes = 0

    def count(*_: Any) -> None:
        nonlocal num_passes
        num_passes += 1

    model.register_forward_pre_hook(count)

    def run(prompt_ids: Sequence[int], seed: int) -> Result:
        del seed  # greedy
        nonlocal num_passes
        num_passes = 0
        ids = torch.tensor([list(prompt_ids)], device=model.device)
        started = time.perf_counter()
        with torch.inference_mode():
            output = model.generate(
                ids,
                attention_mask=torch.ones_like(ids),
                max_new_tokens=max_new_tokens,
                do_sample=False,
                eos_token_id=list(eos_ids) or None,
                pad_token_id=next(iter(eos_ids), 0),
                **options,
            )
        seconds = time.perf_counter() - started
        new_ids = output[0, ids.shape[1] :].tolist()
        is_stopped = new_ids[-1] in eos_ids
        return {
            "ids": new_ids,
            "seconds": seconds,
            "num_steps": num_passes,
            "finish_reason": "stop" if is_stopped else "length",
        }

    return run


def make_methods(
    path: Path, dtype: str, max_new_tokens: int, samplings: Sequence[str]
) -> tuple[Draftless, dict[tuple[str, str], Method]]:
    """All methods on one checkpoint, by (method, sampling); and the model, for its encoding."""
    plain = Draftless.from_pretrained(path, drafter="none", dtype=dtype)
    lookup, jacobi = plain.with_drafter("prompt-lookup"), plain.with_drafter("tr-jacobi")
    uncoupled = plain.with_drafter("tr-jacobi", {"couple": False})
    stock = AutoModelForCausalLM.from_pretrained(path, dtype=getattr(torch, dtype)).eval()
    eos = plain.eos_token_ids
    methods: dict[tuple[str, str], Method] = {}
    if "greedy" in samplings:
        methods["transformers", "greedy"] = stock_method(stock, max_new_tokens, eos)
        methods["transformers prompt lookup", "greedy"] = stock_method(
            stock, max_new_tokens, eos, **HF_LOOKUP
        )
    for sampling in samplings:
        for name, model in (("none", plain), ("prompt-lookup", lookup), ("tr-jacobi", jacobi)):
            methods[name, sampling] = our_method(model, sampling, max_new_tokens)
    if "t1" in samplings:
        methods["tr-jacobi, noise not shared", "t1"] = our_method(uncoupled, "t1", max_new_tokens)
    return plain, methods
