"""ROUGE of summaries, by rouge-score."""

from __future__ import annotations

from functools import lru_cache
from typing import Any

from draftless.errors import ConfigError

NAMES = ("rouge1", "rouge2", "rougeL")


def score(output: str, reference: str) -> dict[str, float]:
    """F-measures of ROUGE-1, ROUGE-2 and ROUGE-L, with stemming, 0 to 1.

    Raises:
        ConfigError: rouge-score is not installed.
    """
    return {name: float(one.fmeasure) for name, one in _scorer().score(reference, output).items()}


@lru_cache
def _scorer() -> Any:
    try:
        from rouge_score.rouge_scorer import RougeScorer  # type: ignore[import-untyped]
    except ImportError as error:
        raise ConfigError(
            "summaries are scored by rouge-score: pip install 'draftless[bench]'"
        ) from error
    return RougeScorer(list(NAMES), use_stemmer=True)
