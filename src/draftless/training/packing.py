"""From documents to rows: padding, and packing several documents into one row."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from draftless.prompts import IGNORED_LABEL

Document = Mapping[str, Sequence[int]]  # input_ids and labels of equal length


def pack_documents(documents: Sequence[Document], row_len: int) -> list[dict[str, list[int]]]:
    """Fill rows of at most `row_len` tokens with whole documents, best fit, longest first.

    Args:
        documents: none longer than `row_len`.
        row_len: tokens in a full row.

    Returns:
        Rows of `input_ids`, `labels` and `seq_lengths` (one length per document).
    """
    order = sorted(range(len(documents)), key=lambda i: (-len(documents[i]["input_ids"]), i))
    rows: list[list[int]] = []
    by_space: dict[int, list[int]] = {}  # free tokens -> rows that have so many
    for index in order:
        length = len(documents[index]["input_ids"])
        space = min((free for free in by_space if free >= length), default=None)
        if space is None:
            space, row = row_len, len(rows)
            rows.append([])
        else:
            row = by_space[space].pop()
            if not by_space[space]:
                del by_space[space]
        rows[row].append(index)
        by_space.setdefault(space - length, []).append(row)
    return [
        {
            "input_ids": [token for index in row for token in documents[index]["input_ids"]],
            "labels": [label for index in row for label in documents[index]["labels"]],
            "seq_lengths": [len(documents[index]["input_ids"]) for index in row],
        }
        for row in rows
    ]


@dataclass(frozen=True)
class PaddingCollator:
    """Pads rows on the right; packed rows (`seq_lengths`) get positions that restart.

    Attributes:
        pad_id: fills `input_ids`.
    """

    pad_id: int

    def __call__(self, features: Sequence[Mapping[str, Any]]) -> dict[str, torch.Tensor]:
        """Collate rows of `input_ids` and `labels`.

        Returns:
            `input_ids`, `labels` `[B, T]` int64, and `attention_mask` `[B, T]` int64 or, for packed
            rows, `position_ids` `[B, T]`. Padding of a packed row is documents of one token.
        """
        width = max(len(feature["input_ids"]) for feature in features)
        shape = (len(features), width)
        batch = {
            "input_ids": torch.full(shape, self.pad_id),
            "labels": torch.full(shape, IGNORED_LABEL),
        }
        is_packed = "seq_lengths" in features[0]
        extra = torch.zeros(shape, dtype=torch.int64)
        for row, feature in enumerate(features):
            length = len(feature["input_ids"])
            batch["input_ids"][row, :length] = torch.tensor(feature["input_ids"])
            batch["labels"][row, :length] = torch.tensor(feature["labels"])
            if is_packed:
                lengths = feature["seq_lengths"]
                extra[row, :length] = torch.cat([torch.arange(n) for n in lengths])
                # A document's first token has no context of its own to be predicted from.
                starts = torch.tensor([0, *lengths[:-1]]).cumsum(0)
                batch["labels"][row, starts] = IGNORED_LABEL
            else:
                extra[row, :length] = 1
        batch["position_ids" if is_packed else "attention_mask"] = extra
        return batch
