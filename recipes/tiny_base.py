"""Train the base: a language model on prompts and responses of all domains, with layer dropout.

    OMP_NUM_THREADS=1 torchrun --nproc_per_node=2 recipes/tiny_base.py --data D --output O ...

bf16 weights with fp32 masters; Muon for the hidden matrices, AdamW for the rest. Each rank takes
every other micro-batch of one deterministic stream; gradients are summed once a step.
"""

from __future__ import annotations

import argparse
import json
import os
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch
import torch.distributed as dist
from tiny_data import Document, document_stream, read_documents
from tiny_model import compile_for_training, new_model, token_losses
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from draftless.prompts import IGNORED_LABEL
from draftless.training.layer_dropout import LayerDropout

MICRO_TOKENS = 2048
ROW_LENGTHS = (40, 56, 88, 104, 128, 160, 200, 240, 288, 344, 448, 640, 960, 1856)

Batch = tuple[torch.Tensor, torch.Tensor]  # ids and labels, each [B, T] int64


def to_batch(rows: list[list[int]], length: int) -> Batch:
    ids = torch.zeros(len(rows), length, dtype=torch.int64)
    labels = torch.full((len(rows), length), IGNORED_LABEL)
    for row, document in enumerate(rows):
        ids[row, : len(document)] = labels[row, : len(document)] = torch.tensor(document)
    return ids, labels


