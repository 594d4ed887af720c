"""Keyed noise over a vocabulary, and what is likeliest under it, for the positions of one request."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache

import numpy as np
import torch

from draftless.engine import native
from draftless.engine.likeliest import Ids, Scores, topk_of_rows
from draftless.noise import KeyedNoise, gumbel, token_keys


@lru_cache(maxsize=8)
def _keys_of_vocabulary(vocab_size: int) -> np.ndarray:  # [V] uint64
    return token_keys(np.arange(vocab_size))


class PositionNoise:
    """Keyed noise over a vocabulary, remembered per position.

    A draft looks at the noise of the positions that it proposes for; the target's draws then need
    the same vectors, so remembering makes that look free.
    """

    def __init__(self, keyed: KeyedNoise, vocab_size: int, device: torch.device) -> None:
        self.keyed = keyed
        self._vocab_size = vocab_size
        self._device = device
        self._keys = _keys_of_vocabulary(vocab_size) if device.type == "cpu" else None
        self._known: dict[int, torch.Tensor] = {}
        self._ranked = native.operator("ranked_under_noise")
        is_cpu = device.type == "cpu"
        self._draw = native.operator("draw_under_noise") if is_cpu else None
        self._likeliest = native.operator("likeliest_under_noise") if is_cpu else None

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
            return self.keyed(position, token_ids)
        bits = self._keys[token_ids.numpy()]
        if isinstance(position, int):
            bits += np.uint64(self.keyed.stream(position))
        else:
            bits += self.keyed.streams(position)
        return torch.from_numpy(gumbel(bits))

    def _whole(self, positions: Sequence[int]) -> list[torch.Tensor]:
        """The noise `[V]` of each position; what is not known yet is computed."""
        known = self._known
        missing = [position for position in positions if position not in known]
        if self._keys is not None:
            for position in missing:  # one after the other: it stays in the processor's cache
                bits = self._keys + np.uint64(self.keyed.stream(position))
                known[position] = torch.from_numpy(gumbel(bits))
        elif missing:
            ids = torch.arange(self._vocab_size, device=self._device)
            found = self.keyed(missing, ids.expand(len(missing), -1))
            known.update(zip(missing, found, strict=True))
        return [known[position] for position in positions]

    def draw(
        self,
        logits: torch.Tensor,  # [N, V]
        row: int,
        position: int,
        temperature: float,
    ) -> int | None:
        """The largest of `logits[row] / temperature + noise`, the lowest id on ties.

        By our own function, which computes the noise of few tokens; None where it is not loaded.
        """
        if self._draw is None or logits.dtype == torch.float64:
            return None
        token_id: int = self._draw(logits, row, self.keyed.base, position, temperature)
        return token_id

    def few(self, position: int, token_ids: Sequence[int]) -> list[float]:
        """Noise of a handful of ids at one position, computed on the host."""
        return self.keyed.few(position, token_ids)

    def ranked(
        self,
        token_ids: Sequence[int],
        logits: Sequence[float],
        position: int,
        temperature: float,
        count: int,
    ) -> tuple[list[int], list[float]]:
        """A handful of ids and their `logits / temperature + noise`: the `count` best, the best first."""
        if self._ranked is not None:
            best: tuple[list[int], list[float]] = self._ranked(
                token_ids, logits, self.keyed.base, position, temperature, count
            )
            return best
        noise = self.few(position, token_ids)
        scores = [one / temperature + more for one, more in zip(logits, noise, strict=True)]
        order = sorted(zip(scores, token_ids, strict=True), reverse=True)[:count]
        return [token_id for _, token_id in order], [score for score, _ in order]

    def likeliest(
        self,
        logits: torch.Tensor,  # [N, V]
        rows: Sequence[int],
        positions: Sequence[int],
        temperature: float,
        count: int,
    ) -> tuple[Ids, Scores]:
        """The largest of `logits[rows] / temperature + noise`, the largest first; a position per row.

        Returns:
            Ids and scores, `[m, min(count, V)]` each.
        """
        count = min(count, logits.shape[1])
        if self._likeliest is not None:
            found: tuple[Ids, Scores] = self._likeliest(
                logits, rows, self.keyed.base, positions, temperature, count
            )
            return found
        return topk_of_rows(logits[list(rows)].float() / temperature + self(positions), count)

    def forget_before(self, position: int) -> None:
        """Drop what can no longer be asked for."""
        for old in [p for p in self._known if p < position]:
            del self._known[old]
