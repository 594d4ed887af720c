"""What one run leaves behind: rows in an append-only JSONL file, and the sessions they belong to.

A *run folder* holds `rows.jsonl` (one `Row` per line) and `sessions.jsonl` (one line of provenance
and options each time the run was started or resumed; `Row.session` is its line number from 0).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from draftless.errors import ArtifactError
from draftless.jsonl import append_lines, read_lines
from draftless.prices import PriceList

FORMAT = 1
ROWS_FILE = "rows.jsonl"
SESSIONS_FILE = "sessions.jsonl"
# Plain loops: a speed-up is over the fastest of these in the same run.
PLAIN_METHODS = ("transformers", "none")
# Every `draftless calibrate skip` writes a file of this name: its folder tells which it is.
SKIP_FILE = "skip.json"
PRICES = "prices"
"""The price list in a session, as `PriceList.to_dict` writes it."""

QuestionKey = tuple[str, int, float | None]


def method_name(drafter: str, options: Mapping[str, Any]) -> str:
    """What a drafter with options of its own is called: `sdsat [steps=2, k=5]`.

    Of a path only its last name is told: `layer-skip [skip_set=mixed]`.
    """
    told = ", ".join(f"{key}={_short_value(value)}" for key, value in options.items())
    return f"{drafter} [{told}]" if told else drafter


def _short_value(value: Any) -> Any:
    if not isinstance(value, str):
        return value
    path = Path(value)
    if path.name == SKIP_FILE and path.parent.name not in ("", ".."):
        return path.parent.name
    return path.stem if path.suffix == ".json" else path.name or value


def parse_method(name: str) -> tuple[str, dict[str, str]]:
    """A drafter and its options, as texts; what `method_name` has put together."""
    drafter, _, told = name.removesuffix("]").partition(" [")
    pairs = (part.partition("=") for part in told.split(", ") if part)
    return drafter, {key: value for key, _, value in pairs}


@dataclass(frozen=True, slots=True, order=True)
class Case:
    """What is measured on every question.

    Attributes:
        model: its short name (a folder's or hub id's last part, or what the user called it).
        method: a drafter of the registry (with its options in brackets if any were given), or a
            peer: `transformers`, `transformers prompt-lookup`, `transformers early-exit`.
        sampling: `greedy`, or options such as `T=1` or `T=1 top-p=0.9`.
        dtype: `bfloat16`, `float32`, ...
    """

    model: str
    method: str
    sampling: str
    dtype: str


@dataclass(slots=True)
class Margin:
    """The first place where an output departs from our plain loop's (DESIGN 1, level L2).

    Attributes:
        index: of the first generated token that differs.
        token_id, plain_token_id: what stands there in the two outputs (-1: the output had ended).
        ulps: distance of the two tokens' scores after an fp32 recomputation, in ULPs of the run's
            dtype; None in fp32 and fp64, where every difference is a defect, and where the scores
            could not be compared.
        is_near_tie: whether that is within the limit, or a truncation border explains it.
    """

    index: int
    token_id: int
    plain_token_id: int
    ulps: float | None = None
    is_near_tie: bool = False


@dataclass(slots=True)
class Turn:
    """One turn of a question: one call of `generate`.

    Attributes:
        prompt_len: prompt tokens, earlier turns of the conversation included.
        token_ids: generated ids, EOS included; the only source of every token count.
        text: the answer.
        finish_reason: why it ended.
        seconds: wall clock of the whole call, prefill included.
        prefill_s: until the prompt is in the cache; None where the method does not tell.
        first_token_s: until the first committed token (time to first token).
        num_forward_passes: of the target, those of the prefill included.
        step_tokens: committed tokens of every step, in order; they sum to `len(token_ids)`.
        step_drafted: draft tokens of every step; probes are none.
        step_nodes: tokens fed in every step: the root, drafts and probes; empty for peers, and in
            rows from before there were probes.
        num_draft_passes: passes that the drafter made through part of the target; 0 for peers.
        step_s: seconds from the call's begin to each step's end.
        sources: what drafted each token (`StepRecord.sources`), "" for the target's own; empty
            for peers.
        time_s: seconds by stage: prefill, propose, draft (the passes of the drafter), forward,
            verify, commit, observe; empty for peers.
        num_looping: tokens inside repeats of period 8 or less (`loops.looping_tokens`).
        margin: where it departs from our plain loop; None if all tokens are equal, and for
            that loop itself.
        pieces: text of each token, "" where a character is not complete yet; empty if not known.
    """

    prompt_len: int
    token_ids: list[int]
    text: str = ""
    finish_reason: str = ""
    seconds: float = 0.0
    prefill_s: float | None = None
    first_token_s: float = 0.0
    num_forward_passes: int = 0
    step_tokens: list[int] = field(default_factory=list)
    step_drafted: list[int] = field(default_factory=list)
    step_nodes: list[int] = field(default_factory=list)
    step_s: list[float] = field(default_factory=list)
    sources: list[str] = field(default_factory=list)
    time_s: dict[str, float] = field(default_factory=dict)
    num_looping: int = 0
    margin: Margin | None = None
    pieces: list[str] = field(default_factory=list)
    num_draft_passes: int = 0

    @property
    def num_tokens(self) -> int:
        return len(self.token_ids)

    @property
    def num_steps(self) -> int:
        return len(self.step_tokens)

    @property
    def decode_s(self) -> float:
        """Seconds after the prefill; the whole call where the prefill is not known."""
        return self.seconds - (self.prefill_s or 0.0)


@dataclass(slots=True)
class Row:
    """One question under one case, once.

    Attributes:
        case: what was measured.
        category, question_id: on which question.
        repeat: number of the repetition, from 0.
        turns: of the question, in order; none if it failed.
        seed: of the sampling; the same for all cases of a question and repeat.
        load: load average of the machine when it ended.
        session: line of `sessions.jsonl`.
        error: what went wrong; then there are no numbers.
        mix, position: in a stream of requests, its mix ratio and the place in it from 0; None
            elsewhere.
    """

    case: Case
    category: str
    question_id: str
    repeat: int = 0
    turns: list[Turn] = field(default_factory=list)
    seed: int = 0
    load: float = 0.0
    session: int = 0
    error: str | None = None
    mix: float | None = None
    position: int | None = None

    @property
    def key(self) -> tuple[Case, QuestionKey]:
        """What makes a row unique in a run."""
        return self.case, self.question

    @property
    def question(self) -> QuestionKey:
        """What pairs the rows of different cases."""
        return self.question_id, self.repeat, self.mix

    @property
    def num_tokens(self) -> int:
        return sum(turn.num_tokens for turn in self.turns)

    @property
    def num_steps(self) -> int:
        return sum(turn.num_steps for turn in self.turns)

    @property
    def seconds(self) -> float:
        return sum(turn.seconds for turn in self.turns)

    @property
    def decode_s(self) -> float:
        return sum(turn.decode_s for turn in self.turns)

    @property
    def loop_share(self) -> float:
        """Share of the tokens that lie inside repeats."""
        return sum(turn.num_looping for turn in self.turns) / max(1, self.num_tokens)


def append_row(folder: Path, row: Row) -> None:
    """Add a row to a run folder."""
    append_lines(folder / ROWS_FILE, [asdict(row)])


def read_rows(folder: Path) -> list[Row]:
    """All rows of a run folder; of rows with one key the last one counts.

    Raises:
        ArtifactError: a line is not a row of this version.
    """
    rows: dict[tuple[Case, QuestionKey], Row] = {}
    for line in read_lines(folder / ROWS_FILE, may_be_cut=True):
        try:
            row = _row(line.value)
        except (KeyError, TypeError) as error:
            raise ArtifactError(f"{line.place} is not a row of format {FORMAT}: {error}") from error
        rows[row.key] = row
    return list(rows.values())


def _row(data: Mapping[str, Any]) -> Row:
    turns = []
    for turn in data["turns"]:
        margin = turn.get("margin")
        turns.append(Turn(**{**turn, "margin": Margin(**margin) if margin else None}))
    return Row(**{**data, "case": Case(**data["case"]), "turns": turns})


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """Provenance and options of every start of a run (`provenance.collect_provenance` and more)."""
    return [line.value for line in read_lines(folder / SESSIONS_FILE, may_be_cut=True)]


def last_prices(sessions: Sequence[Mapping[str, Any]]) -> PriceList | None:
    """What passes cost when a run was last started; None of runs from before there were lists.

    Raises:
        ArtifactError: the session's list is damaged.
    """
    found = [session[PRICES] for session in sessions if PRICES in session]
    return PriceList.from_dict(found[-1]) if found else None
