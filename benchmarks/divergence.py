"""Is the limit of near-ties right? Plain decoding must stay below it, planted bugs must go beyond.

    python benchmarks/divergence.py [--output FILE]

The runs of `draftless bench run` judge every drafter; here the judge itself is on trial
(`docs/adr/0004-unit-of-near-ties.md`): plain decoding against plain decoding in batches of four,
and TR-Jacobi with bugs planted in positions, mask and cache, on the shipped questions.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from rich.progress import track

from draftless import Draftless, SamplingParams, embedded_model_path
from draftless.bench.near_ties import LIMIT, Judge
from draftless.bench.questions import balanced, load_suite
from draftless.bench.rows import Margin
from draftless.engine.cache import KVCache
from draftless.engine.target import TargetModel
from draftless.engine.threads import use_threads
from draftless.provenance import collect_provenance

MAX_NEW_TOKENS = 128
BATCH = 4
HERE = Path(__file__).parent


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

Prompts = list[list[int]]
Runner = Callable[[Prompts, SamplingParams], Prompts]


def one_by_one(model: Draftless) -> Runner:
    return lambda prompts, params: [model.generate(ids, params).token_ids for ids in prompts]


def in_a_batch(model: Draftless) -> Runner:
    return lambda prompts, params: [o.token_ids for o in model.generate(prompts, params)]


def broken(model: Draftless, plant: Callable[[], Any]) -> Runner:
    def run(prompts: Prompts, params: SamplingParams) -> Prompts:
        with plant():
            return one_by_one(model)(prompts, params)

    return run


def compare(
    plain: Draftless, other: Runner, prompts: Prompts, params: SamplingParams
) -> dict[str, Any]:
    """First differences of `other` from plain decoding, judged."""
    judge = Judge(plain.target.model)
    margins: list[Margin] = []
    num_tokens = 0
    for start in track(range(0, len(prompts), BATCH), description="questions"):
        group = prompts[start : start + BATCH]
        outputs = zip(group, other(group, params), one_by_one(plain)(group, params), strict=True)
        for ids, token_ids, plain_ids in outputs:
            num_tokens += len(plain_ids)
            margin = judge.margin(ids, token_ids, plain_ids, params)
            margins += [margin] if margin is not None else []
    return {
        "num_questions": len(prompts),
        "num_tokens": num_tokens,
        "num_divergences": len(margins),
        "num_beyond": sum(not margin.is_near_tie for margin in margins),
        "largest_ulps": max((m.ulps for m in margins if m.ulps is not None), default=0.0),
        "margins": [asdict(margin) for margin in margins],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, default=embedded_model_path())
    parser.add_argument("--questions", type=int, default=108)
    parser.add_argument("--planted-questions", type=int, default=18)
    parser.add_argument("--dtype", default="bfloat16")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--output", type=Path, default=HERE / "results" / "near-ties.json")
    args = parser.parse_args()

    use_threads(args.threads)
    plain = Draftless.from_pretrained(args.model, drafter="none", dtype=args.dtype)
    drafted = plain.with_drafter("tr-jacobi")
    questions = balanced(load_suite("tiny"))
    prompts = [plain.encode(question.turns[0]) for question in questions]
    result: dict[str, Any] = {"provenance": collect_provenance(), "limit": LIMIT}
    for name, temperature in (("greedy", 0.0), ("T=1", 1.0)):
        params = SamplingParams(max_new_tokens=MAX_NEW_TOKENS, seed=0, temperature=temperature)
        found = {
            "none in batches of 4": compare(
                plain, in_a_batch(plain), prompts[: args.questions], params
            )
        }
        for plant_name, plant in PLANTS.items():
            few = prompts[: args.planted_questions]
            found[f"planted: {plant_name}"] = compare(plain, broken(drafted, plant), few, params)
        result[name] = found
        for case, counts in found.items():
            print(name, case, {k: v for k, v in counts.items() if k != "margins"})
    args.output.parent.mkdir(parents=True, exist_ok=True)
    args.output.write_text(json.dumps(result, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
