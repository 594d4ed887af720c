"""Metrics: what one output brings, and how totals over outputs become a score.

Every output brings a row of numbers per metric. A score is a function of their sums; so means,
token-weighted losses and corpus BLEU go the same way, and so do their bootstrap intervals.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from draftless.bench.quality import code, gsm8k, sql, summaries, translation
from draftless.bench.quality.records import QualityRecord
from draftless.bench.statistics import Numbers

# Of one metric: the numbers that one output brings.
Numerals = list[float]


def _ratio(totals: Numbers) -> Numbers:  # [..., 2] -> [...]
    return np.asarray(totals[..., 0] / totals[..., 1])


@dataclass(frozen=True, slots=True)
class Metric:
    """One metric.

    Attributes:
        title: for tables.
        score: of totals `[..., k]`, gives `[...]`.
        higher_is_better: or lower.
        scale: factor to the unit of tables: 100 for shares.
        decimals: in tables.
    """

    title: str
    score: Callable[[Numbers], Numbers] = _ratio
    higher_is_better: bool = True
    scale: float = 100.0
    decimals: int = 1


METRICS: dict[str, Metric] = {
    "clean_loss": Metric(
        "clean loss (nats per token)", higher_is_better=False, scale=1, decimals=3
    ),
    "loop_share": Metric("tokens in loops (%)", higher_is_better=False),
    "sql_exact": Metric("same query (%)"),
    "sql_executes": Metric("same results (%)"),
    "bleu": Metric("BLEU", translation.bleu, scale=1),
    "chrf": Metric("chrF", translation.chrf, scale=1),
    "rouge1": Metric("ROUGE-1 (F, %)"),
    "rouge2": Metric("ROUGE-2 (F, %)"),
    "rougeL": Metric("ROUGE-L (F, %)"),
    "gsm8k": Metric("right answers, else last number (%)"),
    "gsm8k_marked": Metric("right answers behind #### (%)"),
    "pass_at_1": Metric("pass@1 (%)"),
}


def score_output(
    record: QualityRecord, output: str, *, runs_code: bool = False
) -> dict[str, Numerals]:
    """What an output brings to the metrics of its record's domain.

    Args:
        record: what was asked.
        output: what the model wrote.
        runs_code: execute it where the record has a test; without, pass@1 is not measured.

    Raises:
        ConfigError: a library is missing, or programs cannot be run here.
    """
    if record.test:
        if not runs_code:
            return {}
        outcome = code.passes(output, record.prompt, record.entry_point, record.test)
        return _shares({"pass_at_1": outcome.passed})
    if record.domain == "sql":
        return _shares(sql.score(output, record.response, record.prompt))
    if record.domain == "translation":
        return translation.counts(output, record.response)
    if record.domain == "summarization":
        return _shares(summaries.score(output, record.response))
    if record.domain == "math":
        return _shares(gsm8k.score(output, record.response) or {})
    return {}


def _shares(
    values: dict[str, bool] | dict[str, float] | dict[str, bool | None],
) -> dict[str, Numerals]:
    """A value between 0 and 1 counts once; None does not count."""
    return {name: [float(value), 1.0] for name, value in values.items() if value is not None}
