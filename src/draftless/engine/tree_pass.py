"""One forward pass over a tree per row: what a model is told of it, made when it is asked for."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch

from draftless.engine.cache import KVCache
from draftless.engine.masks import MaskBuilder
from draftless.layout import TreeLayout


class TreePass:
    """Makes the cache ready for a pass and describes it: `R` rows, padded to `W` tokens each.

    A model's own code reads tensors; compiled passes with our own attention read trees and make no masks.

    Args:
        cache: its lengths stay until `commit`.
        rows: of the cache.
        token_ids: of the nodes of each row's tree.
        layouts: of these trees.
        masks: builds the masks.
        width: at least so many tokens a row; what is missing is padded.
        is_strict: where attention is torch's it goes node by node (`compiled/strict.py`).
    """

    def __init__(
        self,
        cache: KVCache,
        rows: slice,
        token_ids: Sequence[Sequence[int]],
        layouts: Sequence[TreeLayout],
        masks: MaskBuilder,
        width: int = 0,
        *,
        is_strict: bool = False,
    ) -> None:
        self.cache = cache
        self.rows = rows
        self.token_ids = token_ids
        self.layouts = layouts
        self.width = max(width, *map(len, token_ids))
        self.lengths = cache.lengths[rows]
        self.is_strict = is_strict
        self._masks = masks
        cache.reserve(max(self.lengths) + self.width)
        self._context = cache.append(rows, self.width)

    @property
    def num_tokens(self) -> int:
        """Of all rows, padding included."""
        return len(self.lengths) * self.width

    @property
    def windows(self) -> Sequence[int | None]:
        """Per type of layer its sliding window, or None."""
        return self._masks.windows

    @cached_property
    def tensors(self) -> tuple[torch.Tensor, torch.Tensor]:  # [R, W] int64 each
        """Tokens and their positions, in one copy to the device; padding is zeros."""
        width = self.width
        token_ids = [[*ids, *[0] * (width - len(ids))] for ids in self.token_ids]
        positions = [
            [*(length + depth for depth in layout.depths), *[0] * (width - layout.num_nodes)]
            for length, layout in zip(self.lengths, self.layouts, strict=True)
        ]
        both = torch.tensor([token_ids, positions], device=self.cache.shape.device)
        return both[0], both[1]

    @cached_property
    def masks(self) -> dict[str, torch.Tensor]:
        """Per type of layer the additive mask `[R, 1, G*W, C]`."""
        return self._masks.masks(self.lengths, self.layouts, self.width, self._context)

    def keywords(self, cache_keyword: str) -> dict[str, Any]:
        """How a `transformers` model is told of the pass; `cache_keyword` names its cache."""
        token_ids, positions = self.tensors
        masks = self.masks
        return {
            "input_ids": token_ids,
            "position_ids": positions,
            "attention_mask": masks if len(masks) > 1 else next(iter(masks.values())),
            cache_keyword: self.cache.adapter,
            "use_cache": True,
        }
