"""Fine-tune the base on responses: MSN (branch or inline) or the plain control.

    OMP_NUM_THREADS=1 python recipes/tiny_sft.py --mode branch --base runs/tiny/base/model ...

All modes see the same documents in the same order and the same number of clean tokens a step; they
differ in the noise alone. Rows are packed to few shapes, because each shape is compiled.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from tiny_base import MasterOptimizer, newest_state, save_state
from tiny_data import Document, document_stream, read_documents
from tiny_model import compile_for_training, distribution_losses, label_losses
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from draftless.prompts import IGNORED_LABEL
from draftless.training.branches import BranchRow, branch_mask, clean_twins
from draftless.training.noise_runs import NoisePlanner, NoiseSettings

ROW_LENGTHS = (512, 1024, 2048)
ROWS_PER_MICRO_BATCH = {512: 4, 1024: 2, 2048: 1}
MAX_LEN = 1400  # leaves room for blocks
# Prompts cost time but teach little.
PROMPT_WEIGHT = 0.25


def step_stream(
    documents: Iterator[tuple[Document, int]], clean_tokens: int
) -> Iterator[list[tuple[Document, int]]]:
    """The documents of every step: as many as reach `clean_tokens`."""
    step, tokens = [], 0
    for item in documents:
        if len(item[0][0]) > MAX_LEN:
            continue
        step.append(item)
        tokens += len(item[0][0])
        if tokens >= clean_tokens:
            yield step
            step, tokens = [], 0


def count_tokens(items: list[tuple[Document, int]]) -> int:
    """Clean tokens of a step, prompts included."""
    return sum(len(ids) for (ids, _), _ in items)


def pack(
    items: list[tuple[Document, int]], planner: NoisePlanner, pad_id: int
) -> list[list[BranchRow]]:
    """Micro-batches of rows of equal length that hold the documents and their noise."""
    rows = []
    for (ids, labels), epoch in items:
        runs = planner.plan(ids, labels, epoch)
        if planner.settings.mode == "inline" and runs:
            run = runs[0]
            ids = [*ids[: run.start], *run.token_ids, *ids[run.start + len(run.token_ids) :]]
            runs = []
        while len(ids) + sum(len(run.token_ids) for run in runs) > ROW_LENGTHS[-1]:
            runs.pop()
        rows.append((ids, labels, runs, len(ids) + sum(len(run.token_ids) for run in runs)))
    bins: dict[int, list[tuple[int, list]]] = {length: [] for length in ROW_LENGTHS}
    for item in sorted(rows, key=lambda item: -item[3]):
        length = next(limit for limit in ROW_LENGTHS if item[3] <= limit)
        for index, (free, members) in enumerate(bins[length]):
            if item[3] <= free:
                bins[length][index] = (free - item[3], [*members, item])
                break
        else:
            bins[length].append((length - item[3], [item]))
    micro_batches = []
    for length, contents in bins.items():
        built = [build_row(members, length, pad_id) for _, members in contents]
        size = ROWS_PER_MICRO_BATCH[length]
        micro_batches += [built[i : i + size] for i in range(0, len(built), size)]
    return micro_batches


def build_row(members: list, length: int, pad_id: int) -> BranchRow:
    row, offsets, block = BranchRow(), [], 0
    for number, (ids, labels, _, _) in enumerate(members):
        offsets.append(len(row))
        row.add_document(ids, labels, number)
    for number, (_, labels, runs, _) in enumerate(members):
        for run in runs:
            row.add_block(run, labels, number, offsets[number], block)
            block += 1
    row.add_padding(length - len(row), pad_id)
    return row


@dataclass
class Losses:
    """Losses of one micro-batch.

    Attributes:
        clean: `[N]` fp32, one per clean target (zero where the list was filled up).
        noise: `[M]` fp32, one per noise target, likewise.
        agreements: share of noise targets where the noise token predicts what the clean token at
            its place predicts: what an accepted guess needs.
    """

    clean: torch.Tensor
    noise: torch.Tensor | None
    num_clean: int
    num_noise: int
    num_agreements: int


def micro_batch_losses(
    model: LlamaForCausalLM, rows: list[BranchRow], noise_targets: str
) -> Losses:
    """Losses of a micro-batch; noise targets are the labels, or the model's own clean prediction.

    A noise token and the clean token at its place predict the same next token, one of them
    without having seen the tokens between. With `noise_targets="model"` the noise token learns
    the clean token's whole distribution (no gradient flows into it): what a draft has to hit is
    the model's own next token, and a distribution says more than one token drawn from it.
    """
    mask = torch.zeros(1, dtype=torch.bfloat16).expand(branch_mask(rows).shape)
    mask = mask.masked_fill(~branch_mask(rows), float("-inf"))
    hidden = model.model(
        input_ids=torch.tensor([row.ids for row in rows]),
        position_ids=torch.tensor([row.positions for row in rows]),
        attention_mask=mask,
        use_cache=False,
    ).last_hidden_state.flatten(0, 1)
    head = model.lm_head.weight
    targets = torch.tensor([row.targets for row in rows]).flatten()
    is_noise = torch.tensor([row.blocks for row in rows]).flatten() >= 0
    clean = ((targets != IGNORED_LABEL) & ~is_noise).nonzero().flatten()
    noise = ((targets != IGNORED_LABEL) & is_noise).nonzero().flatten()
    clean_logits = hidden[filled(clean)] @ head.t()
    losses = Losses(
        clean=label_losses(clean_logits, filled(targets[clean], IGNORED_LABEL)),
        noise=None,
        num_clean=len(clean),
        num_noise=len(noise),
        num_agreements=0,
    )
    if not len(noise):
        return losses
    noise_logits = hidden[filled(noise)] @ head.t()
    row_starts = torch.arange(0, len(is_noise), len(rows[0]))[:, None]
    twins = torch.searchsorted(clean, (clean_twins(rows) + row_starts).flatten()[noise])
    own = clean_logits.detach()[twins]  # [M, V]: what the clean token at each place says
    hits = noise_logits.detach()[: len(noise)].argmax(-1) == own.argmax(-1)
    losses.num_agreements = int(hits.sum())
    if noise_targets == "model":
        # Rows that only fill up have a uniform teacher and are cut off.
        own = torch.nn.functional.pad(own, (0, 0, 0, len(noise_logits) - len(noise)))
        losses.noise = distribution_losses(noise_logits, own)[: len(noise)]
    else:
        losses.noise = label_losses(noise_logits, filled(targets[noise], IGNORED_LABEL))
    return losses


def filled(values: torch.Tensor, value: int = 0) -> torch.Tensor:
    """Lengthened to a multiple of 256: a function of few sizes is compiled few times."""
    return torch.nn.functional.pad(values, (0, -len(values) % 256), value=value)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=("branch", "inline", "plain"), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--clean-tokens", type=int, default=5000, help="per step")
    parser.add_argument("--length", type=int, default=5)
    parser.add_argument("--spacing", type=int, default=6)
    parser.add_argument(
        "--noise-weights", nargs="+", default=["0:1.0"],
        help="STEP:WEIGHT of a noise target from that step on (docs/log.md says why ours fall)",
    )  # fmt: skip
    parser.add_argument("--noise-targets", choices=("labels", "model"), default="labels")
    parser.add_argument("--optimizer", default="muon")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--muon-lr", type=float, default=2.5e-3)
    parser.add_argument("--save-every", type=int, default=100)
    return parser.parse_args()


def weight_at(step: int, schedule: list[str]) -> float:
    """The weight of the last `STEP:WEIGHT` that has begun."""
    pairs = [(int(start), float(weight)) for start, weight in (s.split(":") for s in schedule)]
    return next(weight for start, weight in sorted(pairs, reverse=True) if start <= step)


def make_planner(args: argparse.Namespace, special_ids: list[int]) -> NoisePlanner:
    settings = NoiseSettings(
        mode="inline" if args.mode == "inline" else "branch",
        length=args.length,
        spacing=args.spacing,
        clean_share=1.0 if args.mode == "plain" else 0.0,
    )
    return NoisePlanner(settings, frozenset(special_ids))


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    documents = read_documents(args.data, "train", args.base, args.output.parent)
    planner = make_planner(args, tokenizer.all_special_ids)

    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.bfloat16).train()
    masters = MasterOptimizer(model, args, rank=0, world=1)
    first = newest_state(args.output, world=1) or 0
    if first:
        masters.load_state_dict(torch.load(args.output / f"state-{first}-0.pt", weights_only=True))
    compile_for_training(model)

    steps = step_stream(document_stream(documents, 1, PROMPT_WEIGHT), args.clean_tokens)
    # The steps that an earlier run has done are drawn again, so the order goes on unbroken.
    clean_tokens = sum(count_tokens(next(steps)) for _ in range(first))
    log = (args.output / "log.jsonl").open("a")
    begun = time.perf_counter()
    for step in range(first, args.steps):
        items = next(steps)
        clean_tokens += count_tokens(items)
        micro_batches = pack(items, planner, tokenizer.pad_token_id)
        num_clean = sum(
            sum(t != IGNORED_LABEL and b < 0 for t, b in zip(row.targets, row.blocks, strict=True))
            for rows in micro_batches
            for row in rows
        )
        noise_weight = weight_at(step, args.noise_weights)
        sums = dict.fromkeys(("clean", "noise", "num_clean", "num_noise", "num_agreements"), 0.0)
        for rows in micro_batches:
            losses = micro_batch_losses(model, rows, args.noise_targets)
            total = losses.clean.sum()
            sums["clean"] += total.item()
            if losses.noise is not None:
                sums["noise"] += losses.noise.sum().item()
                total = total + noise_weight * losses.noise.sum()
            total.backward()
            for name in ("num_clean", "num_noise", "num_agreements"):
                sums[name] += getattr(losses, name)
        scale = min(1.0, (step + 1) / 30) * (args.steps - step) / args.steps
        norm = masters.step(num_clean, scale)
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            save_state(masters, args.output, step + 1, rank=0)
            if step + 1 < args.steps:
                model.save_pretrained(args.output / "model")
                tokenizer.save_pretrained(args.output / "model")
        num_noise = max(1.0, sums["num_noise"])
        row = {"step": step, "clean": sums["clean"] / num_clean, "noise": sums["noise"] / num_noise,
               "agreement": sums["num_agreements"] / num_noise, "norm": norm,
               "tokens": clean_tokens, "noised": sums["num_noise"], "targets": num_clean,
               "time_s": round(time.perf_counter() - begun, 1)}  # fmt: skip
        print(json.dumps(row), file=log, flush=True)
    model.save_pretrained(args.output / "model")
    tokenizer.save_pretrained(args.output / "model")


if __name__ == "__main__":
    main()
