"""Where noise goes in one document: the plan that inline and branch mode share.

Paper: Make Some Noise (arXiv 2406.17404), "ahead noise". A plan is a pure function of (settings,
epoch, the document's token ids): it does not depend on the batch, the worker or the rank.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from draftless.errors import ConfigError
from draftless.noise import NoiseSampler, NoiseSource, hash_ids
from draftless.prompts import IGNORED_LABEL
from draftless.training.block_places import TokenRun, block_places

NoiseMode = Literal["inline", "branch"]


@dataclass(frozen=True)
class NoiseSettings:
    """What noise training sees.

    Attributes:
        mode: `inline` overwrites one run of every response (the paper); `branch` hangs blocks of
            noise beside the clean sequence, which never sees them.
        length: noise tokens in a run (5 in the paper).
        max_length: None, or runs have a random length from `length` to this.
        source: `prefix` draws from the tokens before the run, `vocabulary` from all ids.
        clean_share: share of documents that get no noise, in [0, 1]; 1 is plain fine-tuning.
        spacing: `branch` only: one block for this many response tokens.
        seed: of everything random here.
    """

    mode: NoiseMode = "inline"
    length: int = 5
    max_length: int | None = None
    source: NoiseSource = "prefix"
    clean_share: float = 0.0
    spacing: int = 6
    seed: int = 0

    def __post_init__(self) -> None:
        if self.mode not in ("inline", "branch"):
            raise ConfigError(f"noise mode {self.mode!r} is unknown; use 'inline' or 'branch'")
        if self.length < 1:
            raise ConfigError(f"noise length is {self.length}; it must be at least 1")
        if self.max_length is not None and self.max_length < self.length:
            raise ConfigError(f"max_length {self.max_length} is below length {self.length}")
        if not 0.0 <= self.clean_share <= 1.0:
            raise ConfigError(f"clean_share is {self.clean_share}; it must lie in [0, 1]")
        if self.spacing < 1:
            raise ConfigError(f"spacing is {self.spacing}; it must be at least 1")


@dataclass(frozen=True)
class NoisePlanner:
    """Plans the noise runs of documents.

    Attributes:
        settings: mode, length, source and shares.
        special_ids: ids that are neither overwritten nor drawn.
        vocab_size: needed where the source is `vocabulary`.
    """

    settings: NoiseSettings
    special_ids: frozenset[int] = frozenset()
    vocab_size: int | None = None
    _sampler: NoiseSampler = field(init=False, repr=False)

    def __post_init__(self) -> None:
        sampler = NoiseSampler(self.settings.source, self.vocab_size, self.special_ids)
        object.__setattr__(self, "_sampler", sampler)

    def plan(self, ids: Sequence[int], labels: Sequence[int], epoch: int) -> list[TokenRun]:
        """Noise runs of one document, in order of their places.

        Args:
            ids: the document's token ids.
            labels: of equal length; -100 outside the responses.
            epoch: every epoch draws anew.

        Returns:
            At most one run inline, several in branch mode; none where the dice or a response that
            is too short says so.
        """
        generator = np.random.default_rng(hash_ids(self.settings.seed, epoch, ids=ids))
        if generator.random() < self.settings.clean_share:
            return []
        place = self._inline_places if self.settings.mode == "inline" else self._branch_places
        runs = []
        for start, length in place(ids, labels, generator):
            drawn = self._sampler.draw(ids[:start], length, generator)
            if drawn:
                runs.append(TokenRun(start, tuple(drawn)))
        return runs

    def _draw_length(self, generator: np.random.Generator) -> int:
        longest = self.settings.max_length or self.settings.length
        return int(generator.integers(self.settings.length, longest + 1))

    def _inline_places(
        self, ids: Sequence[int], labels: Sequence[int], generator: np.random.Generator
    ) -> list[tuple[int, int]]:
        """One uniform place whose run lies inside a response and leaves its last token alone."""
        length = self._draw_length(generator)
        starts = []
        clean = 0  # length of the stretch of response tokens that ends here
        for index, (token, label) in enumerate(zip(ids, labels, strict=True)):
            if label != IGNORED_LABEL and clean >= length:
                starts.append(index - length)
            clean = clean + 1 if label != IGNORED_LABEL and token not in self.special_ids else 0
        if not starts:
            return []
        return [(starts[int(generator.integers(len(starts)))], length)]

    def _branch_places(
        self, ids: Sequence[int], labels: Sequence[int], generator: np.random.Generator
    ) -> list[tuple[int, int]]:
        """One block in every stretch of `spacing` response tokens, none on a special token."""
        return block_places(
            labels,
            self.settings.spacing,
            lambda: self._draw_length(generator),
            generator,
            barred=[token in self.special_ids for token in ids],
        )
