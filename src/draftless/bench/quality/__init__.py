"""What training did to a model's answers: losses, scores of tasks, loops, before and after."""

from draftless.bench.quality.compare import (
    Change,
    Score,
    compare_quality,
    quality_json,
    quality_markdown,
    quality_scores,
    write_quality,
)
from draftless.bench.quality.evaluate import (
    QualityOptions,
    QualityReport,
    QualityRow,
    evaluate_quality,
    prompt_format_of,
)
from draftless.bench.quality.records import QualityRecord, read_quality_records

__all__ = [
    "Change",
    "QualityOptions",
    "QualityRecord",
    "QualityReport",
    "QualityRow",
    "Score",
    "compare_quality",
    "evaluate_quality",
    "prompt_format_of",
    "quality_json",
    "quality_markdown",
    "quality_scores",
    "read_quality_records",
    "write_quality",
]
