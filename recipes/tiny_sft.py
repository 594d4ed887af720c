"""Fine-tune on responses: MSN (branch or inline), MSN with SDSAT (joint), or the plain control.

    OMP_NUM_THREADS=1 python recipes/tiny_sft.py --mode branch --base runs/tiny/base/model ...

All modes see the same documents in the same order and the same number of clean tokens a step; they
differ in the blocks alone. Rows are packed to few shapes, because each shape is compiled. `--own`
adds texts that the model wrote itself (`draftless data regenerate`): blocks learn from them, their
clean tokens do not count.
"""

from __future__ import annotations

import argparse
import json
import time
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import repeat
from pathlib import Path

import torch
from tiny_base import MasterOptimizer, newest_state, save_state
from tiny_data import DOMAINS, Document, document_stream, read_documents
from tiny_manifest import BLOCK_LENGTH, write_tiny_manifest
from tiny_model import compile_for_training, distribution_losses, label_losses
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

from draftless.prompts import IGNORED_LABEL, PromptFormat
from draftless.training.adaptive import AdaptivePlanner, AdaptiveSettings
from draftless.training.adaptive_tokens import add_adaptive_tokens, suppress_in_generation
from draftless.training.block_places import TokenRun
from draftless.training.branches import BranchRow, branch_mask, clean_twins
from draftless.training.data import encode_records, read_records
from draftless.training.losses import without_ids
from draftless.training.noise_runs import NoisePlanner, NoiseSettings

ROW_LENGTHS = (512, 1024, 2048)
ROWS_PER_MICRO_BATCH = {512: 4, 1024: 2, 2048: 1}
MAX_LEN = 1400  # leaves room for blocks
# Prompts cost time but teach little.
PROMPT_WEIGHT = 0.25
# Code is SDSAT's field, and both answer in few tokens.
OWN_WEIGHTS = {**dict.fromkeys(DOMAINS, 1.0), "code": 2.0, "sql": 2.0}
# Numbers of own documents within a row begin here, so that a row tells them from the others.
OWN = 10_000


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


@dataclass(frozen=True)
class Planners:
    """What hangs blocks beside (or, inline, puts noise into) the documents."""

    noise: NoisePlanner
    adaptive: AdaptivePlanner | None
    own_adaptive: AdaptivePlanner | None

    def plan(self, ids: list[int], labels: list[int], epoch: int, is_own: bool) -> list[TokenRun]:
        adaptive = self.own_adaptive if is_own else self.adaptive
        runs = adaptive.plan(ids, labels, epoch) if adaptive else []
        return [*self.noise.plan(ids, labels, epoch), *runs]


def pack(
    items: list[tuple[Document, int]],
    own_items: list[tuple[Document, int]],
    planners: Planners,
    pad_id: int,
) -> list[list[BranchRow]]:
    """Micro-batches of rows of equal length that hold the documents and their blocks."""
    rows = []
    marked = [(item, False) for item in items] + [(item, True) for item in own_items]
    for ((ids, labels), epoch), is_own in marked:
        runs = planners.plan(ids, labels, epoch, is_own)
        if planners.noise.settings.mode == "inline" and runs:
            run = runs[0]
            ids = [*ids[: run.start], *run.token_ids, *ids[run.start + len(run.token_ids) :]]
            runs = []
        while len(ids) + sum(len(run.token_ids) for run in runs) > ROW_LENGTHS[-1]:
            runs.pop()
        length = len(ids) + sum(len(run.token_ids) for run in runs)
        rows.append((ids, labels, runs, length, is_own))
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
    numbers = [number + OWN * is_own for number, (*_, is_own) in enumerate(members)]
    for number, (ids, labels, *_) in zip(numbers, members, strict=True):
        offsets.append(len(row))
        row.add_document(ids, labels, number)
    for number, offset, (_, labels, runs, *_) in zip(numbers, offsets, members, strict=True):
        for run in runs:
            row.add_block(run, labels, number, offset, block)
            block += 1
    row.add_padding(length - len(row), pad_id)
    return row


@dataclass
class Losses:
    """Losses of one micro-batch.

    Attributes:
        clean: `[N]` fp32, one per clean target; zero for own documents and where the list was
            filled up.
        blocks: `[M]` fp32, one per target of a block; None where there is no block.
        is_adaptive: `[M]` bool, which of them are adaptive tokens.
        is_hit: `[M]` bool: the token predicts what the clean token at its place predicts, which is
            what an accepted draft needs.
    """

    clean: torch.Tensor
    blocks: torch.Tensor | None = None
    is_adaptive: torch.Tensor | None = None
    is_hit: torch.Tensor | None = None


