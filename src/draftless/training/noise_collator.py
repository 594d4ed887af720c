"""A collator that adds MSN's noise to the batches of any other collator.

Drops into `transformers.Trainer` and TRL's `SFTTrainer`, with plain padding and with packing: it
reads documents off the finished batch, so it needs nothing but ids and labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from transformers import TrainerCallback

from draftless.training.branches import (
    BranchRow,
    branch_batch,
    clean_twins,
    noise_depths,
)
from draftless.training.noise_runs import NoisePlanner, NoiseSettings
from draftless.training.packing import PaddingCollator

Batch = dict[str, Any]
Collator = Callable[[Sequence[Mapping[str, Any]]], Batch]


@dataclass
class NoiseCollator:
    """Adds noise to the batches of `inner`; labels stay clean.

    The noise of a document depends on (seed, epoch, its token ids) alone, so it is the same for any
    number of workers, ranks and any batch size. Register `NoiseEpochs(collator)` as a callback, or
    set `epoch` yourself, or every epoch repeats the noise of the first.

    Branch mode emits a 4-D bool mask: use `attn_implementation="sdpa"` (eager *adds* a mask) and a
    model without sliding windows.

    Attributes:
        inner: makes clean batches: `input_ids` and `labels` `[B, T]` int64, and either
            `position_ids` that restart at every document (packing), or an `attention_mask`, or
            neither (one document a row).
        planner: decides where noise goes.
        pad_id: fills rows in branch mode.
        epoch: of the run.
        adds_places: branch mode adds `noise_depths` and `clean_twins` (see `branches`) to the
            batch, for whoever weighs, teaches or counts noise targets; models do not take them.
    """

    inner: Collator
    planner: NoisePlanner
    pad_id: int
    epoch: int = 0
    adds_places: bool = False

    @classmethod
    def from_tokenizer(
        cls, tokenizer: Any, settings: NoiseSettings, inner: Collator | None = None
    ) -> NoiseCollator:
        """The usual collator for a tokenizer: its special tokens are never noised nor drawn.

        Args:
            tokenizer: of `transformers`; without a PAD token its EOS pads.
            settings: of the noise.
            inner: None pads documents of `input_ids` and `labels`.
        """
        pad_id = tokenizer.pad_token_id
        pad_id = tokenizer.eos_token_id if pad_id is None else pad_id
        planner = NoisePlanner(settings, frozenset(tokenizer.all_special_ids), len(tokenizer))
        return cls(inner or PaddingCollator(pad_id), planner, pad_id)

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> Batch:
        """Collate `features` and add the noise.

        Returns:
            The inner batch with noised `input_ids` (inline), or the batch of
            `branches.branch_batch` (branch).
        """
        batch = self.inner(features)
        if self.planner.settings.clean_share == 1.0:
            return batch
        return (
            self._inline(batch) if self.planner.settings.mode == "inline" else self._branch(batch)
        )

    def _inline(self, batch: Batch) -> Batch:
        noised = batch["input_ids"].clone()
        for row in range(len(noised)):
            for begin, ids, labels in documents(batch, row):
                for run in self.planner.plan(ids, labels, self.epoch):
                    place = begin + run.start
                    noised[row, place : place + len(run.token_ids)] = torch.tensor(run.token_ids)
        return {**batch, "input_ids": noised}

    def _branch(self, batch: Batch) -> Batch:
        rows = [
            branch_row(
                [(ids, labels) for _, ids, labels in documents(batch, row)],
                self.planner,
                self.epoch,
            )
            for row in range(len(batch["input_ids"]))
        ]
        # The last token of every row is padding, so no target is lost when labels are shifted.
        width = max(len(row) for row in rows) + 1
        for row in rows:
            row.add_padding(width - len(row), self.pad_id)
        places = {"noise_depths": noise_depths(rows), "clean_twins": clean_twins(rows)}
        return {**branch_batch(rows), **(places if self.adds_places else {})}


def branch_row(
    row_documents: Sequence[tuple[Sequence[int], Sequence[int]]],
    planner: NoisePlanner,
    epoch: int,
) -> BranchRow:
    """Documents (ids and labels) side by side, then the blocks that the planner gives them."""
    row = BranchRow()
    offsets = []
    for number, (ids, labels) in enumerate(row_documents):
        offsets.append(len(row))
        row.add_document(ids, labels, number)
    block = 0
    for number, (ids, labels) in enumerate(row_documents):
        for run in planner.plan(ids, labels, epoch):
            row.add_block(run, labels, number, offsets[number], block)
            block += 1
    return row


def documents(batch: Batch, row: int) -> Iterator[tuple[int, list[int], list[int]]]:
    """(place in the row, ids, labels) of every document of a clean batch's row."""
    ids, labels = batch["input_ids"][row], batch["labels"][row]
    if "position_ids" in batch:
        starts = (batch["position_ids"][row] == 0).nonzero().flatten().tolist()
        spans = list(zip(starts, [*starts[1:], len(ids)], strict=True))
    elif batch.get("attention_mask") is not None:
        places = batch["attention_mask"][row].nonzero().flatten().tolist()
        spans = [(places[0], places[-1] + 1)] if places else []
    else:
        spans = [(0, len(ids))]
    for begin, end in spans:
        yield begin, ids[begin:end].tolist(), labels[begin:end].tolist()


class NoiseEpochs(TrainerCallback):
    """Tells the collator which epoch begins, so that every epoch draws new noise."""

    def __init__(self, collator: NoiseCollator) -> None:
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        # A resumed run begins inside an epoch; the rounding of state.epoch must not lose one.
        self.collator.epoch = int((state.epoch or 0.0) + 1e-6)
