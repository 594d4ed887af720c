"""Whether outputs are those of our plain loop, and where they are not.

The runner writes down the first difference of every turn. It is counted here against the plain
loop's own ids, so that a difference that nobody judged counts as a defect and not as equal.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from draftless.bench.rows import Case, Margin, QuestionKey, Row, Turn

OUR_PLAIN = "none"
GREEDY = "greedy"


@dataclass(frozen=True, slots=True)
class Divergence:
    """The first place where an output departs from the plain loop's.

    Attributes:
        row: the output.
        turn: number of the turn, from 0.
        margin: what stands there, and how near the two tokens were; None if nobody looked.
    """

    row: Row
    turn: int
    margin: Margin | None

    @property
    def is_near_tie(self) -> bool:
        return self.margin is not None and self.margin.is_near_tie

    @property
    def is_defect(self) -> bool:
        """Whether it is a mistake of ours: no near-tie, and no difference of `transformers`' loops."""
        return not (self.is_near_tie or is_peer(self.row.case.method))


@dataclass(frozen=True, slots=True)
class Trust:
    """Outputs of one case (a question with all its turns is one output), compared with plain ones.

    Attributes:
        num_compared: outputs that our plain loop has answered as well; 0 where no comparison is
            due: for that loop itself, and for sampled runs of `transformers`, whose draws are
            others.
        num_identical, num_near_ties, num_defects: what the comparison gave; they sum up to it.
    """

    num_compared: int
    num_identical: int
    num_near_ties: int
    num_defects: int


def is_peer(method: str) -> bool:
    """Whether the method is a loop of `transformers`, and not one of ours."""
    return method.split()[0] == "transformers"


def is_comparable(case: Case) -> bool:
    """Whether outputs of the case should be those of our plain loop."""
    is_other_law = is_peer(case.method) and case.sampling != GREEDY
    return case.method != OUR_PLAIN and not is_other_law


def divergence(row: Row, plain: Row) -> Divergence | None:
    """The worst difference of two answers to one question, the first one if all are near-ties.

    A turn behind a difference answers another conversation, so only a judgement of the runner
    counts there.
    """
    found = [Divergence(row, i, turn.margin) for i, turn in enumerate(row.turns) if turn.margin]
    if not found and (different := _first_unjudged(row.turns, plain.turns)) is not None:
        return Divergence(row, different, None)
    return next((one for one in found if not one.is_near_tie), found[0] if found else None)


def _first_unjudged(turns: list[Turn], plain: list[Turn]) -> int | None:
    for i, (turn, other) in enumerate(zip(turns, plain, strict=False)):
        if turn.token_ids != other.token_ids:
            return i
    return None if len(turns) == len(plain) else min(len(turns), len(plain))


def compare(
    rows: Iterable[Row], plain: Mapping[QuestionKey, Row]
) -> tuple[Trust, list[Divergence]]:
    """Outputs of one case against the plain loop's answers to the same questions."""
    shared = [row for row in rows if is_comparable(row.case) and row.question in plain]
    found = [one for row in shared if (one := divergence(row, plain[row.question]))]
    num_near_ties = sum(one.is_near_tie for one in found)
    trust = Trust(
        num_compared=len(shared),
        num_identical=len(shared) - len(found),
        num_near_ties=num_near_ties,
        num_defects=len(found) - num_near_ties,
    )
    return trust, found
