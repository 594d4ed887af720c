"""Count where half precision departs from plain decoding, and show that each case is a near-tie.

    python benchmarks/divergence.py DATA [--tokens 20000] [--out FILE]

At the first token that differs, the prefix is computed again in fp32. The two tokens' scores
(logits; when sampling logits + noise) must lie within `K` bf16 ULPs at that magnitude. Comparisons
of plain with plain decoding (`transformers`; a batch of four) tell what `K` plain rounding needs.
Planted bugs in positions, mask and cache show that the check can fail.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from methods import stock_method
from rich.progress import track
from run import first_difference, fitting, read_prompts
from transformers import AutoModelForCausalLM

from draftless import Draftless, SamplingParams, embedded_model_path
from draftless.engine.cache import KVCache
from draftless.engine.target import TargetModel
from draftless.noise import KeyedNoise
from draftless.provenance import collect_provenance

K = 4
"""Bf16 ULPs that two scores may differ by at a first divergence (DESIGN 1, L2)."""

MAX_NEW_TOKENS = 128

HERE = Path(__file__).parent


@dataclass(frozen=True)
class Divergence:
    """The first place where an output departs from plain decoding.

    Attributes:
        prompt_id: on which prompt.
        index: of the first token that differs.
        plain_id, other_id: the two tokens.
        margin: difference of their scores in fp32.
        ulps: the same in bf16 units at the larger logit's magnitude.
    """

    prompt_id: str
    index: int
    plain_id: int
    other_id: int
    margin: float
    ulps: float


def bf16_ulp(value: float) -> float:
    """Distance of neighbouring bf16 numbers at this magnitude (8 significant bits)."""
    return 2.0 ** (math.floor(math.log2(max(abs(value), 2.0**-126))) - 7)


class Judge:
    """Recomputes prefixes in fp32 with the stock model."""

    def __init__(self, path: Path) -> None:
        self._model = AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32).eval()

    @torch.inference_mode()
    def divergence(
        self,
        record_id: str,
        prompt_ids: Sequence[int],
        outputs: tuple[list[int], list[int]],
        params: SamplingParams,
    ) -> Divergence | None:
        """Where `outputs` (plain, other) part, or None if they are equal."""
        plain, other = outputs
        index = first_difference(other, plain)
        if index is None:
            return None
        ids = torch.tensor([[*prompt_ids, *plain[:index]]])
        logits = self._model(ids, logits_to_keep=1).logits[0, -1].double()
        pair = torch.tensor([plain[index], other[index]])
        scores, unit = logits[pair], bf16_ulp(float(logits[pair].abs().max()))
        if not params.is_greedy:
            assert params.seed is not None
            noise = KeyedNoise(params.seed, params.sample_index)
            scores = scores / params.temperature + noise(ids.shape[1], pair)
            unit /= params.temperature
        margin = float((scores[0] - scores[1]).abs())
        return Divergence(record_id, index, plain[index], other[index], margin, margin / unit)


@contextmanager
def shifted_positions() -> Iterator[None]:
    """Plant: every draft sits one position too far."""
    original = TargetModel.forward

    def forward(self: TargetModel, cache: KVCache, ids: Any, layouts: Any, **more: Any) -> Any:
        wrong = [replace(t, depth_tensor=t.depth_tensor + (t.depth_tensor > 0)) for t in layouts]
        return original(self, cache, ids, layouts if "first_row" in more else wrong, **more)

    with mock.patch.object(TargetModel, "forward", forward):
        yield


@contextmanager
def visible_siblings() -> Iterator[None]:
    """Plant: a node sees all earlier nodes, not its ancestors alone."""
    original = TargetModel.forward

    def forward(self: TargetModel, cache: KVCache, ids: Any, layouts: Any, **more: Any) -> Any:
        wrong = [replace(t, mask=torch.ones_like(t.mask).tril()) for t in layouts]
        return original(self, cache, ids, wrong, **more)

    with mock.patch.object(TargetModel, "forward", forward):
        yield


@contextmanager
def unmoved_cache() -> Iterator[None]:
    """Plant: commit keeps the first slots instead of the accepted ones."""

    def commit(self: KVCache, row: int, path: Sequence[int]) -> None:
        self.lengths[row] += len(path)

    with mock.patch.object(KVCache, "commit", commit):
        yield


PLANTS = {
    "positions shifted": shifted_positions,
    "siblings visible": visible_siblings,
    "cache not moved": unmoved_cache,
}

Runner = Callable[[list[list[int]], SamplingParams], list[list[int]]]


def runner(model: Draftless, *, is_batched: bool = False) -> Runner:
    """Ids of every prompt: one after the other, or all in one batch."""

    def run(prompts: list[list[int]], params: SamplingParams) -> list[list[int]]:
        if is_batched:
            return [output.token_ids for output in model.generate(prompts, params)]
        return [model.generate(prompt, params).token_ids for prompt in prompts]

    return run


def compare(
    judge: Judge,
    runners: dict[str, Runner],
    prompts: Sequence[tuple[str, list[int]]],
    params: SamplingParams,
    num_wanted: int,
) -> dict[str, dict[str, Any]]:
    """Every runner against the one named `none`, until `num_wanted` tokens are compared."""
    found: dict[str, list[Divergence]] = {name: [] for name in runners if name != "none"}
    num_tokens = num_prompts = 0
    for start in track(range(0, len(prompts), 4), description=f"T={params.temperature}"):
        group = prompts[start : start + 4]
        outputs = {name: run([ids for _, ids in group], params) for name, run in runners.items()}
        for index, (record_id, ids) in enumerate(group):
            plain = outputs["none"][index]
            num_tokens, num_prompts = num_tokens + len(plain), num_prompts + 1
            for name, divergences in found.items():
                one = judge.divergence(record_id, ids, (plain, outputs[name][index]), params)
                if one is not None:
                    divergences.append(one)
        if num_tokens >= num_wanted:
            break
    return {
        name: {
            "num_prompts": num_prompts,
            "num_tokens": num_tokens,
            "num_divergences": len(divergences),
            "num_beyond_k": sum(one.ulps > K for one in divergences),
            "largest_ulps": max((one.ulps for one in divergences), default=0.0),
            "divergences": [asdict(one) for one in divergences],
        }
        for name, divergences in found.items()
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("data", type=Path)
    parser.add_argument("--model", type=Path, default=embedded_model_path())
    parser.add_argument("--tokens", type=int, default=20_000, help="per temperature")
    parser.add_argument("--plant-tokens", type=int, default=1_500)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--out", type=Path, default=HERE / "results" / "embedded-divergence.json")
    args = parser.parse_args()

    plain = Draftless.from_pretrained(args.model, drafter="none", dtype=args.dtype)
    drafted = runner(plain.with_drafter("tr-jacobi"))
    records = fitting(read_prompts(args.data, None), [plain], MAX_NEW_TOKENS)
    prompts = [(r["id"], plain.encode(r["prompt"])) for r in records]
    judge = Judge(args.model)
    stock = AutoModelForCausalLM.from_pretrained(args.model, dtype=getattr(torch, args.dtype))
    generate = stock_method(stock.eval(), MAX_NEW_TOKENS, plain.eos_token_ids)
    everything: dict[str, Runner] = {
        "none": runner(plain),
        "tr-jacobi": drafted,
        "prompt-lookup": runner(plain.with_drafter("prompt-lookup")),
        "none in a batch of 4 (plain)": runner(plain, is_batched=True),
    }
    greedy = SamplingParams(max_new_tokens=MAX_NEW_TOKENS, seed=0)
    sampled = SamplingParams(max_new_tokens=MAX_NEW_TOKENS, seed=0, temperature=1.0)
    stock_runner = {"transformers (plain)": lambda p, _: [generate(ids, 0)["ids"] for ids in p]}
    result: dict[str, Any] = {
        "provenance": collect_provenance(),
        "k": K,
        "greedy": compare(judge, everything | stock_runner, prompts, greedy, args.tokens),
        "t1": compare(judge, everything, prompts, sampled, args.tokens),
        "planted": {},
    }
    honest = {"none": runner(plain)}
    for name, plant in PLANTS.items():

        def broken(prompts: list[list[int]], params: SamplingParams, plant: Any = plant) -> Any:
            with plant():
                return drafted(prompts, params)

        planted = compare(judge, honest | {name: broken}, prompts, greedy, args.plant_tokens)
        result["planted"] |= planted
    args.out.parent.mkdir(parents=True, exist_ok=True)
    args.out.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")
    for sampling in ("greedy", "t1", "planted"):
        for name, counts in result[sampling].items():
            print(sampling, name, {k: v for k, v in counts.items() if k != "divergences"})


if __name__ == "__main__":
    main()
