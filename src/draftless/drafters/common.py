"""What several drafters share: checks of options, and ranking under the target's noise."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Integral
from typing import Any

import torch

from draftless.errors import ConfigError
from draftless.rank_paths import RankPath, read_template
from draftless.types import Row

_LIKELY = 32  # tokens that compete under the noise when the target truncates its own tail


def check_least(drafter: str, **options: tuple[int, int]) -> None:
    """Refuse options that are no integers or below their least; each is given as `(value, least)`.

    Raises:
        ConfigError: naming the drafter, the option, its value and the limit.
    """
    for name, (value, least) in options.items():
        if not isinstance(value, Integral):
            raise ConfigError(f"{name}={value!r} of {drafter} is no integer")
        if value < least:
            raise ConfigError(f"{name}={value} of {drafter} is below {least}")


def check_adaptive_ids(drafter: str, ids: Sequence[int], vocab_size: int | None) -> None:
    """Refuse adaptive tokens that are not in the vocabulary (of unknown size: None).

    Raises:
        ConfigError: naming the drafter, the ids and the limits.
    """
    limit = float("inf") if vocab_size is None else vocab_size
    if not all(isinstance(one, Integral) and 0 <= one < limit for one in ids):
        known = "from 0 on" if vocab_size is None else f"0 to {vocab_size - 1}"
        raise ConfigError(
            f"adaptive_ids={list(ids)} of {drafter} are not all ids of the model, which are {known}"
        )


def fitting_template(given: Any, depth: int, top_k: int) -> tuple[RankPath, ...]:
    """A template, see `rank_paths.read_template`.

    Raises:
        ConfigError: it is none, or is deeper or wider than the drafter's guesses.
        ArtifactError: it names a file that cannot be read.
    """
    paths = read_template(given)
    deepest, widest = max(map(len, paths)), max(map(max, paths))
    if deepest > depth or widest >= top_k:
        raise ConfigError(
            f"the template reaches depth {deepest} and rank {widest}, the drafter depth {depth} and "
            f"rank {top_k - 1}; give a larger depth and top_k, or another template"
        )
    return paths


def competing(
    row: Row,
    logits: torch.Tensor,  # [m, V]
    count: int,
    *,
    couple: bool,
    ahead: int = 0,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Scores under which tokens compete for `m` positions of a row, the first `ahead` of the next.

    Greedy, these are the logits. Sampled, they are `logits / T`, and with `couple` the noise of the
    target's own draws at these positions is added (DESIGN 2); where the target truncates its tail,
    only the likeliest tokens (at least `count`) compete then, because none of the tail can win.

    Returns:
        Scores `[m, n]`, and the ids `[m, n]` that they belong to, or None for the vocabulary.
    """
    params = row.params
    if row.noise is None:
        return logits, None
    scores = logits.float() / params.temperature
    if not couple:
        return scores, None
    first = len(row.token_ids) + ahead
    positions = range(first, first + len(scores))
    if not params.is_truncated:
        return scores + row.noise(positions, None), None
    scores, ids = scores.topk(min(max(_LIKELY, count), scores.shape[1]))
    return scores + row.noise(positions, ids), ids


def best_ids(
    scores: torch.Tensor,  # [m, n]
    ids: torch.Tensor | None,  # [m, n]
    count: int,
) -> tuple[torch.Tensor, torch.Tensor]:  # scores and ids, [m, min(count, n)] each
    """The `count` best of what `competing` returns, the best first."""
    best = scores.topk(min(count, scores.shape[1]))
    return best.values, best.indices if ids is None else ids.gather(1, best.indices)
