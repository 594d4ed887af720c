"""BLEU and chrF of whole test sets, by sacrebleu.

Both are defined on sums over all sentences, so a sentence brings its counts, and intervals come
from sums of resampled counts.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import numpy as np

from draftless.bench.statistics import Numbers
from draftless.errors import ConfigError

NUM_BLEU_COUNTS = 10
NUM_CHRF_COUNTS = 18


def counts(output: str, reference: str) -> dict[str, list[float]]:
    """The n-gram counts of one sentence, for `bleu` and `chrf`.

    Raises:
        ConfigError: sacrebleu is not installed.
    """
    # sacrebleu's own bootstrap rests on this method; the public ones give no counts of chrF.
    return {
        name: [
            float(n) for n in _metric(name)._extract_corpus_statistics([output], [[reference]])[0]
        ]
        for name in ("bleu", "chrf")
    }


def bleu(totals: Numbers) -> Numbers:  # [..., NUM_BLEU_COUNTS] -> [...]
    """BLEU, 0 to 100, of summed counts."""
    return _scores("bleu", totals)


def chrf(totals: Numbers) -> Numbers:  # [..., NUM_CHRF_COUNTS] -> [...]
    """chrF2, 0 to 100, of summed counts."""
    return _scores("chrf", totals)


def signatures() -> dict[str, str]:
    """How sacrebleu counted, in its own short form.

    Raises:
        ConfigError: sacrebleu is not installed.
    """
    for name in ("bleu", "chrf"):  # a signature tells the number of references once it saw some
        _metric(name).corpus_score(["a"], [["a"]])
    return {name: str(_metric(name).get_signature()) for name in ("bleu", "chrf")}


@lru_cache
def _metric(name: str) -> Any:
    try:
        from sacrebleu.metrics.bleu import BLEU
        from sacrebleu.metrics.chrf import CHRF
    except ImportError as error:
        raise ConfigError(
            "translations are scored by sacrebleu: pip install 'draftless[bench]'"
        ) from error
    return BLEU() if name == "bleu" else CHRF()


def _scores(name: str, totals: Numbers) -> Numbers:
    compute = _metric(name)._compute_score_from_stats
    flat = totals.reshape(-1, totals.shape[-1]).astype(int)
    return np.array([compute(one.tolist()).score for one in flat]).reshape(totals.shape[:-1])
