"""Where SDSAT's adaptive tokens go in one document.

Paper: SDSAT (arXiv 2403.18647), whose training code was never released. A block of k adaptive tokens
after the anchor t stands at the positions t + 1 .. t + k; its slot m predicts the token at t + m + 1,
because t itself predicts t + 1. Blocks hang beside the sequence (`branches`), which never sees them.
A plan is a pure function of (settings, epoch, the document's token ids).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from draftless.errors import ConfigError
from draftless.noise import hash_ids
from draftless.training.block_places import TokenRun, block_places

_SALT = 0x5D5A  # so that blocks do not stand where the noise of the same seed stands


@dataclass(frozen=True)
class AdaptiveSettings:
    """Blocks of adaptive tokens.

    Attributes:
        adaptive_ids: one id that all slots share, or a distinct one for every slot.
        block_length: adaptive tokens in a block (5 and 7 in the paper's checkpoints).
        spacing: one block for this many response tokens.
        seed: of the anchors.
    """

    adaptive_ids: tuple[int, ...]
    block_length: int = 5
    spacing: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        if len(self.adaptive_ids) not in (1, self.block_length):
            raise ConfigError(
                f"{len(self.adaptive_ids)} adaptive ids for blocks of {self.block_length}; "
                "give one shared id, or as many as a block is long"
            )
        for name in ("block_length", "spacing"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name} is {getattr(self, name)}; it must be at least 1")


@dataclass(frozen=True)
class AdaptivePlanner:
    """Plans the adaptive blocks of documents."""

    settings: AdaptiveSettings

    def plan(self, ids: Sequence[int], labels: Sequence[int], epoch: int) -> list[TokenRun]:
        """Blocks of one document, in order of their places; the anchor stands before each.

        Args:
            ids: the document's token ids.
            labels: of equal length; -100 outside the responses.
            epoch: every epoch draws anew.
        """
        settings = self.settings
        generator = np.random.default_rng(hash_ids(settings.seed, _SALT, epoch, ids=ids))
        places = block_places(labels, settings.spacing, lambda: settings.block_length, generator)
        return [TokenRun(start, self.slots(length)) for start, length in places]

    def slots(self, length: int) -> tuple[int, ...]:
        """The ids of a block's first `length` slots."""
        ids = self.settings.adaptive_ids
        return ids[:length] if len(ids) > 1 else ids * length
