"""What a skip set is worth, without noise: rounds of drafting simulated from one scored pass.

As long as a draft is right it is the target's own text, so feeding that text to the draft ("teacher
forcing") shows exactly how many drafts of a round would be accepted, for every place at once. The
idea of scoring own text in one pass is SWIFT's (arXiv 2410.06916); unlike there, every window starts
from the target's own cache, as a real round does. Only what is drafted behind the first miss (and
takes siblings' places) is approximated: by what the draft says behind the right token.

The value of a set is tokens per second: tokens of the rounds over their seconds by the cost table. It
is the best over thresholds, depths and numbers of siblings, so one pass chooses a whole `SkipSetting`.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import product

import numpy as np
import torch

from draftless.calibration.costs import CostTable
from draftless.calibration.texts import SHORTEST, OwnText
from draftless.engine.cache import KVCache
from draftless.engine.target import TargetModel
from draftless.layout import chain_parents, tree_layout
from draftless.noise import hash_ids
from draftless.skip_set import SkipSet, SkipSetting

THRESHOLDS = (0.0, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95)
SIBLINGS = (0, 2, 4, 8)
MAX_SIBLINGS = SIBLINGS[-1]

_CHUNK = 32  # windows in one pass; those of a chunk are alike in length


@dataclass(frozen=True, slots=True)
class Window:
    """A place in a text where a round may start.

    Attributes:
        text: index of its text.
        prefix: ids before the root; none at the end of a prompt of one token.
        token_ids: the root and the own tokens behind it.
        is_end: the last of them ended the text, so nothing follows it.
    """

    text: int
    prefix: tuple[int, ...]
    token_ids: tuple[int, ...]
    is_end: bool

    @property
    def num_ahead(self) -> int:
        """Own tokens behind the root."""
        return len(self.token_ids) - 1


def choose_windows(texts: Sequence[OwnText], depth: int, per_text: int, seed: int) -> list[Window]:
    """Up to `per_text` places of every text, by its content and the seed.

    A window has `depth` own tokens ahead; towards the end of a text that ended by itself fewer, but
    at least `SHORTEST`. Of a text that was cut shorter than `depth`, the prompt's end is the window.
    """
    windows = []
    for index, text in enumerate(texts):
        ids = text.prompt_ids + text.own_ids
        first = len(text.prompt_ids) - 1  # the root of the first round is the prompt's last token
        ahead = SHORTEST if text.is_complete else depth
        last = max(first, len(ids) - 1 - ahead)
        generator = np.random.default_rng(hash_ids(seed, ids=text.prompt_ids))
        count = min(per_text, last - first + 1)
        for root in sorted(generator.choice(last - first + 1, count, replace=False) + first):
            end = min(root + 1 + depth, len(ids))
            is_end = text.is_complete and end == len(ids)
            windows.append(Window(index, ids[:root], ids[root:end], is_end))
    return windows


@dataclass(frozen=True)
class Scores:
    """What a draft says to `W` windows of up to `D` own tokens.

    Attributes:
        ranks: `[W, D]` int, place of the own token among the draft's `K` best, `K` if it is none.
        shares: `[W, D, K]` float, probabilities of those best tokens, the best first.
        num_ahead: `[W]` int, own tokens of the window; what lies behind is padding.
        is_end: `[W]` bool, nothing follows the window.
        texts: `[W]` int, index of the text.
    """

    ranks: np.ndarray
    shares: np.ndarray
    num_ahead: np.ndarray
    is_end: np.ndarray
    texts: np.ndarray

    @property
    def num_places(self) -> int:
        """`D`."""
        return int(self.ranks.shape[1])

    @cached_property
    def first_miss(self) -> np.ndarray:  # [W] int
        """The first place where the own token is not the draft's best; `D` if there is none."""
        missed = self.ranks > 0
        return np.where(missed.any(1), missed.argmax(1), self.num_places)

    @cached_property
    def num_likelier(self) -> np.ndarray:  # [W, D] int
        """How many siblings are likelier than the own token at the first miss, in chains up to a place.

        As many siblings as a draft may have at most, where the own token is none of the candidates.
        """
        rows = np.arange(len(self.ranks))
        place = np.minimum(self.first_miss, self.num_places - 1)
        rank = self.ranks[rows, place]
        num_candidates = self.shares.shape[2]
        before = np.cumprod(self.shares[:, :, 0], axis=1)
        before = np.concatenate([np.ones_like(before[:, :1]), before[:, :-1]], axis=1)
        paths = before[:, :, None] * self.shares
        own = paths[rows, place, np.minimum(rank, num_candidates - 1)]
        likelier = (paths[:, :, 1:] > own[:, None, None]).sum(2).cumsum(1)
        return np.where((rank < num_candidates)[:, None], likelier, MAX_SIBLINGS)


