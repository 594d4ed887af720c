"""The cost table: seconds of the target's pass by width and of a draft pass by what is left in it.

Measured once for a search and kept with it, so that a resumed search weighs like the first.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import torch

from draftless.drafters.layer_skip import LayerSkipDrafter
from draftless.engine.cache import KVCache
from draftless.engine.draft_passes import CachedPasses
from draftless.engine.target import TargetModel
from draftless.errors import ArtifactError
from draftless.layout import chain_parents, tree_layout
from draftless.params import SamplingParams
from draftless.skip_set import SkipSet
from draftless.types import Row

_REPEATS = 15
_LONGEST_S = 60.0  # a large model is measured fewer times, but at least thrice
_FEWEST = 3
_PASSES = 4  # draft passes that are timed together, as a drafter makes them
_PARTS = ("attention", "mlp", "layer")


@dataclass(frozen=True)
class CostTable:
    """Seconds on one machine, for one request.

    A draft pass costs `base_s`, and what it keeps: `attention_s` and `mlp_s` per sub-layer, and
    `layer_s` per layer that keeps either (its norms and calls).

    Attributes:
        num_layers: of the model.
        cached_len: cached tokens during the measurement.
        width_s: `width_s[w - 1]` is a verifying pass over `w` tokens.
        base_s, attention_s, mlp_s, layer_s: see above.
        measured: draft passes that the four were fitted to: what was kept, seconds, fitted seconds.
    """

    num_layers: int
    cached_len: int
    width_s: tuple[float, ...]
    base_s: float
    attention_s: float
    mlp_s: float
    layer_s: float
    measured: tuple[Mapping[str, float], ...] = ()

    def draft_pass_s(self, skip_set: SkipSet) -> float:
        """Seconds of one draft pass."""
        attention, mlp, layer = kept_parts(skip_set, self.num_layers)
        kept_s = attention * self.attention_s + mlp * self.mlp_s + layer * self.layer_s
        return self.base_s + kept_s

    def share(self, skip_set: SkipSet) -> float:
        """`f`: seconds of a draft pass over those of the target's pass over one token."""
        return self.draft_pass_s(skip_set) / self.width_s[0]

    def rounds_s(
        self,
        drafts: np.ndarray,  # [W] int
        siblings: int,
        draft_s: float,
    ) -> np.ndarray:  # [W] float
        """Seconds of rounds: the draft passes, and the pass over root, chain and siblings."""
        seconds: np.ndarray = drafts * draft_s + np.asarray(self.width_s)[drafts + siblings]
        return seconds

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: Any) -> CostTable:
        """Read what `to_dict` wrote.

        Raises:
            ArtifactError: it has another form.
        """
        try:
            table = cls(
                **{
                    **data,
                    "width_s": tuple(map(float, data["width_s"])),
                    "measured": tuple(map(dict, data["measured"])),
                }
            )
            numbers = (table.base_s, table.attention_s, table.mlp_s, table.layer_s, *table.width_s)
            if not all(isinstance(one, float) and one >= 0 for one in numbers):
                raise ValueError("seconds must be numbers of at least 0")
        except (TypeError, KeyError, ValueError) as error:
            raise ArtifactError(f"not a cost table: {error}") from error
        return table


def kept_parts(skip_set: SkipSet, num_layers: int) -> tuple[int, int, int]:
    """Attentions, MLPs, and layers with either, that a draft pass keeps."""
    whole = set(skip_set.attention) & set(skip_set.mlp)
    return (
        num_layers - len(skip_set.attention),
        num_layers - len(skip_set.mlp),
        num_layers - len(whole),
    )


def fit_parts(
    kept: Sequence[tuple[int, int, int]], seconds: Sequence[float]
) -> tuple[float, float, float, float]:
    """Base, attention, MLP and layer seconds that explain measured passes best, none below 0.

    Least squares of the *relative* errors: short passes are the ones that matter. A part that noise
    drives below 0 is taken to cost nothing, and the others are fitted again.
    """
    features = np.array([(1, *parts) for parts in kept], dtype=float)
    measured = np.array(seconds)
    used = list(range(features.shape[1]))
    while True:
        weighted = features[:, used] / measured[:, None]
        fitted = np.linalg.lstsq(weighted, np.ones(len(measured)), rcond=None)[0]
        if fitted.min() >= 0:
            break
        used.pop(int(fitted.argmin()))
    found = np.zeros(features.shape[1])
    found[used] = fitted
    base, attention, mlp, layer = map(float, found)
    return base, attention, mlp, layer


