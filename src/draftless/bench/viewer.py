"""Texts whose tokens are coloured by what drafted them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

from draftless.bench import averages
from draftless.bench.rows import Case, Row, Turn
from draftless.bench.summary import CaseSummary

SOURCES = ("retrieval", "denoised", "noise", "recycled", "adaptive", "draft")
NUM_COLORS = 7
METHODS_PER_GROUP = 2
MAX_TOKENS = 160
MAX_EXCERPTS = 120
# A page has room for so many tokens (about 35 bytes each).
TOKEN_BUDGET = 12_000

# Characters that would vanish or turn the text around are shown by a sign; a line's end as well.
_SIGNS = {
    **{code: chr(0x2400 + code) for code in range(32)},
    ord("\n"): "↵\n",
    ord("\t"): "→\t",
    0x7F: "␡",
    **dict.fromkeys([*range(0x202A, 0x202F), *range(0x2066, 0x206A), 0x200E, 0x200F], "�"),
}


@dataclass(frozen=True, slots=True)
class Token:
    """A generated token: its text, and the number of its source (None: the target's own)."""

    text: str
    source: int | None


@dataclass(frozen=True, slots=True)
class Excerpt:
    """The beginning of an answer.

    Attributes:
        case, category, question_id: whose.
        tokens: of the first turn.
        num_left: tokens behind them.
        acceptance_length: of that turn.
    """

    case: Case
    category: str
    question_id: str
    tokens: tuple[Token, ...]
    num_left: int
    acceptance_length: float


@dataclass(frozen=True, slots=True)
class SourceShare:
    """What share of a case's tokens each source drafted; `""` is the target's own."""

    case: Case
    shares: dict[str, float]


def sources_of(rows: Sequence[Row]) -> list[str]:
    """All sources, the known ones first: the place is the number of the colour."""
    found = {source for turn in averages.turns_of(rows) for source in turn.sources} - {""}
    return [s for s in SOURCES if s in found] + sorted(found - set(SOURCES))


def source_shares(rows: Sequence[Row]) -> list[SourceShare]:
    """For every case that names its sources."""
    counts: dict[Case, dict[str, int]] = {}
    for row in rows:
        for turn in row.turns:
            for source in turn.sources:
                own = counts.setdefault(row.case, {})
                own[source] = own.get(source, 0) + 1
    return [
        SourceShare(case, {source: n / sum(own.values()) for source, n in own.items()})
        for case, own in counts.items()
        if set(own) != {""}
    ]


def excerpts(
    rows: Sequence[Row], groups: Sequence[Sequence[CaseSummary]], numbers: Mapping[str, int]
) -> dict[Case, list[Excerpt]]:
    """The first answer of every category, of the fastest drafters that name their sources.

    Args:
        rows: of one run.
        groups: its cases.
        numbers: of the sources.
    """
    first: dict[Case, dict[str, Row]] = {}
    for row in rows:
        if any(any(turn.sources) for turn in row.turns[:1]) and not averages.is_looping(row):
            first.setdefault(row.case, {}).setdefault(row.category, row)
    chosen = []
    for cases in groups:
        ranked = sorted(
            (case for case in cases if case.case in first),
            key=lambda case: -(case.speed_up.value if case.speed_up else 0.0),
        )
        for case in ranked[:METHODS_PER_GROUP]:
            chosen += [row for _, row in sorted(first[case.case].items())]
    chosen = chosen[:MAX_EXCERPTS]
    limit = min(MAX_TOKENS, TOKEN_BUDGET // max(1, len(chosen)))
    found: dict[Case, list[Excerpt]] = {}
    for row in chosen:
        found.setdefault(row.case, []).append(_excerpt(row, limit, numbers))
    return found


def _excerpt(row: Row, limit: int, numbers: Mapping[str, int]) -> Excerpt:
    turn = row.turns[0]
    return Excerpt(
        case=row.case,
        category=row.category,
        question_id=row.question_id,
        tokens=tuple(islice(_tokens(turn, numbers), limit)),
        num_left=max(0, turn.num_tokens - limit),
        acceptance_length=turn.num_tokens / max(1, turn.num_steps),
    )


def _tokens(turn: Turn, numbers: Mapping[str, int]) -> list[Token]:
    """Pieces of text, or ids where the run kept no pieces."""
    if len(turn.pieces) == turn.num_tokens:
        pieces = [piece.translate(_SIGNS) for piece in turn.pieces]
    else:
        pieces = [f"{token_id} " for token_id in turn.token_ids]
    sources = [*turn.sources, *[""] * (turn.num_tokens - len(turn.sources))]
    return [
        Token(piece, numbers[source] % NUM_COLORS if source else None)
        for piece, source in zip(pieces, sources, strict=False)
    ]
