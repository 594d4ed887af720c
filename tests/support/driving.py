"""Runs requests through the engine's loop and audits every step."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from draftless.engine.cache import KVCache
from draftless.engine.loop import Request, decode, make_request
from draftless.engine.position_noise import PositionNoise
from draftless.engine.target import TargetModel
from draftless.noise import KeyedNoise
from draftless.params import SamplingParams
from draftless.skip_set import SkipSet
from draftless.types import Drafter, DraftPasses, DraftTree, Row, StepRecord
from support.models import VOCAB_SIZE


@dataclass
class Result:
    """What one request gave: new ids, why it ended, and its steps."""

    token_ids: list[int]
    finish_reason: str
    steps: list[StepRecord]
    request: Request


@dataclass(frozen=True)
class Job:
    """One request to run."""

    prompt_ids: Sequence[int]
    params: SamplingParams
    eos_token_ids: Sequence[int] = ()


def run(
    target: TargetModel, drafter: Drafter, jobs: Sequence[Job], *, audit: bool = True
) -> list[Result]:
    """Run all jobs in one batch; with `audit`, the invariants are checked after every step."""
    requests = [
        make_request(target, index, job.prompt_ids, job.params, None, job.eos_token_ids)
        for index, job in enumerate(jobs)
    ]
    steps: list[list[StepRecord]] = [[] for _ in jobs]
    audited = _Audit(target, drafter) if audit else None
    try:
        for request, record in decode(target, audited or drafter, requests):
            steps[request.row.request_id].append(record)
    finally:
        if audited:
            audited.close()
    return [
        Result(
            token_ids=request.row.token_ids[request.row.prompt_len :],
            finish_reason=str(taken[-1].verdict.finish_reason),
            steps=taken,
            request=request,
        )
        for request, taken in zip(requests, steps, strict=True)
    ]


@dataclass
class _Audit:
    """A drafter around a drafter that checks what the loop promises."""

    target: TargetModel
    inner: Drafter
    _caches: list[KVCache] = field(default_factory=list)
    _make_cache: Callable[..., KVCache] | None = None

    def __post_init__(self) -> None:
        make_cache = self.target.make_cache

        def remember(*args: int) -> KVCache:
            self._caches.append(make_cache(*args))
            return self._caches[-1]

        self.target.make_cache = remember  # type: ignore[method-assign]

    def close(self) -> None:
        del self.target.make_cache  # type: ignore[method-assign]

    def reset(self, row: Row) -> None:
        self.inner.reset(row)

    def propose(self, rows: Sequence[Row], passes: DraftPasses) -> list[DraftTree]:
        self._check_lengths(rows)
        trees = self.inner.propose(rows, passes)
        for row, tree in zip(rows, trees, strict=True):
            assert tree.token_ids[0] == row.token_ids[-1], "node 0 carries the root token"
        return trees

    def observe(self, records: Sequence[StepRecord]) -> None:
        self._check_lengths([record.row for record in records])
        for record in records:
            assert record.logits is not None
            assert len(record.logits) == record.tree.num_nodes
            committed = list(record.verdict.token_ids)
            assert record.row.token_ids[-len(committed) :] == committed
        self.inner.observe(records)

    def _check_lengths(self, rows: Sequence[Row]) -> None:
        """The invariant of DESIGN 2: all committed tokens but the last one are cached."""
        lengths = self._caches[0].lengths
        assert lengths == [len(row.token_ids) - 1 for row in rows]


class RandomPasses:
    """Draft passes without a model behind them: random logits."""

    def feed(self, token_ids: Mapping[int, Sequence[int]], _: SkipSet) -> dict[int, torch.Tensor]:
        return {row: torch.randn(len(ids), VOCAB_SIZE) for row, ids in token_ids.items()}


def make_row(
    ids: list[int], *, temperature: float = 0.0, max_depth: int = 50, **options: Any
) -> Row:
    """A row as a drafter sees it, without an engine behind it."""
    params = SamplingParams(temperature=temperature, seed=4, **options)
    noise = PositionNoise(KeyedNoise(4), VOCAB_SIZE, torch.device("cpu")) if temperature else None
    row = Row(0, ids, params, noise)
    row.max_depth = max_depth
    return row
