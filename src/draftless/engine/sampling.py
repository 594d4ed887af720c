"""The target's own token at a node: processors, warping, and the keyed Gumbel draw.

On a CPU everything is lazy along the walk and done by numpy, whose calls are cheaper than torch's
(DESIGN 2): a node that the walk does not reach costs nothing. On an accelerator the nodes of a tree
are drawn at once and fetched in one copy, because each question to it costs more than the work.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from draftless.engine.processors import make_processors, make_rare_warpers
from draftless.engine.warping import warp, warp_block
from draftless.errors import ConfigError
from draftless.noise import KeyedNoise, gumbel, token_keys
from draftless.types import Row

_NOTHING_LEFT = (
    "the options exclude every token at position {position}: look at bad_words_ids, suppress_tokens, "
    "prefix_allowed_tokens_fn and your own logits_processors"
)
_HALVES = (torch.bfloat16, torch.float16)
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


@lru_cache(maxsize=8)
def _keys_of_vocabulary(vocab_size: int) -> np.ndarray:  # [V] uint64
    return token_keys(np.arange(vocab_size))


class PositionNoise:
    """Keyed noise over a vocabulary, remembered per position.

    A draft looks at the noise of the positions that it proposes for; the target's draws then need
    the same vectors, so remembering makes that look free.
    """

    def __init__(self, keyed: KeyedNoise, vocab_size: int, device: torch.device) -> None:
        self._keyed = keyed
        self._vocab_size = vocab_size
        self._device = device
        self._keys = _keys_of_vocabulary(vocab_size) if device.type == "cpu" else None
        self._known: dict[int, torch.Tensor] = {}

    def __call__(
        self,
        position: int | Sequence[int],
        token_ids: torch.Tensor | None = None,  # [n] or [m, n] int64; None: the whole vocabulary
    ) -> torch.Tensor:  # float64, [n], [m, n], [V] or [m, V]
        """Noise at one position, or at `m` positions, of the given ids or of all."""
        if token_ids is None:
            if isinstance(position, int):
                return self._whole([position])[0]
            return torch.stack(self._whole(position))
        if isinstance(position, int) and position in self._known:
            return self._known[position][token_ids]
        if self._keys is None:
            return self._keyed(position, token_ids)
        bits = self._keys[token_ids.numpy()]
        if isinstance(position, int):
            bits += np.uint64(self._keyed.stream(position))
        else:
            bits += self._keyed.streams(position)
        return torch.from_numpy(gumbel(bits))

    def _whole(self, positions: Sequence[int]) -> list[torch.Tensor]:
        """The noise `[V]` of each position; what is not known yet is computed."""
        known = self._known
        missing = [position for position in positions if position not in known]
        if self._keys is not None:
            for position in missing:  # one after the other: it stays in the processor's cache
                bits = self._keys + np.uint64(self._keyed.stream(position))
                known[position] = torch.from_numpy(gumbel(bits))
        elif missing:
            ids = torch.arange(self._vocab_size, device=self._device)
            found = self._keyed(missing, ids.expand(len(missing), -1))
            known.update(zip(missing, found, strict=True))
        return [known[position] for position in positions]

    def forget_before(self, position: int) -> None:
        """Drop what can no longer be asked for."""
        for old in [p for p in self._known if p < position]:
            del self._known[old]


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
        self._logits = torch.empty(0)
        self._bits: np.ndarray | None = None  # [N, V] int16, the logits if they are halves
        self.pending: torch.Tensor | None = None  # [N] int64, draws that are not fetched yet
        self.drawn: Sequence[int] | None = None

    def bind(self, logits: torch.Tensor, depths: Sequence[int] = ()) -> None:
        """Take the logits `[N, V]` of the tree that will be walked next, and its nodes' depths."""
        self._logits, self.drawn = logits, None
        if self._at_once:
            if self._processors is None:
                first = len(self._row.token_ids)
                self.pending = self._draw_block(logits, [first + depth for depth in depths])
        elif self._row.noise is None and logits.dtype in _HALVES:
            self._bits = logits.view(torch.int16).numpy()

    def draw(self, node: int, path_ids: Sequence[int]) -> int:
        """The target's token after the committed ids and `path_ids`, from `node`'s logits.

        Raises:
            ConfigError: the request's own options leave no token that could be drawn.
        """
        if self.drawn is not None:
            return self.drawn[node]
        noise = self._row.noise
        if noise is None and self._processors is None and self._bits is not None:
            bits = self._bits[node]
            best = int(bits.argmax())
            if bits[best] > 0:  # halves above zero have the order of their bits
                return best
        scores = _widened(self._logits[node])
        if self._processors is not None:
            scores = self._process(scores, path_ids)
        position = len(self._row.token_ids) + len(path_ids)
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