def measure_costs(target: TargetModel, token_ids: Sequence[int], most: int) -> CostTable:
    """Time passes behind a cached text; all kinds in turn, so that other load hits them alike.

    Args:
        target: the model.
        token_ids: a text of typical length, at least two tokens.
        most: drafts of a tree; passes of up to `most + 1` tokens are timed.
    """
    sets = probe_sets(target.num_layers)
    with torch.inference_mode():
        cache = target.make_cache(1, len(token_ids) + max(most + 1, _PASSES))
        target.prefill(cache, 0, token_ids[:-1])
        jobs: list[Callable[[], None]] = [
            _verifying(target, cache, token_ids[-1], width) for width in range(1, most + 2)
        ]
        jobs += [_drafting(target, cache, token_ids, skip_set) for skip_set in sets]
        medians = _median_seconds(jobs)
    widths, passes = rising(medians[: most + 1]), [s / _PASSES for s in medians[most + 1 :]]
    kept = [kept_parts(skip_set, target.num_layers) for skip_set in sets]
    base, attention, mlp, layer = fit_parts(kept, passes)
    fitted = [base + a * attention + m * mlp + y * layer for a, m, y in kept]
    return CostTable(
        target.num_layers,
        len(token_ids) - 1,
        widths,
        base,
        attention,
        mlp,
        layer,
        tuple(
            {**dict(zip(_PARTS, parts, strict=True)), "seconds": s, "fitted_s": fit}
            for parts, s, fit in zip(kept, passes, fitted, strict=True)
        ),
    )


def rising(seconds: Sequence[float]) -> tuple[float, ...]:
    """Seconds by width, made to rise: that more tokens cost less is noise.

    The mean of the smallest rising curve above and the largest one below.
    """
    above = np.maximum.accumulate(seconds)
    below = np.minimum.accumulate(seconds[::-1])[::-1]
    return tuple(float(s) for s in (above + below) / 2)


def probe_sets(num_layers: int) -> list[SkipSet]:
    """Sets whose passes tell the cost of attention, MLP and whole layers apart."""
    every = tuple(range(num_layers))
    odd, most = every[1::2], tuple(i for i in every if i % 4)
    return [
        SkipSet(),
        SkipSet(every, every),
        SkipSet(every, ()),
        SkipSet((), every),
        SkipSet(odd, odd),
        SkipSet(most, most),
        SkipSet(odd, ()),
        SkipSet((), odd),
        SkipSet(every, odd),
        SkipSet(odd, every),
        SkipSet(odd, every[::2]),
    ]


def _verifying(
    target: TargetModel, cache: KVCache, token_id: int, width: int
) -> Callable[[], None]:
    layout = tree_layout(chain_parents(width))

    def run() -> None:
        target.forward(cache, [[token_id] * width], [layout])[0].argmax(-1).tolist()

    return run


def _drafting(
    target: TargetModel, cache: KVCache, token_ids: Sequence[int], skip_set: SkipSet
) -> Callable[[], None]:
    """What the drafter itself does, its own work included."""
    drafter = LayerSkipDrafter(skip_set, threshold=0.0, depth=_PASSES)
    row = Row(0, token_ids, SamplingParams(), None)
    row.max_depth = _PASSES

    def run() -> None:
        with cache.scratch():
            drafter.propose([row], CachedPasses(target, cache))

    return run


def _median_seconds(jobs: Sequence[Callable[[], None]]) -> list[float]:
    """Median seconds of each job; the first round is not counted."""
    rounds: list[list[float]] = []
    started = time.perf_counter()
    while len(rounds) <= _REPEATS:
        seconds = []
        for job in jobs:
            begin = time.perf_counter()
            job()
            seconds.append(time.perf_counter() - begin)
        rounds.append(seconds)
        if time.perf_counter() - started > _LONGEST_S and len(rounds) > _FEWEST:
            break
    return [float(s) for s in np.median(rounds[1:], axis=0)]
