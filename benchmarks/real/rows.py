"""Rows of the benchmark on real models: one question under one method and sampling."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from draftless.errors import ArtifactError
from draftless.jsonl import append_lines, read_lines

ROWS_FILE = "rows.jsonl"
PROMPTS_FILE = "prompts.jsonl"
SESSIONS_FILE = "sessions.jsonl"

Key = tuple[str, str, str, str, str]


@dataclass(slots=True)
class RealRow:
    """One call of `generate`.

    Attributes:
        model: name of the checkpoint folder.
        suite, category, question_id: what was asked.
        sampling: `greedy`, `T=0.7 top-p=0.95`, ...
        method: a name of `peers.Setting`'s methods.
        token_ids: generated ids, an EOS id at the end included.
        text: the answer without special tokens.
        wall_s: seconds of the whole call.
        prefill_s: seconds until the prompt is in the cache.
        decode_s: seconds after that, in which `decode_tokens` came.
        steps: forward passes that committed tokens.
        peak_memory_bytes: most memory that the method's process has held so far.
        load_s: seconds that its process took to load.
        load: load average (1 minute) of the machine before the call.
        session: line of `sessions.jsonl`, from 0: command, commit, machine.
        error: why there are no numbers; None if there are.
    """

    model: str
    suite: str
    category: str
    question_id: str
    sampling: str
    method: str
    token_ids: list[int] = field(default_factory=list)
    text: str = ""
    wall_s: float = 0.0
    prefill_s: float = 0.0
    decode_s: float = 0.0
    decode_tokens: int = 0
    steps: int = 0
    peak_memory_bytes: int = 0
    load_s: float = 0.0
    load: float = 0.0
    session: int = 0
    error: str | None = None

    @property
    def key(self) -> Key:
        """What makes a row unique in a run folder."""
        return self.model, self.suite, self.question_id, self.sampling, self.method


def append_row(folder: Path, row: RealRow) -> None:
    """Add a row, forced to the disk."""
    append_lines(folder / ROWS_FILE, [asdict(row)])


def read_rows(folder: Path) -> dict[Key, RealRow]:
    """All rows of a run folder by key; of rows with one key the last counts.

    Raises:
        ArtifactError: a line is no row of this version.
    """
    rows = {}
    for line in read_lines(folder / ROWS_FILE, may_be_cut=True):
        try:
            row = RealRow(**line.value)
        except TypeError as error:
            raise ArtifactError(f"{line.place} is no row: {error}") from error
        rows[row.key] = row
    return rows


def read_sessions(folder: Path) -> list[dict[str, Any]]:
    """Command, commit, machine and options of every start of a run."""
    return [line.value for line in read_lines(folder / SESSIONS_FILE, may_be_cut=True)]