def micro_batch_losses(
    model: LlamaForCausalLM,
    rows: list[BranchRow],
    noise_targets: str,
    adaptive_ids: tuple[int, ...],
) -> Losses:
    """Losses of a micro-batch; a block's targets are labels, or the model's own clean prediction.

    A block's token and the clean token at its place predict the same next token, one of them
    without having seen the tokens between. With `noise_targets="model"` the block's token learns
    the clean token's whole distribution (no gradient flows into it): what a draft has to hit is
    the model's own next token, and a distribution says more than one token drawn from it.
    """
    seen = branch_mask(rows)
    mask = torch.zeros(seen.shape, dtype=torch.bfloat16).masked_fill_(~seen, float("-inf"))
    input_ids = torch.tensor([row.ids for row in rows])
    hidden = model.model(
        input_ids=input_ids,
        position_ids=torch.tensor([row.positions for row in rows]),
        attention_mask=mask,
        use_cache=False,
    ).last_hidden_state.flatten(0, 1)
    head = model.lm_head.weight
    targets = torch.tensor([row.targets for row in rows]).flatten()
    in_block = torch.tensor([row.blocks for row in rows]).flatten() >= 0
    is_own = torch.tensor([row.documents for row in rows]).flatten() >= OWN
    clean = ((targets != IGNORED_LABEL) & ~in_block).nonzero().flatten()
    block = ((targets != IGNORED_LABEL) & in_block).nonzero().flatten()
    # The model never says an adaptive token, so it does not learn not to say it either.
    clean_logits = without_ids(hidden[filled(clean)] @ head.t(), adaptive_ids)
    counted = targets[clean].masked_fill(is_own[clean], IGNORED_LABEL)
    losses = Losses(clean=label_losses(clean_logits, filled(counted, IGNORED_LABEL)))
    if not len(block):
        return losses
    block_logits = without_ids(hidden[filled(block)] @ head.t(), adaptive_ids)
    row_starts = torch.arange(0, len(in_block), len(rows[0]))[:, None]
    twins = torch.searchsorted(clean, (clean_twins(rows) + row_starts).flatten()[block])
    own = clean_logits.detach()[twins]  # [M, V]: what the clean token at each place says
    losses.is_hit = block_logits.detach()[: len(block)].argmax(-1) == own.argmax(-1)
    losses.is_adaptive = torch.isin(input_ids.flatten()[block], torch.tensor(adaptive_ids))
    if noise_targets == "model":
        # Rows that only fill up have a uniform teacher and are cut off.
        own = torch.nn.functional.pad(own, (0, 0, 0, len(block_logits) - len(block)))
        losses.blocks = distribution_losses(block_logits, own)[: len(block)]
    else:
        losses.blocks = label_losses(block_logits, filled(targets[block], IGNORED_LABEL))[
            : len(block)
        ]
    return losses


def filled(values: torch.Tensor, value: int = 0) -> torch.Tensor:
    """Lengthened to a multiple of 256: a function of few sizes is compiled few times."""
    return torch.nn.functional.pad(values, (0, -len(values) % 256), value=value)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--mode", choices=("branch", "inline", "joint", "plain"), required=True)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--base", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--clean-tokens", type=int, default=5000, help="per step")
    parser.add_argument("--length", type=int, default=BLOCK_LENGTH)
    parser.add_argument("--spacing", type=int, default=6)
    parser.add_argument(
        "--noise-weights", nargs="+", default=["0:1.0"],
        help="STEP:WEIGHT of a noise target from that step on (docs/log.md says why ours fall)",
    )  # fmt: skip
    parser.add_argument("--adaptive-weights", nargs="+", default=["0:1.0"], help="likewise")
    parser.add_argument("--adaptive-spacing", type=int, default=5)
    parser.add_argument("--own", type=Path, help="JSONL that the model wrote itself")
    parser.add_argument("--own-tokens", type=int, default=1500, help="per step")
    parser.add_argument("--own-spacing", type=int, default=3, help="of adaptive blocks")
    parser.add_argument("--noise-targets", choices=("labels", "model"), default="labels")
    parser.add_argument("--order-seed", type=int, default=1, help="of the documents' order")
    parser.add_argument("--optimizer", default="muon")
    parser.add_argument("--lr", type=float, default=1.5e-3)
    parser.add_argument("--muon-lr", type=float, default=2.5e-3)
    parser.add_argument("--save-every", type=int, default=100)
    return parser.parse_args()


def weight_at(step: int, schedule: list[str]) -> float:
    """The weight of the last `STEP:WEIGHT` that has begun."""
    pairs = [(int(start), float(weight)) for start, weight in (s.split(":") for s in schedule)]
    return next(weight for start, weight in sorted(pairs, reverse=True) if start <= step)


def make_planners(
    args: argparse.Namespace, special_ids: list[int], adaptive_ids: tuple[int, ...]
) -> Planners:
    settings = NoiseSettings(
        mode="inline" if args.mode == "inline" else "branch",
        length=args.length,
        spacing=args.spacing,
        clean_share=1.0 if args.mode == "plain" else 0.0,
    )
    noise = NoisePlanner(settings, frozenset(special_ids))
    if not adaptive_ids:
        return Planners(noise, None, None)
    adaptive, own = (
        AdaptivePlanner(AdaptiveSettings(adaptive_ids, args.length, spacing))
        for spacing in (args.adaptive_spacing, args.own_spacing)
    )
    return Planners(noise, adaptive, own)