class ScoredWindows:
    """Windows whose prefixes the target has cached once; any skip set is scored on them.

    Args:
        target: the model.
        windows: at least one.
        depth: longest draft, `D`.
    """

    def __init__(self, target: TargetModel, windows: Sequence[Window], depth: int) -> None:
        self._target = target
        self._depth = depth
        self._windows = sorted(windows, key=lambda window: len(window.prefix))
        self._chunks: list[tuple[KVCache, Sequence[Window]]] = []
        with torch.inference_mode():
            for begin in range(0, len(self._windows), _CHUNK):
                chunk = self._windows[begin : begin + _CHUNK]
                cache = target.make_cache(len(chunk), len(chunk[-1].prefix) + depth)
                for row, window in enumerate(chunk):
                    target.prefill(cache, row, window.prefix)
                self._chunks.append((cache, chunk))

    def score(self, skip_set: SkipSet) -> Scores:
        """One pass over all windows without the sub-layers of `skip_set`."""
        count = min(1 + MAX_SIBLINGS, self._target.vocab_size)
        shape = (len(self._windows), self._depth)
        ranks, shares = np.zeros(shape, dtype=int), np.zeros((*shape, count))
        row = 0
        with torch.inference_mode():
            for cache, chunk in self._chunks:
                for window, (own_ranks, best) in zip(
                    chunk, self._score_chunk(cache, chunk, skip_set, count), strict=True
                ):
                    ranks[row, : window.num_ahead] = own_ranks
                    shares[row, : window.num_ahead] = best
                    row += 1
        return Scores(
            ranks,
            shares,
            np.array([window.num_ahead for window in self._windows]),
            np.array([window.is_end for window in self._windows]),
            np.array([window.text for window in self._windows]),
        )

    def _score_chunk(
        self, cache: KVCache, chunk: Sequence[Window], skip_set: SkipSet, count: int
    ) -> list[tuple[np.ndarray, np.ndarray]]:
        """Per window the rank of each own token and the shares of the `count` best."""
        fed = [window.token_ids[:-1] for window in chunk]
        layouts = [tree_layout(chain_parents(len(ids))) for ids in fed]
        with cache.scratch():
            logits = self._target.forward(cache, fed, layouts, skip_set=skip_set)
        found = []
        for window, of_window in zip(chunk, logits, strict=True):
            scores = of_window.float()
            best, ids = scores.topk(count)
            shares = (best - scores.logsumexp(-1, keepdim=True)).exp().cpu().numpy()
            is_own = ids.cpu().numpy() == np.array(window.token_ids[1:])[:, None]
            rank = np.where(is_own.any(1), is_own.argmax(1), count)
            found.append((rank, shares))
        return found


def simulate(
    scores: Scores, threshold: float, depth: int, siblings: int
) -> tuple[np.ndarray, np.ndarray]:  # [W] int each
    """Tokens and drafts (of the chain) of one round per window.

    Drafting stops behind the first token below the threshold, which is still drafted, as in
    `layer-skip`; at `depth`; and at the window's end. Where the chain misses, the own token may be
    among the siblings, which are the likeliest paths beside it.
    """
    places = scores.num_places
    below = scores.shares[:, :, 0] < threshold
    first_below = np.where(below.any(1), below.argmax(1), places)
    drafts = np.minimum(np.minimum(first_below + 1, depth), scores.num_ahead)
    accepted = np.minimum(scores.first_miss, drafts)
    if siblings:
        likelier = np.take_along_axis(scores.num_likelier, drafts[:, None] - 1, 1)[:, 0]
        accepted += (scores.first_miss < drafts) & (likelier < siblings)
    most = np.where(scores.is_end, scores.num_ahead, places + 1)
    return np.minimum(accepted + 1, most), drafts


@dataclass(frozen=True)
class Evaluation:
    """What an objective says about a skip set.

    Attributes:
        setting: the set with the threshold, depth and siblings that it is best with.
        value: tokens per second.
        tokens_per_round: committed tokens of a round, the target's own included.
        drafts_per_round: draft passes of a round.
        draft_pass_s: seconds of one.
    """

    setting: SkipSetting
    value: float
    tokens_per_round: float
    drafts_per_round: float
    draft_pass_s: float


def evaluate(scores: Scores, skip_set: SkipSet, costs: CostTable) -> Evaluation:
    """The best threshold, depth and siblings for scores; among equals the smaller tree."""
    best: Evaluation | None = None
    draft_s = costs.draft_pass_s(skip_set)
    for depth, threshold, siblings in product(
        range(1, scores.num_places + 1), THRESHOLDS, SIBLINGS
    ):
        tokens, drafts = simulate(scores, threshold, depth, siblings)
        value = float(tokens.sum() / costs.rounds_s(drafts, siblings, draft_s).sum())
        if best is None or value > best.value:
            setting = SkipSetting(skip_set, threshold, depth, siblings)
            best = Evaluation(setting, value, float(tokens.mean()), float(drafts.mean()), draft_s)
    assert best is not None
    return best


class RoundsObjective:
    """The noise-free objective: rounds on windows of texts, half to search on and half held out.

    Args:
        target: the model.
        halves: texts to search on, and held-out texts.
        costs: seconds of passes.
        depth: longest draft.
        per_text: windows of a text.
        seed: of their places.
    """

    def __init__(
        self,
        target: TargetModel,
        halves: tuple[Sequence[OwnText], Sequence[OwnText]],
        costs: CostTable,
        depth: int,
        per_text: int,
        seed: int,
    ) -> None:
        self._costs = costs
        self._searched, self._held = (
            ScoredWindows(target, choose_windows(texts, depth, per_text, seed), depth)
            for texts in halves
        )

    def evaluate(self, skip_set: SkipSet) -> Evaluation:
        """Its value on the texts to search on."""
        return evaluate(self._searched.score(skip_set), skip_set, self._costs)

    def totals(self, setting: SkipSetting) -> tuple[np.ndarray, np.ndarray]:  # [T] float each
        """Tokens and seconds on every held-out text, with the setting as it is."""
        scores = self._held.score(setting.skip_set)
        tokens, drafts = simulate(scores, setting.threshold, setting.depth, setting.siblings)
        draft_s = self._costs.draft_pass_s(setting.skip_set)
        seconds = self._costs.rounds_s(drafts, setting.siblings, draft_s)
        return np.bincount(scores.texts, tokens), np.bincount(scores.texts, seconds)
