"""The masks of a tree pass, by type of layer."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from draftless.engine.attention import pack_mask
from draftless.layout import TreeLayout, tree_layout

_FULL = "full_attention"
_SLIDING = "sliding_attention"
_MOST_BYTES = 64 << 20  # of masks that are remembered
_LARGEST_TREE = 128  # nodes; a chunk of a prompt is larger, and not worth remembering


def layer_windows(config: Any) -> dict[str, int | None]:
    """Types of a model's layers and their sliding windows (None: all positions are visible)."""
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        return {_SLIDING if window else _FULL: window}
    return {kind: window if kind == _SLIDING else None for kind in sorted(kinds)}


class MaskBuilder:
    """Builds additive masks for one model.

    Args:
        windows: as `layer_windows` tells.
        groups: query heads that share a KV head, where attention packs them; else 1.
        dtype: of the masks.
        device: where they are wanted.

    Attributes:
        windows: per type of layer.
    """

    def __init__(
        self,
        windows: dict[str, int | None],
        groups: int,
        dtype: torch.dtype,
        device: torch.device,
    ) -> None:
        self._windows = windows
        self.windows = tuple(windows.values())
        self._groups = groups
        self._dtype = dtype
        self._device = device
        self._trees: dict[tuple[int, ...], torch.Tensor] = {}
        self._num_bytes = 0

    def masks(
        self, lengths: Sequence[int], layouts: Sequence[TreeLayout], width: int, context: int
    ) -> dict[str, torch.Tensor]:
        """Per type of layer the additive mask `[R, 1, G*W, C]`."""
        is_whole = len(lengths) == 1 and layouts[0].num_nodes == width  # one row, no padding
        visible: torch.Tensor | None = None  # the same for all types of layers
        masks: dict[str, torch.Tensor] = {}
        for kind, window in self._windows.items():
            if is_whole and (window is None or context <= window):
                masks[kind] = self._of_one_row(layouts[0], lengths[0], context)
                continue
            if visible is None:
                visible = _visible(lengths, layouts, width, context)
            seen = visible
            if window is not None:
                seen = visible & _within(window, lengths, layouts, visible)
            additive = torch.zeros(seen.shape, dtype=self._dtype).masked_fill_(~seen, -torch.inf)
            masks[kind] = pack_mask(additive[:, None].to(self._device), self._groups)
        return masks

    def _of_one_row(self, layout: TreeLayout, length: int, context: int) -> torch.Tensor:
        """The same for one row without padding or window: everything cached, and the tree's own mask."""
        num_queries = layout.num_nodes * self._groups
        mask = torch.zeros((1, 1, num_queries, context), dtype=self._dtype, device=self._device)
        if layout.num_nodes > 1:
            mask[:, :, :, length:] = self._of_tree(layout.parents)
        return mask

    def _of_tree(self, parents: tuple[int, ...]) -> torch.Tensor:  # [1, 1, G*N, N]
        """What the nodes of a tree see of each other; remembered, since trees come back."""
        known = self._trees.get(parents)
        if known is None:
            hidden = ~tree_layout(parents).mask[None, None]
            additive = torch.zeros(hidden.shape, dtype=self._dtype).masked_fill_(hidden, -torch.inf)
            known = pack_mask(additive.to(self._device), self._groups)
            if len(parents) <= _LARGEST_TREE:
                if self._num_bytes + known.nbytes > _MOST_BYTES:
                    self._trees.clear()
                    self._num_bytes = 0
                self._trees[parents] = known
                self._num_bytes += known.nbytes
        return known


def _visible(
    lengths: Sequence[int], layouts: Sequence[TreeLayout], width: int, context: int
) -> torch.Tensor:  # [R, W, C] bool
    visible = torch.zeros((len(lengths), width, context), dtype=torch.bool)
    for row, (length, layout) in enumerate(zip(lengths, layouts, strict=True)):
        num_nodes = layout.num_nodes
        visible[row, :num_nodes, :length] = True
        visible[row, :num_nodes, length : length + num_nodes] = layout.mask
        for node in range(num_nodes, width):  # padding sees itself: no row may see nothing
            visible[row, node, length + node] = True
    return visible


def _within(
    window: int,
    lengths: Sequence[int],
    layouts: Sequence[TreeLayout],
    visible: torch.Tensor,  # [R, W, C] bool
) -> torch.Tensor:  # [R, W, C] bool
    """True where the slot's position is less than `window` behind the node's position."""
    _, width, context = visible.shape
    slots = torch.arange(context)
    inside = torch.ones_like(visible)
    for row, (length, layout) in enumerate(zip(lengths, layouts, strict=True)):
        num_nodes = min(layout.num_nodes, width)
        queries = layout.depth_tensor + length
        keys = slots.clone()
        keys[length : length + num_nodes] = queries
        inside[row, :num_nodes] = queries[:, None] - keys[None] < window
    return inside
