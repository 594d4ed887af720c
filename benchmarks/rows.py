"""Rows of a benchmark: what one run leaves behind, how rows are kept, and what they add up to.

Averages are means over domains of token-weighted values. Intervals are 95 % bootstrap intervals
over prompts, drawn within domains; a prompt always brings both its plain and its drafted run.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

LOOP_PERIOD = 8
LOOP_LIMIT = 0.5
PLAIN_METHODS = ("transformers", "none")


@dataclass(frozen=True)
class Case:
    """What is measured on every prompt."""

    model: str
    method: str
    sampling: str
    dtype: str


@dataclass
class Row:
    """One prompt under one case.

    Attributes:
        case: what was measured.
        domain, prompt_id: on which prompt.
        num_tokens: generated tokens, EOS included.
        num_steps: forward passes that emitted a token.
        seconds: of the whole call, prefill included.
        time_s: seconds by stage (our engine only; `verify` includes the stop checks).
        num_nodes: root and drafts fed in all steps.
        acceptance_histogram: steps by number of accepted drafts.
        num_looping: tokens inside repeats of period <= 8.
        same_until: tokens equal to our plain run, None if all are.
        finish_reason: why it ended.
        load: load average of the machine when it ended.
        session: line of `sessions.jsonl` with the provenance.
        error: what went wrong; then there are no numbers.
    """

    case: Case
    domain: str
    prompt_id: str
    num_tokens: int = 0
    num_steps: int = 0
    seconds: float = 0.0
    time_s: dict[str, float] = field(default_factory=dict)
    num_nodes: int = 0
    acceptance_histogram: list[int] = field(default_factory=list)
    num_looping: int = 0
    same_until: int | None = None
    finish_reason: str = ""
    load: float = 0.0
    session: int = 0
    error: str | None = None

    @property
    def decode_s(self) -> float:
        return self.seconds - self.time_s.get("prefill", 0.0)

    @property
    def is_looping(self) -> bool:
        return self.num_looping > LOOP_LIMIT * self.num_tokens


def looping_tokens(ids: Sequence[int], period: int = LOOP_PERIOD) -> int:
    """How many tokens lie in repeats: two copies or more of `period` tokens or fewer, 8 at least."""
    inside = np.zeros(len(ids), dtype=bool)
    tokens = np.asarray(ids)
    for step in range(1, min(period, len(ids) - 1) + 1):
        equal = np.concatenate(([False], tokens[step:] == tokens[:-step], [False]))
        edges = np.flatnonzero(np.diff(equal.astype(np.int8)))
        for begin, end in edges.reshape(-1, 2):  # the copies start `step` earlier
            if end - begin + step >= max(2 * step, period):
                inside[begin : end + step] = True
    return int(inside.sum())


def append_row(path: Path, row: Row) -> None:
    """Add a line; one that a kill left unfinished stays behind as a line that `read_rows` skips."""
    with path.open("ab+") as file:
        file.seek(max(0, file.seek(0, os.SEEK_END) - 1))
        is_cut = file.read(1) not in (b"", b"\n")
        file.write(b"\n" * is_cut + json.dumps(asdict(row)).encode() + b"\n")


def read_rows(path: Path) -> list[Row]:
    """All complete rows of a file that may not exist."""
    rows = []
    for line in path.read_text(encoding="utf-8").splitlines() if path.exists() else []:
        try:
            data = json.loads(line)
        except json.JSONDecodeError:
            continue
        rows.append(Row(**{**data, "case": Case(**data["case"])}))
    return rows


def by_case(rows: Iterable[Row]) -> dict[Case, dict[tuple[str, str], Row]]:
    """Rows by case, then by (domain, prompt id); failed runs are left to `num_failed`."""
    cases: dict[Case, dict[tuple[str, str], Row]] = {}
    for row in rows:
        if row.error is None:
            cases.setdefault(row.case, {})[row.domain, row.prompt_id] = row
    return cases


def domain_mean(rows: Sequence[Row], above: str, below: str) -> float:
    """Mean over domains of one total over another."""
    return float(np.mean(list(domain_ratios(rows, above, below).values())))


def domain_ratios(rows: Sequence[Row], above: str, below: str) -> dict[str, float]:
    """One total over another, per domain."""
    ratios = {}
    for domain in sorted({row.domain for row in rows}):
        own = [row for row in rows if row.domain == domain]
        ratios[domain] = sum(getattr(r, above) for r in own) / sum(getattr(r, below) for r in own)
    return ratios


def speed_up(
    pairs: Sequence[tuple[Row, Row]], seconds: str = "seconds", resamples: int = 2000
) -> tuple[float, float, float]:
    """Tokens per second of the first over the second of each pair: mean, and 95 % interval."""
    generator = np.random.default_rng(0)
    samples, exact = [], []
    for domain in sorted({row.domain for row, _ in pairs}):
        own = np.array(
            [
                (a.num_tokens, getattr(a, seconds), b.num_tokens, getattr(b, seconds))
                for a, b in pairs
                if a.domain == domain
            ]
        )  # [n, 4]
        picks = generator.integers(len(own), size=(resamples, len(own)))
        totals = own[picks].sum(axis=1)  # [resamples, 4]
        for target, total in ((samples, totals), (exact, own.sum(axis=0)[None])):
            target.append((total[:, 0] / total[:, 1]) / (total[:, 2] / total[:, 3]))
    low, high = np.percentile(np.mean(samples, axis=0), [2.5, 97.5])
    return float(np.mean(exact)), float(low), float(high)


def fastest_plain(cases: dict[Case, dict[tuple[str, str], Row]], case: Case) -> Case | None:
    """The fastest plain loop of the same model, sampling and dtype."""
    plain = [
        other
        for other in cases
        if other.method in PLAIN_METHODS
        and (other.model, other.sampling, other.dtype) == (case.model, case.sampling, case.dtype)
    ]
    return max(
        plain,
        key=lambda c: domain_mean(list(cases[c].values()), "num_tokens", "seconds"),
        default=None,
    )


def summarise(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """One object per case: everything that the tables show."""
    cases = by_case(rows)
    failed = [row for row in rows if row.error is not None]
    return [
        {
            **asdict(case),
            "num_failed": sum(row.case == case for row in failed),
            **_summary(cases, case),
        }
        for case in cases
    ]


def _summary(cases: dict[Case, dict[tuple[str, str], Row]], case: Case) -> dict[str, Any]:
    own = cases[case]
    plain_case = fastest_plain(cases, case)
    plain = cases[plain_case] if plain_case else own
    shared = [key for key in own if key in plain]
    pairs = [(own[k], plain[k]) for k in shared if not (own[k].is_looping or plain[k].is_looping)]
    kept = [row for row, _ in pairs]
    if not kept:
        return {"num_prompts": len(own), "num_left_out": len(shared)}
    total = sum(row.num_tokens for row in own.values())
    return {
        "num_prompts": len(own),
        "num_left_out": len(shared) - len(kept),
        "num_tokens": total,
        "loop_share": sum(row.num_looping for row in own.values()) / total,
        "num_different": sum(row.same_until is not None for row in own.values()),
        "acceptance_length": domain_mean(kept, "num_tokens", "num_steps"),
        "acceptance_length_by_domain": domain_ratios(kept, "num_tokens", "num_steps"),
        "tokens_per_second": domain_mean(kept, "num_tokens", "seconds"),
        "plain": plain_case.method if plain_case else None,
        "speed_up": speed_up(pairs),
        "speed_up_by_domain": {
            domain: speed_up([p for p in pairs if p[0].domain == domain], resamples=1)[0]
            for domain in sorted({row.domain for row in kept})
        },
        **_stages(cases, case, kept),
    }


def _stages(
    cases: dict[Case, dict[tuple[str, str], Row]], case: Case, kept: Sequence[Row]
) -> dict[str, Any]:
    """Where a step's time goes, and how much of the acceptance becomes speed (our engine only)."""
    stages = ("propose", "forward", "verify", "commit", "observe")
    seconds = {stage: sum(row.time_s.get(stage, 0.0) for row in kept) for stage in stages}
    step_s = sum(seconds.values())
    base = cases.get(Case(case.model, "none", case.sampling, case.dtype))
    if not step_s or base is None:
        return {}
    pairs = [(row, base[row.domain, row.prompt_id]) for row in kept if _key(row) in base]
    forward_ms = 1000 * seconds["forward"] / sum(row.num_steps for row in kept)
    base_ms = 1000 * _total([b for _, b in pairs], "forward") / sum(b.num_steps for _, b in pairs)
    decode = speed_up(pairs, seconds="decode_s")
    length = domain_mean(kept, "num_tokens", "num_steps")
    return {
        "stage_share": {stage: seconds[stage] / step_s for stage in stages},
        "overhead_share": 1 - seconds["forward"] / step_s,
        "nodes_per_step": sum(row.num_nodes for row in kept) / sum(row.num_steps for row in kept),
        "forward_ms": forward_ms,
        "plain_forward_ms": base_ms,
        "decode_speed_up_over_none": decode,
        "efficiency": decode[0] / (length * base_ms / forward_ms),
    }


def _key(row: Row) -> tuple[str, str]:
    return row.domain, row.prompt_id


def _total(rows: Sequence[Row], stage: str) -> float:
    return sum(row.time_s.get(stage, 0.0) for row in rows)
