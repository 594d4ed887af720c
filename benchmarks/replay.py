"""What the engine makes of acceptance: models of any size under recorded trees and acceptances.

    python benchmarks/replay.py --record sdsat                    # the embedded model's own steps
    python benchmarks/replay.py --sizes 88M 270M --output benchmarks/results/replay-cpu.json
    python benchmarks/replay.py --sizes 1B 7B --device cuda --compile both --output ...

Of each model, for eager and compiled passes: the cost curve T(W), the seconds of a step by stage,
plain decoding (our loop and `transformers`), decoding under replayed acceptance, and

    efficiency = speed-up over our plain loop / (acceptance length x T(1) / T(W))

which is 1 if nothing is lost between acceptance and speed. T(W) is the mean over the steps taken.
Runs are interleaved; a step takes the median of the steps of its width, over all repeats.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from replay_drafter import (
    STEPS_FILE,
    ReplayDrafter,
    Step,
    read_steps,
    record_steps,
    write_steps,
)
from replay_models import SIZES, build_model

from draftless.bench.methods import (
    TRANSFORMERS,
    Method,
    Sampling,
    peer_methods,
    stock_copy,
)
from draftless.bench.questions import load_suite
from draftless.drafters.registry import make_drafter
from draftless.engine.loop import decode, make_request
from draftless.engine.target import TargetModel
from draftless.engine.threads import use_threads
from draftless.jsonl import write_json
from draftless.layout import chain_parents, tree_layout
from draftless.model import Draftless
from draftless.provenance import collect_provenance

SAMPLINGS = {
    "greedy": Sampling(),
    "T=1": Sampling(temperature=1.0),
    "T=1 top-p=0.9": Sampling(temperature=1.0, top_p=0.9),
}
WIDTHS = (1, 2, 4, 8, 16, 32, 64)
PROMPT_LEN = 128
CURVE_REPEATS = 12  # passes of each width in a round, of which the second half counts
RECORD_PROMPTS, RECORD_TOKENS = 18, 96


class CostCurve:
    """Seconds of one pass by width, behind a number of cached tokens; measured round by round."""

    def __init__(self, target: TargetModel, length: int, widths: Sequence[int]) -> None:
        self._target = target
        self._order = np.random.default_rng(0)
        self._layouts = {width: tree_layout(chain_parents(width)) for width in widths}
        with torch.inference_mode():
            self._cache = target.make_cache(1, length + max(widths))
            target.prefill(self._cache, 0, [1] * length)
        for _ in range(2):  # the first time warms up
            self._seconds: dict[int, list[float]] = {width: [] for width in widths}
            self.measure(2)

    def measure(self, repeats: int) -> None:
        """One round: `repeats` passes of every width in a row, as in decoding.

        In another order each time: after passes of another width a CPU is slower for a while.
        """
        widths = list(self._layouts)
        with torch.inference_mode():
            for width in (widths[place] for place in self._order.permutation(len(widths))):
                for repeat in range(repeats):
                    begun = time.perf_counter()
                    (logits,) = self._target.forward(
                        self._cache, [[2] * width], [self._layouts[width]]
                    )
                    logits[-1, :1].tolist()  # as a draw does, this waits for a GPU
                    if repeat >= repeats // 2:
                        self._seconds[width].append(time.perf_counter() - begun)

    def median_s(self) -> dict[int, float]:
        return {width: statistics.median(taken) for width, taken in self._seconds.items()}


@dataclass
class Run:
    """Steps of one or more runs of the same request: tokens, nodes and, of all but the first step of a
    run, width, wall-clock seconds and stages."""

    widths: list[int] = field(default_factory=list)
    wall_s: list[float] = field(default_factory=list)
    stages_s: list[dict[str, float]] = field(default_factory=list)
    tokens: list[int] = field(default_factory=list)
    nodes: list[int] = field(default_factory=list)
    token_ids: list[int] = field(default_factory=list)

    @property
    def length(self) -> float:
        """Tokens per step."""
        return sum(self.tokens) / len(self.tokens)

    @property
    def token_s(self) -> float:
        """Seconds per token."""
        return self._usual(self.wall_s) / self.length

    def _usual(self, seconds: Sequence[float]) -> float:
        """The mean over steps of the median of the steps of their width: other load comes in bursts,
        but a run has steps of several widths, and each counts."""
        of_width: dict[int, list[float]] = {}
        for width, one in zip(self.widths, seconds, strict=True):
            of_width.setdefault(width, []).append(one)
        return sum(len(some) * statistics.median(some) for some in of_width.values()) / len(seconds)

    def stages_us(self) -> dict[str, float]:
        """Microseconds of a step by stage; `other` is what no stage owns."""
        stages = [
            {**one, "other": wall - sum(one.values())}
            for one, wall in zip(self.stages_s, self.wall_s, strict=True)
        ]
        return {
            name: round(1e6 * self._usual([one[name] for one in stages]), 1) for name in stages[0]
        }


def run_ours(
    model: Draftless, sampling: Sampling, tokens: int, prompt: Sequence[int], into: Run
) -> None:
    """Decode with our loop and note every step."""
    params = sampling.params(tokens, 0, ())
    request = make_request(model.target, 0, prompt, params, None, ())
    begun = time.perf_counter()
    steps = decode(model.target, model.drafter, [request])
    for number, (_, record) in enumerate(steps):
        now = time.perf_counter()
        if number:  # the first one has the prefill in it
            into.widths.append(record.tree.num_nodes)
            into.wall_s.append(now - begun)
            into.stages_s.append(record.time_s)
        into.tokens.append(len(record.verdict.token_ids))
        into.nodes.append(record.tree.num_nodes)
        begun = time.perf_counter()
    into.token_ids = request.row.token_ids[len(prompt) :]


def run_stock(stock: Method, prompt: Sequence[int], into: Run) -> None:
    """Decode with `transformers`."""
    turn = stock(prompt, 0)
    into.wall_s += np.diff(turn.step_s).tolist()
    into.widths = [1] * len(into.wall_s)
    into.tokens += turn.step_tokens
    into.token_ids = turn.token_ids


def overhead(stages: dict[str, float]) -> float:
    """The share of a step that is not the forward pass."""
    total = sum(stages.values())
    return round((total - stages["forward"]) / total, 4)


def measure_sampling(
    target: TargetModel,
    stock: Method,
    sampling: Sampling,
    steps: Sequence[Step],
    args: argparse.Namespace,
) -> dict[str, Any]:
    """Plain, `transformers` and replayed decoding of one model under one sampling.

    Everything is interleaved, the cost curve too: other load then falls on all alike.
    """
    plain = Draftless(target, None, make_drafter("none"))
    prompt = np.random.default_rng(0).integers(target.vocab_size, size=PROMPT_LEN).tolist()
    text = Run()
    run_ours(plain, sampling, args.tokens + max(len(step.path) for step in steps), prompt, text)
    replay = plain.with_drafter(ReplayDrafter(steps, text.token_ids, target.vocab_size))
    widths = sorted({*WIDTHS, *(len(step.parents) for step in steps)})
    costs = CostCurve(target, PROMPT_LEN + args.tokens // 2, widths)
    for repeat in range(args.repeats + 1):
        if repeat <= 1:  # the first round warms up
            runs = {name: Run() for name in ("plain", "transformers", "replay")}
        costs.measure(CURVE_REPEATS)
        run_ours(plain, sampling, args.tokens, prompt, runs["plain"])
        run_stock(stock, prompt, runs["transformers"])
        run_ours(replay, sampling, args.tokens, prompt, runs["replay"])
    return report(costs.median_s(), runs, steps)


def report(curve: dict[int, float], runs: dict[str, Run], steps: Sequence[Step]) -> dict[str, Any]:
    """What a result file holds of one sampling."""
    replayed = runs["replay"]
    mean_s = float(np.interp(replayed.nodes, list(curve), list(curve.values())).mean())
    token_s = {name: run.token_s for name, run in runs.items()}
    stages = {name: runs[name].stages_us() for name in ("plain", "replay")}
    speed_up = token_s["plain"] / token_s["replay"]
    in_run = replayed.length * stages["plain"]["forward"] / stages["replay"]["forward"]
    return {
        "is_exact": replayed.token_ids == runs["plain"].token_ids,
        "acceptance_length": round(replayed.length, 3),
        "recorded_acceptance_length": round(statistics.mean(len(s.path) for s in steps), 3),
        "mean_width": round(statistics.mean(replayed.nodes), 2),
        "curve_ms": {width: round(1e3 * s, 4) for width, s in curve.items()},
        "tokens_per_s": {name: round(1 / seconds, 2) for name, seconds in token_s.items()},
        "speed_up": round(min(token_s["plain"], token_s["transformers"]) / token_s["replay"], 3),
        "speed_up_over_our_plain_loop": round(speed_up, 3),
        "cost_ratio": round(curve[1] / mean_s, 4),
        "efficiency": round(speed_up / (replayed.length * curve[1] / mean_s), 4),
        "efficiency_by_forwards_in_the_run": round(speed_up / in_run, 4),
        "stages_us": stages,
        "overhead": {name: overhead(found) for name, found in stages.items()},
    }


def make_target(model: Any, args: argparse.Namespace, is_compiled: bool) -> TargetModel | None:
    """The target; None, with a word, where compiled passes were to be compared and there are none."""
    target = TargetModel(model, args.attention, compile=is_compiled)
    if target.is_compiled == is_compiled:
        return target
    if args.compile == "yes":
        raise SystemExit("the forward pass could not be compiled here; use --compile no")
    print("the forward pass could not be compiled here: eager passes only", flush=True)
    return None


def measure_size(name: str, args: argparse.Namespace) -> list[dict[str, Any]]:
    """One entry per way to run the passes."""
    dtype = getattr(torch, args.dtype)
    model = build_model(SIZES[name], args.device, dtype)
    recorded, _ = read_steps(args.steps)
    stock = stock_copy(model)
    entries = []
    for is_compiled in {"no": (False,), "yes": (True,), "both": (False, True)}[args.compile]:
        begun = time.perf_counter()
        target = make_target(model, args, is_compiled)
        if target is None:
            continue
        set_up_s = time.perf_counter() - begun
        samplings = {}
        for label in args.samplings:
            sampling = SAMPLINGS[label]
            plain = Draftless(target, None, make_drafter("none"))
            peers, _ = peer_methods(plain, stock, sampling, args.tokens)
            steps = recorded["greedy" if sampling.is_greedy else "T=1"]
            samplings[label] = measure_sampling(target, peers[TRANSFORMERS], sampling, steps, args)
            show(name, is_compiled, label, samplings[label])
        entries.append(
            {
                "model": name,
                "num_parameters": sum(p.numel() for p in model.parameters()),
                "dtype": args.dtype,
                "device": args.device,
                "is_compiled": is_compiled,
                "set_up_s": round(set_up_s, 1),
                "samplings": samplings,
            }
        )
    return entries


def show(name: str, is_compiled: bool, label: str, found: dict[str, Any]) -> None:
    passes = "compiled" if is_compiled else "eager"
    print(
        f"{name} {passes} {label}: {found['acceptance_length']} tokens a step, "
        f"{found['speed_up']}x the fastest plain loop, efficiency {found['efficiency']} "
        f"(by forwards in the run {found['efficiency_by_forwards_in_the_run']}), "
        f"beside the forward {100 * found['overhead']['replay']:.1f} % of a step",
        flush=True,
    )


def record(drafter: str, path: Path) -> None:
    """Write what the embedded model's own steps look like, greedy and at temperature 1."""
    model = Draftless.from_pretrained(drafter=drafter)
    questions = load_suite("tiny")
    picked = questions[:: max(1, len(questions) // RECORD_PROMPTS)][:RECORD_PROMPTS]
    prompts = [model.encode(question.turns[0]) for question in picked]
    steps = {
        name: record_steps(model, prompts, SAMPLINGS[name].params(RECORD_TOKENS, 0, ()))
        for name in ("greedy", "T=1")
    }
    write_steps(path, steps, {"drafter": drafter, "provenance": collect_provenance()})
    for name, taken in steps.items():
        length = statistics.mean(len(step.path) for step in taken)
        print(f"{name}: {len(taken)} steps, {length:.2f} tokens a step")


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    add = parser.add_argument
    add("--record", metavar="DRAFTER", help="record this drafter's steps on the embedded model")
    add("--steps", type=Path, default=STEPS_FILE)
    add("--sizes", nargs="+", choices=SIZES, default=["88M"])
    add("--samplings", nargs="+", choices=SAMPLINGS, default=list(SAMPLINGS))
    add("--device", default="cpu")
    add("--dtype", default="bfloat16", choices=["bfloat16", "float16", "float32"])
    add("--attention", default="draftless", choices=["draftless", "sdpa", "eager"])
    add("--compile", default="no", choices=["no", "yes", "both"])
    add("--tokens", type=int, default=128)
    add("--repeats", type=int, default=5)
    add("--threads", type=int, default=1)
    add("--output", type=Path)
    args = parser.parse_args(arguments)
    use_threads(args.threads)
    if args.record:
        record(args.record, args.steps)
        return
    _, facts = read_steps(args.steps)
    measured = [entry for name in args.sizes for entry in measure_size(name, args)]
    result = {
        "provenance": collect_provenance(),
        "steps": {"file": args.steps.name, "drafter": facts.get("drafter")},
        "tokens": args.tokens,
        "prompt_len": PROMPT_LEN,
        "repeats": args.repeats,
        "attention": args.attention,
        "models": measured,
    }
    if args.output:
        args.output.parent.mkdir(parents=True, exist_ok=True)
        write_json(args.output, result)


if __name__ == "__main__":
    main()
