"""A collator that adds what teaches drafting to the batches of any other: noise, adaptive tokens.

Drops into `transformers.Trainer` and TRL's `SFTTrainer`, with plain padding and with packing: it
reads documents off the finished batch, so it needs nothing but ids and labels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from transformers import TrainerCallback

from draftless.errors import ConfigError
from draftless.training.adaptive import AdaptivePlanner, AdaptiveSettings
from draftless.training.adaptive_tokens import highest_id
from draftless.training.block_places import TokenRun
from draftless.training.branches import BranchRow, block_depths, branch_batch, clean_twins
from draftless.training.noise_runs import NoisePlanner, NoiseSettings
from draftless.training.packing import PaddingCollator

Batch = dict[str, Any]
Collator = Callable[[Sequence[Mapping[str, Any]]], Batch]


@dataclass
class DraftCollator:
    """Adds MSN's noise, SDSAT's adaptive blocks, or both to the batches of `inner`.

    What a document gets depends on (seed, epoch, its token ids) alone, so it is the same for any
    number of workers, ranks and any batch size. Register `CollatorEpochs(collator)` as a callback,
    or set `epoch` yourself, or every epoch repeats the first.

    Blocks need a 4-D bool mask: use `attn_implementation="sdpa"` (for eager, which *adds* a mask,
    set `mask_dtype`) and a model without sliding windows.

    Attributes:
        inner: makes clean batches: `input_ids` and `labels` `[B, T]` int64, and either
            `position_ids` that restart at every document (packing), or an `attention_mask`, or
            neither (one document a row).
        noise: decides where noise goes; None for none.
        pad_id: fills rows that have blocks.
        adaptive: decides where adaptive blocks go; None for none.
        mask_dtype: None for a bool mask (sdpa), or a float type for one that is added (eager).
        adds_places: add `block_depths` and `clean_twins` (see `branches`) to a batch with blocks,
            for whoever weighs, teaches or counts their targets; models do not take them.
    """

    inner: Collator
    noise: NoisePlanner | None
    pad_id: int
    adaptive: AdaptivePlanner | None = None
    mask_dtype: torch.dtype | None = None
    adds_places: bool = False
    # Shared memory: workers that outlive an epoch have a copy of everything else.
    _epoch: torch.Tensor = field(
        init=False, repr=False, compare=False,
        default_factory=lambda: torch.zeros((), dtype=torch.int64).share_memory_(),  # type: ignore[no-untyped-call]
    )  # fmt: skip

    @property
    def epoch(self) -> int:
        """Of the run; set in the main process, it is seen by every worker."""
        return int(self._epoch)

    @epoch.setter
    def epoch(self, number: int) -> None:
        self._epoch.fill_(number)

    def __post_init__(self) -> None:
        if self.adaptive is not None and self._is_inline:
            raise ConfigError(
                "adaptive blocks beside inline noise would see the noise as their context; "
                "use noise mode 'branch'"
            )

    @classmethod
    def from_tokenizer(
        cls,
        tokenizer: Any,
        settings: NoiseSettings | None,
        inner: Collator | None = None,
        adaptive: AdaptiveSettings | None = None,
        num_rows: int | None = None,
    ) -> DraftCollator:
        """The usual collator for a tokenizer: its special tokens are never noised nor drawn.

        Nor are ids drawn that stand for no token.

        Args:
            tokenizer: of `transformers`; without a PAD token its EOS pads.
            settings: of the noise; None for none.
            inner: None pads documents of `input_ids` and `labels`.
            adaptive: of the adaptive blocks; None for none.
            num_rows: of the model's embedding, where the tokenizer may have more ids than that.
        """
        pad_id = tokenizer.pad_token_id
        pad_id = tokenizer.eos_token_id if pad_id is None else pad_id
        special_ids = frozenset(tokenizer.all_special_ids)
        if adaptive is not None:  # one of a gap in the tokenizer could be drawn as noise, too
            special_ids |= frozenset(adaptive.adaptive_ids)
        known_ids = set(tokenizer.get_vocab().values())
        size = highest_id(tokenizer) + 1
        size = size if num_rows is None else min(size, num_rows)
        barred_ids = special_ids | frozenset(set(range(size)) - known_ids)
        return cls(
            inner or PaddingCollator(pad_id),
            NoisePlanner(settings, barred_ids, size) if settings else None,
            pad_id,
            AdaptivePlanner(adaptive) if adaptive else None,
        )

    @property
    def _is_inline(self) -> bool:
        return self.noise is not None and self.noise.settings.mode == "inline"

    def plan(self, ids: Sequence[int], labels: Sequence[int]) -> list[TokenRun]:
        """What one document gets in this epoch: runs of noise, then adaptive blocks."""
        planners = [planner for planner in (self.noise, self.adaptive) if planner is not None]
        return [run for planner in planners for run in planner.plan(ids, labels, self.epoch)]

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> Batch:
        """Collate `features` and add noise or blocks.

        Returns:
            The inner batch with noised `input_ids` (inline), or the batch of
            `branches.branch_batch` (blocks).
        """
        batch = self.inner(features)
        is_clean = self.noise is None or self.noise.settings.clean_share == 1.0
        if is_clean and self.adaptive is None:
            return batch
        return self._inline(batch) if self._is_inline else self._branch(batch)

    def in_branches(self, features: Sequence[Mapping[str, Any]]) -> Batch:
        """The same in the form of blocks, also where there are none."""
        return self._branch(self.inner(features))

    def _inline(self, batch: Batch) -> Batch:
        noised = batch["input_ids"].clone()
        for row in range(len(noised)):
            for begin, ids, labels in documents(batch, row):
                for run in self.plan(ids, labels):
                    place = begin + run.start
                    noised[row, place : place + len(run.token_ids)] = torch.tensor(run.token_ids)
        return {**batch, "input_ids": noised}

    def _branch(self, batch: Batch) -> Batch:
        rows = [
            branch_row([(ids, labels) for _, ids, labels in documents(batch, row)], self.plan)
            for row in range(len(batch["input_ids"]))
        ]
        # The last token of every row is padding, so no target is lost when labels are shifted.
        width = max(len(row) for row in rows) + 1
        for row in rows:
            row.add_padding(width - len(row), self.pad_id)
        places = {"block_depths": block_depths(rows), "clean_twins": clean_twins(rows)}
        batch = {**branch_batch(rows), **(places if self.adds_places else {})}
        if self.mask_dtype is not None:
            seen = batch["attention_mask"]
            # The lowest number, not -inf: eager adds the mask in lower precision, too.
            lowest = torch.finfo(self.mask_dtype).min
            batch["attention_mask"] = torch.zeros(seen.shape, dtype=self.mask_dtype).masked_fill_(
                ~seen, lowest
            )
        return batch


def branch_row(
    row_documents: Sequence[tuple[Sequence[int], Sequence[int]]],
    plan: Callable[[Sequence[int], Sequence[int]], list[TokenRun]],
) -> BranchRow:
    """Documents (ids and labels) side by side, then the blocks that `plan` gives them."""
    row = BranchRow()
    offsets = []
    for number, (ids, labels) in enumerate(row_documents):
        offsets.append(len(row))
        row.add_document(ids, labels, number)
    block = 0
    for number, (ids, labels) in enumerate(row_documents):
        for run in plan(ids, labels):
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


class CollatorEpochs(TrainerCallback):
    """Tells the collator which epoch begins, so that every epoch draws anew."""

    def __init__(self, collator: DraftCollator) -> None:
        self.collator = collator

    def on_epoch_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        # A resumed run begins inside an epoch; the rounding of state.epoch must not lose one.
        self.collator.epoch = int((state.epoch or 0.0) + 1e-6)