def batch_stream(documents: Iterator[tuple[Document, int]]) -> Iterator[Batch]:
    """Micro-batches of rows of like length, of few shapes, because each shape is compiled."""
    buckets: dict[int, list[list[int]]] = {length: [] for length in ROW_LENGTHS}
    for (ids, _), _ in documents:
        ids = ids[: ROW_LENGTHS[-1]]
        length = next(limit for limit in ROW_LENGTHS if len(ids) <= limit)
        buckets[length].append(ids)
        if len(buckets[length]) == max(MICRO_TOKENS // length, 1):
            yield to_batch(buckets[length], length)
            buckets[length] = []


def batch_losses(
    model: LlamaForCausalLM, batch: Batch, exits: EarlyExits | None
) -> tuple[torch.Tensor, torch.Tensor]:  # [B * T] fp32, and the sum of the exit's losses
    ids, labels = batch
    hidden = model.model(input_ids=ids, use_cache=False).last_hidden_state.flatten(0, 1)
    shifted = torch.cat([labels[:, 1:], torch.full_like(labels[:, :1], IGNORED_LABEL)], dim=1)
    losses = token_losses(hidden, model.lm_head.weight, shifted.flatten())
    if exits is None:
        return losses, torch.zeros(())
    return losses, exits.loss(hidden, shifted.flatten())


class EarlyExits:
    """LayerSkip's second ingredient (arXiv 2404.16710, section 3.2): layers learn to be the last one.

    Each step one of the first layers learns, through the model's own final norm and head, the
    distribution of the whole model on a quarter of the tokens. (The paper learns the labels; a draft
    has to hit what the model will say.)
    """

    def __init__(self, model: LlamaForCausalLM, last: int) -> None:
        self._model = model
        self._last = last
        self._exit = 0
        self._hidden = torch.empty(0)
        for index, layer in enumerate(model.model.layers):
            layer.register_forward_hook(partial(self._take, index))

    def choose(self, step: int) -> None:
        """The exit of a step: layers 2 to `last` in turn."""
        self._exit = 1 + step % (self._last - 1)

    def _take(self, index: int, _: object, __: object, output: torch.Tensor) -> None:
        if index == self._exit:
            self._hidden = output

    def loss(self, final: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        places = (labels != IGNORED_LABEL).nonzero()[:, 0]
        chosen = places[torch.randperm(len(places))[: len(places) // 4]]
        head = self._model.lm_head.weight
        with torch.no_grad():
            teacher = (final[chosen] @ head.t()).float().softmax(-1)
        hidden = self._model.model.norm(self._hidden.flatten(0, 1)[chosen])
        logits = (hidden @ head.t()).float()
        return -4.0 * (teacher * logits.log_softmax(-1)).sum()


class MasterOptimizer:
    """fp32 masters of a bf16 model: Muon for hidden matrices, AdamW for embeddings and norms.

    Muon's iterations cost a fifth of a step, so each rank updates its share of the matrices and
    the bf16 results are summed together; a rank's other masters are stale and unused.
    """

    def __init__(
        self, model: LlamaForCausalLM, args: argparse.Namespace, rank: int, world: int
    ) -> None:
        self.params = list(model.parameters())
        self.masters = [p.detach().float().clone().requires_grad_() for p in self.params]
        names = [name for name, _ in model.named_parameters()]
        matrices = [i for i, n in enumerate(names) if self.params[i].ndim == 2 and "embed" not in n]
        self.mine = set(matrices[rank::world])
        self.theirs = set(matrices) - self.mine
        others = [m for i, m in enumerate(self.masters) if i not in set(matrices)]
        mine = [self.masters[i] for i in sorted(self.mine)]
        if args.optimizer == "muon":
            self.optimizers: list[torch.optim.Optimizer] = [
                torch.optim.Muon(
                    mine, lr=args.muon_lr, weight_decay=0.05, adjust_lr_fn="match_rms_adamw"
                )
            ]
        else:
            self.optimizers = [
                torch.optim.AdamW(mine, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0)
            ]
        self.optimizers.append(
            torch.optim.AdamW(others, lr=args.lr, betas=(0.9, 0.95), weight_decay=0.0)
        )
        self.base_lrs = [group["lr"] for o in self.optimizers for group in o.param_groups]

    def step(self, num_targets: int, lr_scale: float) -> float:
        """Sum gradients over ranks, clip, update; returns the gradient norm."""
        flat = torch.cat(
            [
                (torch.zeros_like(p) if p.grad is None else p.grad).float().flatten()
                for p in self.params
            ]
        )
        if dist.is_initialized():
            dist.all_reduce(flat)
        flat /= num_targets
        norm = flat.norm().item()
        flat *= min(1.0, 1.0 / (norm + 1e-6))
        sizes = [m.numel() for m in self.masters]
        for index, grad in enumerate(flat.split(sizes)):
            if index not in self.theirs:
                self.masters[index].grad = grad.view_as(self.masters[index])
        groups = [group for optimizer in self.optimizers for group in optimizer.param_groups]
        for group, lr in zip(groups, self.base_lrs, strict=True):
            group["lr"] = lr * lr_scale
        for optimizer in self.optimizers:
            optimizer.step()
        self.publish()
        return norm

    @torch.no_grad()
    def publish(self) -> None:
        """Write the masters to the bf16 weights of all ranks."""
        for index, (parameter, master) in enumerate(zip(self.params, self.masters, strict=True)):
            parameter.grad = None
            if index in self.theirs:
                parameter.zero_()
            else:
                parameter.copy_(master)
        if self.theirs:
            shared = [self.params[i] for i in sorted(self.mine | self.theirs)]
            flat = torch.cat([parameter.flatten() for parameter in shared])
            dist.all_reduce(flat)
            for parameter, values in zip(
                shared, flat.split([p.numel() for p in shared]), strict=True
            ):
                parameter.copy_(values.view_as(parameter))

    def state_dict(self) -> dict[str, object]:
        return {"masters": self.masters, "optimizers": [o.state_dict() for o in self.optimizers]}

    def load_state_dict(self, state: dict[str, list]) -> None:
        with torch.no_grad():
            for master, saved in zip(self.masters, state["masters"], strict=True):
                master.copy_(saved)
        for optimizer, saved in zip(self.optimizers, state["optimizers"], strict=True):
            optimizer.load_state_dict(saved)
        self.publish()


def newest_state(output: Path, world: int) -> int | None:
    """The last step that every rank has saved."""
    steps = [int(file.name.split("-")[1]) for file in output.glob("state-*-0.pt")]
    whole = [s for s in steps if all((output / f"state-{s}-{r}.pt").exists() for r in range(world))]
    return max(whole, default=None)


def save_state(masters: MasterOptimizer, output: Path, step: int, rank: int) -> None:
    temporary = output / f"state-{rank}.tmp"
    torch.save(masters.state_dict(), temporary)
    temporary.replace(output / f"state-{step}-{rank}.pt")
    for file in output.glob(f"state-*-{rank}.pt"):
        if int(file.name.split("-")[1]) < step - 200:
            file.unlink()


def lr_scale(step: int, num_steps: int) -> float:
    """Linear warm-up, constant, then linear to nothing over the second half."""
    num_warmup = max(10, num_steps // 25)
    return min((step + 1) / num_warmup, 1.0, 2.0 * (num_steps - step) / num_steps)


def parse_args() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--tokenizer", type=Path, required=True)
    parser.add_argument("--output", type=Path, required=True)
    parser.add_argument("--init", type=Path, help="weights to go on from; else a new model")
    parser.add_argument("--layers", type=int, default=12, help="of a new model")
    parser.add_argument("--hidden", type=int, default=384, help="of a new model")
    parser.add_argument("--skip-steps", type=int, default=0, help="of data that --init has seen")
    parser.add_argument("--steps", type=int, required=True)
    parser.add_argument("--micro-batches", type=int, default=8, help="per step, over all ranks")
    parser.add_argument("--optimizer", choices=("muon", "adamw"), default="muon")
    parser.add_argument("--lr", type=float, default=3e-3)
    parser.add_argument("--muon-lr", type=float, default=4e-3)
    parser.add_argument("--layer-dropout", type=float, default=0.4)
    parser.add_argument("--exits", type=int, default=0, help="last layer that learns to be one")
    parser.add_argument("--exit-weight", type=float, default=0.5)
    parser.add_argument("--save-every", type=int, default=100)
    return parser.parse_args()


def train_step(
    model: LlamaForCausalLM,
    masters: MasterOptimizer,
    batches: list[Batch],
    scale: float,
    exits: tuple[EarlyExits, float] | None,
) -> dict[str, float]:
    """One update from this step's micro-batches, of which this rank computes its share."""
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    # Sorted by row length, neighbours cost alike, so the ranks finish together.
    batches = sorted(batches, key=lambda batch: batch[0].shape[1])
    num_targets = sum(int((labels[:, 1:] >= 0).sum()) for _, labels in batches)
    sums = torch.zeros(2)
    early, weight = exits or (None, 0.0)
    for batch in batches[rank::world]:
        losses, exit_loss = batch_losses(model, batch, early)
        (losses.sum() + weight * exit_loss).backward()
        sums += torch.stack([losses.detach().sum(), exit_loss.detach()])
    if dist.is_initialized():
        dist.all_reduce(sums)
    norm = masters.step(num_targets, scale)
    loss, exit_loss = (sums / num_targets).tolist()
    row = {"loss": loss, "norm": norm, "tokens": num_targets}
    return row if early is None else {**row, "exit_loss": exit_loss}


def main() -> None:
    args = parse_args()
    torch.set_num_threads(1)
    rank, world = int(os.environ.get("RANK", 0)), int(os.environ.get("WORLD_SIZE", 1))
    if world > 1:
        dist.init_process_group("gloo")
    args.output.mkdir(parents=True, exist_ok=True)
    documents = read_documents(args.data, "train", args.tokenizer, args.tokenizer.parent)
    if args.init:
        model = AutoModelForCausalLM.from_pretrained(args.init, dtype=torch.bfloat16).train()
    else:
        model = new_model(0, args.layers, args.hidden).to(torch.bfloat16)
    masters = MasterOptimizer(model, args, rank, world)
    first = newest_state(args.output, world) or 0
    if first:
        masters.load_state_dict(
            torch.load(args.output / f"state-{first}-{rank}.pt", weights_only=True)
        )
    compile_for_training(model)
    dropout = LayerDropout(model.model.layers, args.layer_dropout)
    exits = (EarlyExits(model, args.exits), args.exit_weight) if args.exits else None

    batches = batch_stream(document_stream(documents, seed=0, prompt_weight=1.0))
    for _ in range((args.skip_steps + first) * args.micro_batches):
        next(batches)
    begun = time.perf_counter()
    with (args.output / f"log-{rank}.jsonl").open("a") as log:
        for step in range(first, args.steps):
            chosen = [next(batches) for _ in range(args.micro_batches)]
            if exits is not None:
                torch.manual_seed(step)  # of the places; a resumed run chooses the same ones
                exits[0].choose(step)
            with dropout.skipped(step):
                row = train_step(model, masters, chosen, lr_scale(step, args.steps), exits)
            if (step + 1) % args.save_every == 0 or step + 1 == args.steps:
                save_state(masters, args.output, step + 1, rank)
            row = {"step": step, **row, "time_s": round(time.perf_counter() - begun, 1)}
            print(json.dumps(row), file=log, flush=True)
    if rank == 0:
        model.save_pretrained(args.output / "model")
        AutoTokenizer.from_pretrained(args.tokenizer).save_pretrained(args.output / "model")
    if world > 1:
        dist.barrier()
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