def save_model(
    model: LlamaForCausalLM,
    tokenizer: PreTrainedTokenizerBase,
    folder: Path,
    mode: str,
    adaptive_ids: tuple[int, ...],
) -> None:
    if adaptive_ids:
        suppress_in_generation(model, adaptive_ids)
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    write_tiny_manifest(folder, mode, adaptive_ids)


def read_own(file: Path, tokenizer: PreTrainedTokenizerBase) -> dict[str, list[Document]]:
    """Documents that the model wrote, by domain."""
    documents: dict[str, list[Document]] = defaultdict(list)
    for record in read_records(file):
        (one,) = encode_records([record], tokenizer, PromptFormat(), MAX_LEN)
        documents[record["domain"]].append((one["input_ids"], one["labels"]))
    return documents


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    args.output.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(args.base)
    documents = read_documents(args.data, "train", args.base, args.output.parent)

    model = AutoModelForCausalLM.from_pretrained(args.base, dtype=torch.bfloat16).train()
    adaptive_ids = add_adaptive_tokens(model, 1) if args.mode == "joint" else ()
    planners = make_planners(args, tokenizer.all_special_ids, adaptive_ids)
    masters = MasterOptimizer(model, args, rank=0, world=1)
    first = newest_state(args.output, world=1) or 0
    if first:
        masters.load_state_dict(torch.load(args.output / f"state-{first}-0.pt", weights_only=True))
    compile_for_training(model)

    steps = step_stream(
        document_stream(documents, args.order_seed, PROMPT_WEIGHT), args.clean_tokens
    )
    own_steps: Iterator[list[tuple[Document, int]]] = repeat([])
    if args.own:
        own = read_own(args.own, tokenizer)
        stream = document_stream(own, 1, PROMPT_WEIGHT, OWN_WEIGHTS)
        own_steps = step_stream(stream, args.own_tokens)
    # The steps that an earlier run has done are drawn again, so the order goes on unbroken.
    clean_tokens = sum(count_tokens(next(steps)) for _ in range(first))
    for _ in range(first):
        next(own_steps)
    log = (args.output / "log.jsonl").open("a")
    begun = time.perf_counter()
    for step in range(first, args.steps):
        items = next(steps)
        clean_tokens += count_tokens(items)
        micro_batches = pack(items, next(own_steps), planners, tokenizer.pad_token_id)
        weights = (weight_at(step, args.noise_weights), weight_at(step, args.adaptive_weights))
        num_clean, sums = backward(model, micro_batches, weights, args.noise_targets, adaptive_ids)
        scale = min(1.0, (step + 1) / 30) * (args.steps - step) / args.steps
        norm = masters.step(num_clean, scale)
        if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
            save_state(masters, args.output, step + 1, rank=0)
            save_model(model, tokenizer, args.output / "model", args.mode, adaptive_ids)
        row = {"step": step, "clean": sums["clean"] / num_clean, "norm": norm,
               "tokens": clean_tokens, "targets": num_clean}  # fmt: skip
        for kind in ("noise", "adaptive"):
            if count := sums[f"num_{kind}"]:
                row |= {kind: sums[kind] / count, f"{kind}_hits": sums[f"{kind}_hits"] / count,
                        f"num_{kind}": count}  # fmt: skip
        row["time_s"] = round(time.perf_counter() - begun, 1)
        print(json.dumps(row), file=log, flush=True)


def backward(
    model: LlamaForCausalLM,
    micro_batches: list[list[BranchRow]],
    weights: tuple[float, float],
    noise_targets: str,
    adaptive_ids: tuple[int, ...],
) -> tuple[int, dict[str, float]]:
    """Add up the gradients of a step; the number of clean targets, and sums for the log."""
    num_clean = sum(
        t != IGNORED_LABEL and b < 0 and d < OWN
        for rows in micro_batches
        for row in rows
        for t, b, d in zip(row.targets, row.blocks, row.documents, strict=True)
    )
    sums: dict[str, float] = defaultdict(float)
    for rows in micro_batches:
        losses = micro_batch_losses(model, rows, noise_targets, adaptive_ids)
        total = losses.clean.sum()
        sums["clean"] += total.item()
        if losses.blocks is not None:
            total = total + add_blocks(sums, losses, weights)
        total.backward()
    return num_clean, sums


def add_blocks(
    sums: dict[str, float], losses: Losses, weights: tuple[float, float]
) -> torch.Tensor:
    """The weighted sum of the blocks' losses; counts them in `sums`."""
    assert (
        losses.blocks is not None and losses.is_adaptive is not None and losses.is_hit is not None
    )
    total = torch.zeros(())
    for kind, chosen, weight in zip(
        ("noise", "adaptive"), (~losses.is_adaptive, losses.is_adaptive), weights, strict=True
    ):
        part = losses.blocks[chosen].sum()
        total = total + weight * part
        sums[kind] += part.item()
        sums[f"num_{kind}"] += int(chosen.sum())
        sums[f"{kind}_hits"] += int((losses.is_hit & chosen).sum())
    return total


if __name__ == "__main__":
    main()
