"""Tables of quality: one model, or before and after training, with 95 % bootstrap intervals."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from draftless.bench.quality import translation
from draftless.bench.quality.evaluate import (
    OnProgress,
    QualityOptions,
    QualityReport,
    QualityRow,
    evaluate_quality,
    prompt_format_of,
)
from draftless.bench.quality.records import read_quality_records
from draftless.bench.quality.sandbox import namespaces
from draftless.bench.quality.scoring import METRICS
from draftless.bench.statistics import Interval, Numbers, stratified_interval
from draftless.errors import ConfigError, InputError
from draftless.jsonl import write_file
from draftless.model import Draftless
from draftless.prompts import PromptFormat
from draftless.provenance import collect_provenance

FORMAT = 1
ALL = "all domains"


@dataclass(frozen=True, slots=True)
class Score:
    """One metric of one model in one domain; over `ALL`, every domain weighs the same.

    Attributes:
        domain, metric: what.
        num: records that count.
        interval: the score with its 95 % interval, shares between 0 and 1.
    """

    domain: str
    metric: str
    num: int
    interval: Interval


@dataclass(frozen=True, slots=True)
class Change:
    """One metric before and after, on the records that both models have.

    Attributes:
        domain, metric: what.
        num: records that count.
        before, after: scores with intervals of their own.
        difference: after minus before; its interval is paired by record.
        num_better, num_worse: records whose own score went up or down (for a loss: down or up).
    """

    domain: str
    metric: str
    num: int
    before: Interval
    after: Interval
    difference: Interval
    num_better: int
    num_worse: int

    @property
    def verdict(self) -> str:
        """`better` or `worse` if the interval lies on one side of 0, else `no clear change`."""
        higher = METRICS[self.metric].higher_is_better
        if self.difference.low > 0:
            return "better" if higher else "worse"
        if self.difference.high < 0:
            return "worse" if higher else "better"
        return "no clear change"


def quality_scores(report: QualityReport) -> list[Score]:
    """All scores of one model."""
    return [
        Score(domain, metric, sum(map(len, strata)), _interval(metric, strata))
        for domain, metric, strata in _tables([report])
    ]


def compare_quality(before: QualityReport, after: QualityReport) -> list[Change]:
    """What changed between two models that answered the same records."""
    changes = []
    for domain, metric, strata in _tables([before, after]):
        width = strata[0].shape[1] // 2
        halves = [[own[:, :width] for own in strata], [own[:, width:] for own in strata]]
        better, worse = _moved(metric, np.concatenate(strata))
        changes.append(
            Change(
                domain,
                metric,
                sum(map(len, strata)),
                before=_interval(metric, halves[0]),
                after=_interval(metric, halves[1]),
                difference=stratified_interval(strata, lambda t, m=metric: _difference(m, t)),  # type: ignore[misc]
                num_better=better,
                num_worse=worse,
            )
        )
    return changes


def write_quality(
    model: tuple[str, Draftless],
    data: Path,
    output: Path,
    *,
    before: tuple[str, Draftless] | None = None,
    options: QualityOptions | None = None,
    on_progress: OnProgress | None = None,
) -> Path:
    """Evaluate a model, and the one before it if given, and write what came out.

    Both get prompts in the same format, unless both were trained with a format of their own.

    Args:
        model: short name and loaded model.
        data: records (`read_quality_records`).
        output: JSON file; tables go to `output.md`, rows to `output.rows.jsonl`, which an
            interrupted evaluation goes on from.
        before: what the model is compared with.
        options: how quality is measured.
        on_progress: called after every batch.

    Returns:
        `output`.

    Raises:
        InputError: the data cannot be read, or a model failed on every record.
        ConfigError: `output` is no `.json`, a library is missing, or programs cannot be run here.
    """
    if output.suffix != ".json":
        raise ConfigError(f"the result is JSON; name a file that ends in .json, not {output.name}")
    options = options or QualityOptions()
    records = read_quality_records(data, with_code=options.runs_code, limit=options.limit)
    models = [model] if before is None else [before, model]
    models = _told_apart(models)
    output.parent.mkdir(parents=True, exist_ok=True)
    reports = [
        evaluate_quality(
            one,
            records,
            name=name,
            options=options,
            prompt_format=_shared_format(one, model[1]),
            rows_file=output.with_suffix(".rows.jsonl"),
            on_progress=on_progress,
        )
        for name, one in models
    ]
    for report in reports:
        failed = _failed(report)
        if len(failed) == len(report.rows):
            raise InputError(f"{report.name} failed on every record, first: {failed[0].error}")
    write_file(output.with_suffix(".md"), quality_markdown(reports))
    text = json.dumps(quality_json(reports, options), indent=1, ensure_ascii=False)
    write_file(output, text + "\n")
    return output


def quality_json(reports: Sequence[QualityReport], options: QualityOptions) -> dict[str, Any]:
    """Scores and changes with provenance; what is not known is null."""
    metrics = {row_metric for report in reports for row in report.rows for row_metric in row.scores}
    content = {
        "format": FORMAT,
        "provenance": collect_provenance(),
        "options": asdict(options),
        "sacrebleu": translation.signatures() if "bleu" in metrics else None,
        "isolation": list(namespaces()[1:]) if "pass_at_1" in metrics else None,
        "models": [{"name": report.name, **report.facts} for report in reports],
        "scores": {report.name: [asdict(s) for s in quality_scores(report)] for report in reports},
        "changes": [{**asdict(change), "verdict": change.verdict} for change in _changes(reports)],
        "failed": [
            {"model": row.model, "record_id": row.record_id, "error": row.error}
            for report in reports
            for row in _failed(report)
        ],
    }
    return {name: _without_nan(value) for name, value in content.items()}


def quality_markdown(reports: Sequence[QualityReport]) -> str:
    """The tables, and what must be known to read them."""
    names = [report.name for report in reports]
    lines = [f"# Quality: {' before, '.join(names)}{' after' * (len(names) > 1)}", ""]
    if len(reports) == 1:
        lines += ["| domain | metric | records | score [95 %] |", "|---|---|---:|---:|"]
        lines += [
            f"| {s.domain} | {METRICS[s.metric].title} | {s.num} | {_shown(s.metric, s.interval)} |"
            for s in quality_scores(reports[0])
        ]
    else:
        heads = ["domain", "metric", "records", "before", "after", "change [95 %]"]
        heads += ["better / worse", "so"]
        lines += [f"| {' | '.join(heads)} |", "|---|---|---:|---:|---:|---:|---:|---|"]
        lines += [_change_line(change) for change in _changes(reports)]
    lines += ["", *_notes(reports)]
    return "\n".join(lines) + "\n"


def _changes(reports: Sequence[QualityReport]) -> list[Change]:
    return compare_quality(*reports) if len(reports) == 2 else []


def _tables(reports: Sequence[QualityReport]) -> Iterable[tuple[str, str, list[Numbers]]]:
    """Per domain and metric the numbers of the records that all reports have, side by side.

    Yields:
        Domain, metric and its strata: one array `[records, width * reports]` of the domain; for
        `ALL`, one of every domain.
    """
    by_id = [{row.record_id: row for row in report.rows} for report in reports]
    found: dict[tuple[str, str], list[list[float]]] = {}
    for first in reports[0].rows:
        rows = [own[first.record_id] for own in by_id if first.record_id in own]
        if len(rows) == len(reports):
            for metric in METRICS:
                if all(metric in row.scores for row in rows):
                    numbers = [number for row in rows for number in row.scores[metric]]
                    found.setdefault((first.domain, metric), []).append(numbers)
    for (domain, metric), numbers_of in found.items():
        yield domain, metric, [np.array(numbers_of, dtype=np.float64)]
    for metric in METRICS:
        strata = [np.array(own) for (_, known), own in found.items() if known == metric]
        if len(strata) > 1:
            yield ALL, metric, strata


def _interval(metric: str, strata: Sequence[Numbers]) -> Interval:
    return stratified_interval(strata, METRICS[metric].score)


def _difference(metric: str, totals: Numbers) -> Numbers:  # [..., 2 * width] -> [...]
    width = totals.shape[-1] // 2
    score = METRICS[metric].score
    return np.asarray(score(totals[..., width:]) - score(totals[..., :width]))


def _moved(metric: str, numbers: Numbers) -> tuple[int, int]:
    """How many records got better, and how many worse."""
    moves = np.sign(_difference(metric, numbers).round(9))
    up, down = int((moves > 0).sum()), int((moves < 0).sum())
    return (up, down) if METRICS[metric].higher_is_better else (down, up)


def _told_apart(models: Sequence[tuple[str, Draftless]]) -> list[tuple[str, Draftless]]:
    """Two models of one name become `name (before)` and `name (after)`."""
    if len(models) == 2 and models[0][0] == models[1][0]:
        marks = (" (before)", " (after)")
        return [(name + mark, one) for (name, one), mark in zip(models, marks, strict=True)]
    return list(models)


def _shared_format(one: Draftless, trained: Draftless) -> PromptFormat:
    """A model without a format of its own gets the one that the other was trained with."""
    has_own = one.manifest is not None and one.manifest.prompt_format is not None
    return prompt_format_of(one if has_own else trained)


def _failed(report: QualityReport) -> list[QualityRow]:
    return [row for row in report.rows if row.error is not None]


def _shown(metric: str, interval: Interval, *, signed: bool = False) -> str:
    own = METRICS[metric]
    sign = "+" if signed else ""
    value = f"{interval.value * own.scale:{sign}.{own.decimals}f}"
    if not interval.is_known:
        return f"{value} [?]"
    low, high = (f"{b * own.scale:{sign}.{own.decimals}f}" for b in (interval.low, interval.high))
    return f"{value} [{low}, {high}]"


def _change_line(change: Change) -> str:
    own = METRICS[change.metric]
    before, after = (
        f"{i.value * own.scale:.{own.decimals}f}" for i in (change.before, change.after)
    )
    moved = f"{change.num_better} / {change.num_worse}"
    cells = [change.domain, own.title, str(change.num), before, after]
    cells += [_shown(change.metric, change.difference, signed=True), moved, change.verdict]
    return f"| {' | '.join(cells)} |"


def _notes(reports: Sequence[QualityReport]) -> list[str]:
    notes = ["Greedy decoding. Intervals: bootstrap over records, 95 %."]
    if len(reports) > 1:
        notes[0] += " Changes are paired by record."
        notes.append(
            "Of many lines without any true change, one in twenty leaves 0 by chance. "
            "An interval that is a single point says that no record moved, not that none ever will."
        )
    for report in reports:
        failed, cut = _failed(report), [r for r in report.rows if r.finish_reason == "length"]
        notes.append(
            f"{report.name}: {len(failed)} of {len(report.rows)} records failed and count nowhere; "
            f"{len(cut)} answers were cut at the token limit."
        )
    return [f"- {note}" for note in notes]


def _without_nan(value: Any) -> Any:
    """JSON knows no NaN."""
    if isinstance(value, Mapping):
        return {name: _without_nan(one) for name, one in value.items()}
    if isinstance(value, list):
        return [_without_nan(one) for one in value]
    return None if isinstance(value, float) and math.isnan(value) else value
