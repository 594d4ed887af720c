"""Branch mode: blocks of noise beside the clean sequence, which never sees them.

A row of T tokens grows to T + K. Clean tokens keep their places, positions and mask, so for the
same weights they compute exactly what they would compute alone. A noise token of a block that
starts at place s sees the clean tokens before s and the earlier tokens of its block: what TR-Jacobi
decoding feeds after a root at s - 1. (The visibility is that of SDSAT's blocks, arXiv 2403.18647.)
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from draftless.prompts import IGNORED_LABEL
from draftless.training.block_places import TokenRun

_PADDING = -1


@dataclass
class BranchRow:
    """One row under construction: documents side by side, then the blocks of all of them.

    Attributes:
        ids: token ids.
        positions: position of each token.
        targets: label of the *next* place, already shifted; -100 for none.
        documents: number of the document that each token belongs to; -1 is padding.
        blocks: number of the block of a noise token; -1 for clean tokens.
        limits: row index of the last clean token that each token sees.
    """

    ids: list[int] = field(default_factory=list)
    positions: list[int] = field(default_factory=list)
    targets: list[int] = field(default_factory=list)
    documents: list[int] = field(default_factory=list)
    blocks: list[int] = field(default_factory=list)
    limits: list[int] = field(default_factory=list)

    def __len__(self) -> int:
        return len(self.ids)

    def add_document(self, ids: Sequence[int], labels: Sequence[int], document: int) -> None:
        """Append the clean tokens of one document."""
        start = len(self)
        self.ids += ids
        self.positions += range(len(ids))
        self.targets += [*labels[1:], IGNORED_LABEL]
        self.documents += [document] * len(ids)
        self.blocks += [-1] * len(ids)
        self.limits += range(start, start + len(ids))

    def add_block(
        self, run: TokenRun, labels: Sequence[int], document: int, offset: int, block: int
    ) -> None:
        """Append a noise block to a document whose clean tokens begin at row index `offset`."""
        length = len(run.token_ids)
        self.ids += run.token_ids
        self.positions += range(run.start, run.start + length)
        self.targets += labels[run.start + 1 : run.start + 1 + length]
        self.documents += [document] * length
        self.blocks += [block] * length
        self.limits += [offset + run.start - 1] * length

    def add_padding(self, count: int, pad_id: int) -> None:
        """Append tokens that see themselves alone and have no target."""
        start = len(self)
        self.ids += [pad_id] * count
        self.positions += [0] * count
        self.targets += [IGNORED_LABEL] * count
        self.documents += [_PADDING] * count
        self.blocks += [-1] * count
        self.limits += range(start, start + count)


def branch_mask(rows: Sequence[BranchRow]) -> torch.Tensor:  # [B, 1, N, N] bool
    """Attention mask of rows of equal length N; true where the row's token sees the column's."""
    documents = torch.tensor([row.documents for row in rows])  # [B, N]
    blocks = torch.tensor([row.blocks for row in rows])
    limits = torch.tensor([row.limits for row in rows])
    index = torch.arange(documents.shape[1])
    same_document = documents[:, :, None] == documents[:, None, :]
    is_clean = blocks[:, None, :] < 0
    sees_clean = is_clean & (index <= limits[:, :, None])
    same_block = (blocks[:, :, None] == blocks[:, None, :]) & ~is_clean
    sees_block = same_block & (index <= index[:, None])
    is_token = (documents != _PADDING)[:, None, :]
    # A row that sees nothing would be NaN, and sdpa leaks NaN from masked slots too.
    mask = (same_document & is_token & (sees_clean | sees_block)) | torch.eye(
        len(index), dtype=torch.bool
    )
    return mask[:, None]


def block_depths(rows: Sequence[BranchRow]) -> torch.Tensor:  # [B, N] int64
    """Place of each noise token within its block, from 1 on; 0 for clean tokens and padding."""
    depths = []
    for row in rows:
        line: list[int] = []
        previous = -1
        for block in row.blocks:
            same = block >= 0 and block == previous
            line.append(0 if block < 0 else line[-1] + 1 if same else 1)
            previous = block
        depths.append(line)
    return torch.tensor(depths)


def clean_twins(rows: Sequence[BranchRow]) -> torch.Tensor:  # [B, N] int64
    """Index in its row of the clean token at each noise token's place; -1 for clean tokens.

    The two predict the same next token; only the clean one has seen the tokens between.
    """
    depths = block_depths(rows)
    limits = torch.tensor([row.limits for row in rows])
    return torch.where(depths > 0, limits + depths, -1)


def branch_batch(rows: Sequence[BranchRow]) -> dict[str, torch.Tensor]:
    """Tensors of rows of equal length N: ids, positions, mask and shifted labels.

    `labels` repeats `shift_labels` one place later, because trainers count targets in one of the two.
    """
    targets = torch.tensor([row.targets for row in rows])  # [B, N]
    labels = torch.full_like(targets, IGNORED_LABEL)
    labels[:, 1:] = targets[:, :-1]
    return {
        "input_ids": torch.tensor([row.ids for row in rows]),
        "position_ids": torch.tensor([row.positions for row in rows]),
        "attention_mask": branch_mask(rows),
        "labels": labels,
        "shift_labels": targets,
    }
