"""What the rows of one run add up to.

Averages are means over categories of token-weighted values, so that a category with long answers
counts no more than another. A speed-up is tokens per second of the whole call over the fastest
plain loop of the same model, sampling and dtype in the same run. Outputs that are mostly repeats
flatter every drafter: a question whose output, drafted or plain, is more than half repeats is left
out of these numbers, and counted.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from draftless.bench import averages
from draftless.bench.averages import Pair
from draftless.bench.rows import PLAIN_METHODS, Case, QuestionKey, Row
from draftless.bench.statistics import Interval
from draftless.bench.trust import OUR_PLAIN, Divergence, Trust, compare

STAGES = ("propose", "draft", "forward", "verify", "commit", "observe")
Questions = Mapping[QuestionKey, Row]


@dataclass(frozen=True, slots=True)
class CategorySummary:
    """One case on one category.

    Attributes:
        num_questions: questions that count (repetitions are one).
        acceptance_length: committed tokens per step.
        accepted_per_cycle: accepted drafts per verification of drafts; None without drafts.
        tokens_per_second: of the whole call.
        speed_up: None without a plain loop.
    """

    num_questions: int
    acceptance_length: float
    accepted_per_cycle: float | None
    tokens_per_second: float
    speed_up: Interval | None


@dataclass(frozen=True, slots=True)
class StageSummary:
    """Where the time of a step goes, prefill apart (our engine only).

    Attributes:
        share: of the step's time, by stage; the shares sum to 1.
        nodes_per_step: tokens fed to a forward pass: the root, drafts and probes.
        forward_ms: T(W), milliseconds of the forward pass of a step.
        plain_forward_ms: T(1), the same in our plain loop on the same questions; None without it.
        efficiency: the speed-up of decoding over the one that acceptance length and cost of the
            passes promise, `decode speed-up / (acceptance length x T(1) / (T(W) + T(draft)))` with
            the draft passes of a step in T(draft). At 1 nothing but the passes costs time.
        draft_passes_per_step: passes that the drafter made through part of the target.
        draft_pass_ms: milliseconds of one of them; None if there were none.
    """

    share: dict[str, float]
    nodes_per_step: float
    forward_ms: float
    plain_forward_ms: float | None
    efficiency: float | None
    draft_passes_per_step: float
    draft_pass_ms: float | None

    @property
    def overhead_share(self) -> float:
        """Everything outside the passes: the forward pass, and those of the drafter."""
        return 1.0 - self.share["forward"] - self.share["draft"]

    @property
    def draft_cost_share(self) -> float | None:
        """f: what one draft pass costs, over the forward pass of a step."""
        return self.draft_pass_ms / self.forward_ms if self.draft_pass_ms is not None else None

    @property
    def width_cost(self) -> float | None:
        """T(W) / T(1)."""
        return self.forward_ms / self.plain_forward_ms if self.plain_forward_ms else None


@dataclass(frozen=True, slots=True)
class CaseSummary:
    """One case on all questions. What cannot be told is None.

    Attributes:
        case: what was measured.
        plain: method of the fastest plain loop.
        num_answers: rows with an answer (a repetition is a row of its own).
        num_failed: rows with an error.
        num_left_out: answers left out because they, or the plain ones, are mostly repeats.
        num_unpaired: answers to questions on which that plain loop failed; left out, too.
        num_tokens: of all answers.
        loop_share: share of them inside repeats.
        speed_up: over `plain`, whole call.
        decode_speed_up: without the prefill, over our own plain loop.
        question_mean_speed_up: Spec-Bench's way: the ratio of two means over questions of tokens
            per second; no question is left out.
        acceptance_length: committed tokens per step.
        tokens_per_second: of the whole call.
        first_token_s, prefill_s: seconds per call.
        per_position_acceptance: share of steps that accepted at least 1, 2, ... drafts.
        acceptance_histogram: steps that accepted 0, 1, ... drafts.
        num_draft_tokens: in all; probes are none.
        num_forward_passes: of the target in all, prefills included.
        accepted_per_cycle: accepted drafts per verification of drafts; None without drafts.
        acceptance_rate: accepted over draft tokens.
        drafts_per_step: draft tokens per step.
        by_category: in alphabetical order.
        stages: None for peers.
        trust: comparison with our plain loop.
    """

    case: Case
    plain: str | None
    num_answers: int
    num_failed: int
    num_left_out: int
    num_unpaired: int
    num_tokens: int
    loop_share: float
    speed_up: Interval | None
    decode_speed_up: Interval | None
    question_mean_speed_up: float | None
    acceptance_length: float | None
    tokens_per_second: float | None
    first_token_s: float | None
    prefill_s: float | None
    per_position_acceptance: tuple[float, ...]
    acceptance_histogram: tuple[int, ...]
    num_draft_tokens: int
    num_forward_passes: int
    accepted_per_cycle: float | None
    acceptance_rate: float | None
    drafts_per_step: float | None
    by_category: dict[str, CategorySummary]
    stages: StageSummary | None
    trust: Trust

    @property
    def group(self) -> Group:
        return Group(self.case.model, self.case.sampling, self.case.dtype)

    @property
    def is_plain(self) -> bool:
        return self.case.method in PLAIN_METHODS


@dataclass(frozen=True, slots=True)
class Group:
    """The cases whose speeds are compared with one another."""

    model: str
    sampling: str
    dtype: str


@dataclass(frozen=True, slots=True)
class Summary:
    """One run.

    Attributes:
        cases: group by group, plain loops first.
        categories: of the questions, in alphabetical order.
        divergences: every output that is not the plain loop's.
        failed: every row with an error.
    """

    cases: tuple[CaseSummary, ...]
    categories: tuple[str, ...]
    divergences: tuple[Divergence, ...]
    failed: tuple[Row, ...]

    def groups(self) -> dict[Group, list[CaseSummary]]:
        """The cases by group."""
        groups: dict[Group, list[CaseSummary]] = {}
        for case in self.cases:
            groups.setdefault(case.group, []).append(case)
        return groups


def summarise(rows: Sequence[Row]) -> Summary:
    """Everything that tables and charts show about one run."""
    run = _Run(averages.with_merged_categories(rows))
    found = [run.trust(case)[1] for case in run.cases]
    return Summary(
        cases=tuple(run.summary(case) for case in run.cases),
        categories=tuple(sorted({row.category for row in run.rows})),
        divergences=tuple(one for own in found for one in own),
        failed=tuple(row for row in run.rows if row.error is not None),
    )


class _Run:
    """The rows of one run, by case and question."""

    def __init__(self, rows: list[Row]) -> None:
        self.rows = rows
        order: dict[Group, None] = {}
        self._answers: dict[Case, dict[QuestionKey, Row]] = {}
        for row in rows:
            order.setdefault(_group(row.case))
            own = self._answers.setdefault(row.case, {})
            if row.error is None:
                own[row.question] = row
        places = {group: place for place, group in enumerate(order)}
        self.cases = sorted(
            self._answers, key=lambda c: (places[_group(c)], c.method not in PLAIN_METHODS)
        )

    def trust(self, case: Case) -> tuple[Trust, list[Divergence]]:
        return compare(self._answers[case].values(), self._our_plain(case))

    def summary(self, case: Case) -> CaseSummary:
        own = self._answers[case]
        plain_case = self._fastest_plain(case)
        plain = self._answers[plain_case] if plain_case else own
        shared = [(row, plain[key]) for key, row in own.items() if key in plain]
        pairs = [
            (a, b) for a, b in shared if not (averages.is_looping(a) or averages.is_looping(b))
        ]
        kept = [row for row, _ in pairs]
        accepted = [count for row in kept for count in averages.accepted_drafts(row)]
        base = self._our_plain(case)
        decode = averages.decode_speed_up(
            [(row, base[row.question]) for row in kept if row.question in base]
        )
        num_tokens = sum(row.num_tokens for row in own.values())
        return CaseSummary(
            case=case,
            plain=plain_case.method if plain_case else None,
            num_answers=len(own),
            num_failed=sum(row.case == case and row.error is not None for row in self.rows),
            num_left_out=len(shared) - len(kept),
            num_unpaired=len(own) - len(shared),
            num_tokens=num_tokens,
            loop_share=sum(t.num_looping for t in averages.turns_of(own.values()))
            / max(1, num_tokens),
            speed_up=averages.speed_up(pairs) if plain_case else None,
            decode_speed_up=decode,
            question_mean_speed_up=averages.question_mean_speed_up(shared) if plain_case else None,
            acceptance_length=averages.acceptance_length(kept),
            tokens_per_second=averages.tokens_per_second(kept),
            first_token_s=averages.mean_per_turn(kept, lambda turn: turn.first_token_s),
            prefill_s=averages.mean_per_turn(kept, lambda turn: turn.prefill_s),
            per_position_acceptance=averages.per_position_acceptance(
                kept, max(accepted, default=0)
            ),
            acceptance_histogram=tuple(np.bincount(accepted).tolist()) if accepted else (),
            num_draft_tokens=sum(averages.num_drafted(row) for row in own.values()),
            num_forward_passes=sum(t.num_forward_passes for t in averages.turns_of(own.values())),
            accepted_per_cycle=averages.accepted_per_cycle(kept),
            acceptance_rate=averages.acceptance_rate(kept),
            drafts_per_step=averages.drafts_per_step(kept),
            by_category=_by_category(pairs, has_plain=plain_case is not None),
            stages=_stages(kept, base, decode),
            trust=self.trust(case)[0],
        )

    def _our_plain(self, case: Case) -> Questions:
        return self._answers.get(replace(case, method=OUR_PLAIN), {})

    def _fastest_plain(self, case: Case) -> Case | None:
        """The fastest plain loop, judged where all of them have answers that count.

        One that failed on most questions sets no bar: it would leave little to compare.
        """
        cases = [replace(case, method=method) for method in PLAIN_METHODS]
        answers = {c: self._answers[c] for c in cases if self._answers.get(c)}
        most = max(map(len, answers.values()), default=0)
        answers = {c: own for c, own in answers.items() if 2 * len(own) >= most}
        shared = set.intersection(*map(set, answers.values())) if answers else set()
        counted = {
            key for key in shared if not any(averages.is_looping(a[key]) for a in answers.values())
        }

        def speed(plain: Case) -> float:
            judged = counted or shared or set(answers[plain])
            rows = [row for key, row in answers[plain].items() if key in judged]
            return averages.tokens_per_second(rows) or 0.0

        return max(answers, key=speed, default=None)


def _group(case: Case) -> Group:
    return Group(case.model, case.sampling, case.dtype)


def _by_category(pairs: Sequence[Pair], *, has_plain: bool) -> dict[str, CategorySummary]:
    found = {}
    for category, rows in averages.by_category(row for row, _ in pairs).items():
        found[category] = CategorySummary(
            num_questions=len({row.question_id for row in rows}),
            acceptance_length=averages.acceptance_length(rows) or 0.0,
            accepted_per_cycle=averages.accepted_per_cycle(rows),
            tokens_per_second=averages.tokens_per_second(rows) or 0.0,
            speed_up=averages.speed_up([p for p in pairs if p[0].category == category])
            if has_plain
            else None,
        )
    return found


def _stages(
    rows: Sequence[Row], base: Questions, decode_speed_up: Interval | None
) -> StageSummary | None:
    seconds = {s: sum(turn.time_s.get(s, 0.0) for turn in averages.turns_of(rows)) for s in STAGES}
    step_s, num_steps = sum(seconds.values()), sum(row.num_steps for row in rows)
    if not step_s or not num_steps:
        return None
    forward_ms = 1000 * seconds["forward"] / num_steps
    passes_ms = forward_ms + 1000 * seconds["draft"] / num_steps
    num_draft_passes = sum(turn.num_draft_passes for turn in averages.turns_of(rows))
    plain = [base[row.question] for row in rows if row.question in base]
    plain_forward_s = sum(turn.time_s.get("forward", 0.0) for turn in averages.turns_of(plain))
    plain_ms = 1000 * plain_forward_s / sum(row.num_steps for row in plain) if plain else None
    length = averages.acceptance_length(rows)
    return StageSummary(
        share={stage: value / step_s for stage, value in seconds.items()},
        nodes_per_step=sum(averages.num_nodes(row) for row in rows) / num_steps,
        forward_ms=forward_ms,
        plain_forward_ms=plain_ms,
        efficiency=decode_speed_up.value / (length * plain_ms / passes_ms)
        if decode_speed_up and plain_ms and length
        else None,
        draft_passes_per_step=num_draft_passes / num_steps,
        draft_pass_ms=1000 * seconds["draft"] / num_draft_passes if num_draft_passes else None,
    )
