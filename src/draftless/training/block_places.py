"""Where blocks hang in a document: what noise runs and adaptive blocks share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np

from draftless.prompts import IGNORED_LABEL


@dataclass(frozen=True, slots=True)
class TokenRun:
    """Tokens that stand for the places `start`, `start + 1`, ... of one document."""

    start: int
    token_ids: tuple[int, ...]


def block_places(
    labels: Sequence[int],
    spacing: int,
    draw_length: Callable[[], int],
    generator: np.random.Generator,
    barred: Sequence[bool] = (),
) -> list[tuple[int, int]]:
    """Place and length of one block in every stretch of `spacing` response tokens.

    The block's m-th token (m = 0, 1, ...) stands for place start + m and predicts the label of
    start + m + 1, so a block ends where the next place has no label.

    Args:
        labels: of one document; -100 outside the responses.
        spacing: response tokens for one block.
        draw_length: length of the next block, before it is cut.
        generator: draws the place within each stretch.
        barred: places that no block may cover; empty for none.
    """
    reach = [0] * (len(labels) + 1)  # how many tokens a block that starts here can have
    for index in range(len(labels) - 2, -1, -1):
        is_covered = labels[index] != IGNORED_LABEL and not (barred and barred[index])
        if is_covered and labels[index + 1] != IGNORED_LABEL:
            reach[index] = reach[index + 1] + 1
    starts = [index for index in range(1, len(labels)) if reach[index]]
    places = []
    for begin in range(0, len(starts), spacing):
        stretch = starts[begin : begin + spacing]
        # A shorter last stretch gets a block only in proportion, so density is even.
        choice = int(generator.integers(spacing))
        length = draw_length()
        if choice < len(stretch):
            places.append((stretch[choice], min(length, reach[stretch[choice]])))
    return places
