"""The target's own token at a node: processors, warping, and the keyed Gumbel draw.

On a CPU everything is lazy along the walk and done by numpy, whose calls are cheaper than torch's
(DESIGN 2): a node that the walk does not reach costs nothing. On an accelerator the nodes of a tree
are drawn at once and fetched in one copy, because each question to it costs more than the work.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch

from draftless.engine.likeliest import largest
from draftless.engine.processors import make_processors, make_rare_warpers
from draftless.engine.warping import warp, warp_block
from draftless.errors import ConfigError
from draftless.types import Row

_NOTHING_LEFT = (
    "the options exclude every token at position {position}: look at bad_words_ids, suppress_tokens, "
    "no_repeat_ngram_size, prefix_allowed_tokens_fn and your own logits_processors"
)
_NOT_A_NUMBER = (
    "the logits processors give NaN at position {position}, from which no token can be drawn: look at "
    "your own logits_processors"
)
_NO_IDS = torch.empty((1, 0), dtype=torch.long)  # the rare warpers look at scores alone


def lowest_argmax(scores: torch.Tensor) -> int:
    """Index of the largest of `scores [V]` on a CPU; the lowest index on ties."""
    return int(scores.numpy().argmax())


def lowest_argmax_of_rows(scores: torch.Tensor) -> torch.Tensor:
    """Index of the largest of each row of `scores [N, V]`, `[N]` int64; the lowest on ties."""
    last = scores.shape[1] - 1
    ids = torch.arange(last + 1, device=scores.device)
    is_best = scores == scores.amax(1, keepdim=True)
    return ids.expand_as(scores).masked_fill(~is_best, last).amin(1)


class TokenSampler:
    """Draws for one request. `bind` the logits of a tree, then `draw` along the walk.

    Args:
        row: the request.
        eos_token_ids: for the processors that know about the end.
        device: of the logits.
        at_once: draw all nodes in `bind` (unless processors need each node's prefix); `fetch` then
            brings the draws. None: on anything but a CPU.
    """

    def __init__(
        self,
        row: Row,
        eos_token_ids: Sequence[int],
        device: torch.device,
        at_once: bool | None = None,
    ) -> None:
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
        self._at_once = device.type != "cpu" if at_once is None else at_once
        self._is_simple = not (
            self._at_once or self._processors or self._rare or params.is_truncated
        )
        self._logits = torch.empty(0)
        self.pending: torch.Tensor | None = None  # [N] int64, draws that are not fetched yet
        self.drawn: Sequence[int] | None = None

    def bind(self, logits: torch.Tensor, depths: Sequence[int] = ()) -> None:
        """Take the logits `[N, V]` of the tree that will be walked next, and its nodes' depths."""
        self._logits, self.drawn = logits, None
        if self._at_once and self._processors is None:
            first = len(self._row.token_ids)
            self.pending = self._draw_block(logits, [first + depth for depth in depths])

    def draw(self, node: int, path_ids: Sequence[int]) -> int:
        """The target's token after the committed ids and `path_ids`, from `node`'s logits.

        Raises:
            ConfigError: the request's own options leave no token that could be drawn.
        """
        if self.drawn is not None:
            return self.drawn[node]
        noise = self._row.noise
        if noise is None and not (self._processors or self._at_once):
            return largest(self._logits, node)
        position = len(self._row.token_ids) + len(path_ids)
        if self._is_simple and noise is not None:
            token_id = noise.draw(self._logits, node, position, self._params.temperature)
            if token_id is not None:
                return token_id
        scores = _widened(self._logits[node])
        if self._processors is not None:
            scores = self._process(scores, path_ids)
        if self._at_once:
            return int(self._draw_block(scores[None], [position])[0])
        if noise is None:
            return lowest_argmax(scores)
        if self._rare is not None:
            scores = self._rare(_NO_IDS, scores[None].clone())[0]
            kept: torch.Tensor | None = scores.isfinite().nonzero()[:, 0]
            scores = scores[kept]
        else:
            scores, kept = warp(scores, self._params)
        noisy = scores.numpy() + noise(position, kept).numpy()
        choice = lowest_argmax(torch.from_numpy(noisy))
        return choice if kept is None else int(kept[choice])

    def _process(self, scores: torch.Tensor, path_ids: Sequence[int]) -> torch.Tensor:  # [V]
        """What the processors make of `scores [V]` after the committed ids and `path_ids`."""
        assert self._processors is not None
        ids = [*self._row.token_ids, *path_ids]
        prefix = torch.tensor([ids], device=scores.device)
        scores = self._processors(prefix, scores[None].clone())[0]
        if bool(torch.isneginf(scores).all()):
            raise ConfigError(_NOTHING_LEFT.format(position=len(ids)))
        if bool(scores.isnan().any()):
            raise ConfigError(_NOT_A_NUMBER.format(position=len(ids)))
        return scores

    def _draw_block(self, logits: torch.Tensor, positions: Sequence[int]) -> torch.Tensor:
        """The tokens `[N]` (int64) that `logits [N, V]` give at `positions`, without waiting."""
        scores, noise = _widened(logits), self._row.noise
        if noise is None:
            return lowest_argmax_of_rows(scores)
        if self._rare is not None:
            scores = self._rare(_NO_IDS, scores.clone())
        else:
            scores = warp_block(scores, self._params)
        first = min(positions)
        noises = noise(range(first, max(positions) + 1), None)
        places = torch.tensor([position - first for position in positions], device=scores.device)
        return lowest_argmax_of_rows(scores.double() + noises[places])


def fetch(samplers: Sequence[TokenSampler]) -> bool:
    """Bring the draws of all rows to the host in one copy; whether there was anything to bring."""
    pending = [sampler for sampler in samplers if sampler.pending is not None]
    if not pending:
        return False
    drawn = torch.cat([s.pending for s in pending if s.pending is not None]).tolist()
    for sampler in pending:
        assert sampler.pending is not None
        count = len(sampler.pending)
        sampler.drawn, drawn, sampler.pending = drawn[:count], drawn[count:], None
    return True


def _widened(logits: torch.Tensor) -> torch.Tensor:
    """At least float32: at 8 bits two scores divided by a temperature can become equal."""
    return logits.to(torch.promote_types(logits.dtype, torch.float32))
