"""Which set to try next: hand-made ones first, then Bayesian optimisation.

The optimiser is Optuna's, not bayesian-optimization, which Self-SD and KNN-SSD use: it has discrete
parameters of its own (there every sub-layer is a real number that is rounded, so most of the model of
the objective describes differences that do not exist), it takes results that were made elsewhere (warm
starts, a resumed study), and it is maintained. Of its samplers the Gaussian process reaches in 30 to 40
trials what multivariate TPE does not reach in 70; TPE is quicker to propose, but mostly proposes what it
knows already.

A proposal is a pure function of the trials so far and the seed: each has its own sampler, seeded by the
number of trials. So a search that was killed and resumed finds what it would have found.
"""

from __future__ import annotations

import itertools
import warnings
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from draftless.calibration.margins import as_set
from draftless.errors import ConfigError
from draftless.noise import hash_ids
from draftless.skip_set import SkipSet

SHARES = (0.3, 0.5, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of the eligible sub-layers, what warm starts skip. Large ones pay best on models of depth (DESIGN 8),
and as many independent coin flips never come near them."""

_TILT = (
    0.3  # how much more attention than MLP the third kind of warm start skips (as Self-SD's sets)
)


def eligible_sublayers(num_layers: int, *, protect_ends: bool) -> list[tuple[str, int]]:
    """`("attention", i)` and `("mlp", i)` of every layer that may be skipped.

    Raises:
        ConfigError: nothing is left.
    """
    layers = range(1, num_layers - 1) if protect_ends else range(num_layers)
    if not layers:
        raise ConfigError(
            f"the model has {num_layers} layers, and the first and last are protected: nothing is "
            "left to skip; give --no-protect-ends"
        )
    return [(kind, index) for index in layers for kind in ("attention", "mlp")]


def warm_starts(eligible: Sequence[tuple[str, int]]) -> list[SkipSet]:
    """Hand-made sets over the shares: kept layers spread evenly, early exit, attention first."""
    layers = sorted({index for _, index in eligible})
    found: dict[SkipSet, None] = {}
    for share in SHARES:
        even = _skip_evenly(layers, share)
        exit_early = layers[len(layers) - len(even) :]
        for attention, mlp in (
            (even, even),
            (exit_early, exit_early),
            (_skip_evenly(layers, share + _TILT), _skip_evenly(layers, share - _TILT)),
        ):
            if attention or mlp:
                found[SkipSet(tuple(attention), tuple(mlp))] = None
    return list(found)


def _skip_evenly(layers: Sequence[int], share: float) -> list[int]:
    """All layers but those that are kept, which lie evenly."""
    num_kept = round((1 - min(max(share, 0.0), 1.0)) * len(layers))
    kept = {round(place) for place in np.linspace(0, len(layers) - 1, num_kept)}
    return [layer for place, layer in enumerate(layers) if place not in kept]


class Proposer:
    """Proposes sets that were not tried before.

    Args:
        eligible: sub-layers that may be skipped.
        seed: of everything random.
        has_noise: equal sets need not get equal values.

    Raises:
        ConfigError: Optuna is not installed.
    """

    def __init__(
        self, eligible: Sequence[tuple[str, int]], seed: int, *, has_noise: bool = False
    ) -> None:
        try:
            import optuna
        except ImportError as error:
            raise ConfigError(
                "searching needs more packages: pip install 'draftless[calibrate]'"
            ) from error
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self._optuna: Any = optuna
        self._study: Any = optuna.create_study(direction="maximize")
        self._eligible = list(eligible)
        self._seed = seed
        self._has_noise = has_noise
        self._names = [f"{kind} {index}" for kind, index in eligible]
        self._space = {name: optuna.distributions.IntDistribution(0, 1) for name in self._names}
        self._warm = warm_starts(eligible)
        self._known: set[SkipSet] = set()

    @property
    def is_exhausted(self) -> bool:
        """Whether every set but the empty one was tried."""
        return len(self._known) >= (1 << len(self._eligible)) - 1

    def tell(self, skip_set: SkipSet, value: float) -> None:
        """Learn what a set is worth."""
        self._known.add(skip_set)
        skipped = {("attention", i) for i in skip_set.attention} | {
            ("mlp", i) for i in skip_set.mlp
        }
        params = {
            name: int(one in skipped) for name, one in zip(self._names, self._eligible, strict=True)
        }
        self._study.add_trial(
            self._optuna.trial.create_trial(params=params, distributions=self._space, value=value)
        )

    def propose(self) -> tuple[SkipSet, str]:
        """A set that was not tried yet, and its origin; not if `is_exhausted`."""
        for skip_set in self._warm:
            if skip_set not in self._known:
                return skip_set, "warm"
        generator = np.random.default_rng(hash_ids(self._seed, len(self._known)))
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", self._optuna.exceptions.ExperimentalWarning)
            self._study.sampler = self._optuna.samplers.GPSampler(
                n_startup_trials=1,
                seed=int(generator.integers(2**31)),
                deterministic_objective=not self._has_noise,
            )
            trial = self._study.ask(self._space)
            self._study.tell(trial, state=self._optuna.trial.TrialState.FAIL)
        bits = np.array([trial.params[name] for name in self._names], dtype=bool)
        first = self._set(bits)
        if self._is_new(first):
            return first, "sampled"
        return next(filter(self._is_new, self._changes(bits, generator))), "changed"

    def _is_new(self, skip_set: SkipSet) -> bool:
        return skip_set not in self._known and skip_set.num_skipped > 0

    def _set(self, bits: np.ndarray) -> SkipSet:
        return as_set([one for one, bit in zip(self._eligible, bits, strict=True) if bit])

    def _changes(self, bits: np.ndarray, generator: np.random.Generator) -> Iterator[SkipSet]:
        """Neighbours of a set, nearest first, in random order."""
        order = generator.permutation(len(bits))
        for count in range(1, len(bits) + 1):
            for places in itertools.combinations(order, count):
                changed = bits.copy()
                changed[list(places)] ^= True
                yield self._set(changed)
