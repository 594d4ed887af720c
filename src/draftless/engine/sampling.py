"""The target's own token at a node: processors, warping, and the keyed Gumbel draw.

Everything is lazy along the walk (DESIGN 2): a node that the walk does not reach costs nothing.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from draftless.engine.processors import make_processors, make_rare_warpers
from draftless.errors import ConfigError
from draftless.noise import KeyedNoise
from draftless.params import SamplingParams
from draftless.types import Row

_TOP_P_CANDIDATES = (64, 512)
"""How many tokens the fast top-p looks at before it falls back to the whole vocabulary."""

_NOTHING_LEFT = (
    "the options exclude every token at position {position}: look at bad_words_ids, suppress_tokens, "
    "prefix_allowed_tokens_fn and your own logits_processors"
)


def lowest_argmax(scores: torch.Tensor) -> int:
    """Index of the largest of `scores [V]`; the lowest index on ties (torch promises none)."""
    if scores.device.type == "cpu":
        return int(scores.numpy().argmax())
    return int((scores == scores.max()).nonzero()[0])


class PositionNoise:
    """Keyed noise over a vocabulary, remembered per position.

    A draft looks at the noise of the positions that it proposes for; the target's draws then need
    the same vectors, so remembering makes that look free.
    """

    def __init__(self, keyed: KeyedNoise, vocab_size: int, device: torch.device) -> None:
        self._keyed = keyed
        self._ids = torch.arange(vocab_size, device=device)
        self._known: dict[int, torch.Tensor] = {}

    def __call__(
        self,
        position: int | Sequence[int],
        token_ids: torch.Tensor | None = None,  # [n] or [m, n] int64; None: the whole vocabulary
    ) -> torch.Tensor:  # float64, [n], [m, n], [V] or [m, V]
        """Noise at one position, or at `m` positions, of the given ids or of all."""
        if token_ids is not None:
            known = self._known.get(position) if isinstance(position, int) else None
            return self._keyed(position, token_ids) if known is None else known[token_ids]
        if not isinstance(position, int):
            return torch.stack([self(one) for one in position])
        if position not in self._known:
            self._known[position] = self._keyed(position, self._ids)
        return self._known[position]

    def forget_before(self, position: int) -> None:
        """Drop what can no longer be asked for."""
        for old in [p for p in self._known if p < position]:
            del self._known[old]


class TokenSampler:
    """Draws for one request. `bind` the logits of a tree, then `draw` along the walk."""

    def __init__(self, row: Row, eos_token_ids: Sequence[int], device: torch.device) -> None:
        params = row.params
        self._row = row
        self._params = params
        self._processors = (
            make_processors(params, row.prompt_len, eos_token_ids, device)
            if params.has_processors
            else None
        )
        self._rare = (
            make_rare_warpers(params, device)
            if params.has_rare_warpers and not params.is_greedy
            else None
        )
        self._logits = torch.empty(0)

    def bind(self, logits: torch.Tensor) -> None:
        """Take the logits `[N, V]` of the tree that will be walked next."""
        self._logits = logits

    def draw(self, node: int, path_ids: Sequence[int]) -> int:
        """The target's token after the committed ids and `path_ids`, from `node`'s logits.

        Raises:
            ConfigError: the request's own options leave no token that could be drawn.
        """
        logits = self._logits[node]
        scores = logits.to(torch.promote_types(logits.dtype, torch.float32))
        prefix: torch.Tensor | None = None
        if self._processors is not None or self._rare is not None:
            ids = [*self._row.token_ids, *path_ids]
            prefix = torch.tensor([ids], device=scores.device)
        if self._processors is not None:
            scores = self._processors(prefix, scores[None].clone())[0]
            if bool(torch.isneginf(scores).all()):
                raise ConfigError(_NOTHING_LEFT.format(position=len(ids)))
        if self._row.noise is None:
            return lowest_argmax(scores)
        if self._rare is not None:
            scores = self._rare(prefix, scores[None].clone())[0]
            kept: torch.Tensor | None = scores.isfinite().nonzero()[:, 0]
            scores = scores[kept]
        else:
            scores, kept = warp(scores, self._params)
        position = len(self._row.token_ids) + len(path_ids)
        noisy = scores.double() + self._row.noise(position, kept)
        choice = lowest_argmax(noisy)
        return choice if kept is None else int(kept[choice])


def warp(
    scores: torch.Tensor,  # [V] float32 or float64
    params: SamplingParams,
) -> tuple[torch.Tensor, torch.Tensor | None]:
    """Temperature, top-k, top-p and min-p, in this order, as `transformers`' warpers do.

    A full sort is avoided: top-p looks at the most likely tokens first and falls back to all of
    them only if these do not hold the mass.

    Returns:
        The kept scores `[n]`, divided by the temperature, and their ids `[n]` int64, or None for
        the ids if everything is kept.
    """
    scaled = scores / params.temperature
    if not params.top_k and params.top_p >= 1.0 and not params.min_p:
        return scaled, None
    if params.top_k:
        threshold = scaled.topk(min(params.top_k, scaled.shape[0])).values[-1]
        ids = (scaled >= threshold).nonzero()[:, 0]
        kept = scaled[ids]
    else:
        ids, kept = None, scaled
    if params.top_p < 1.0:
        kept, ids = _top_p(kept, ids, params.top_p)
    if params.min_p:
        inside = kept >= kept.max() + torch.log(torch.tensor(params.min_p, dtype=kept.dtype))
        kept = kept[inside]
        ids = inside.nonzero()[:, 0] if ids is None else ids[inside]
    return kept, ids


def _top_p(
    scores: torch.Tensor, ids: torch.Tensor | None, top_p: float
) -> tuple[torch.Tensor, torch.Tensor]:
    """Keep each token before which less than `top_p` of the mass lies, the most likely first."""
    total = scores.logsumexp(0)
    for count in (*_TOP_P_CANDIDATES, scores.shape[0]):
        values, order = scores.topk(min(count, scores.shape[0]))
        probabilities = (values - total).double().exp()
        before = probabilities.cumsum(0) - probabilities
        num_kept = int((before < top_p).sum())
        if num_kept < values.shape[0]:
            break
    num_kept = max(num_kept, 1)
    order = order[:num_kept]
    return values[:num_kept], order if ids is None else ids[order]
