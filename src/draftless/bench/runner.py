"""The run: every case on a question before the next question, in an order that rotates.

So other load on the machine hits all cases alike. Rows are written when a question is done; a run
that was killed goes on without losing or repeating one.
"""

from __future__ import annotations

import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from draftless.bench import rows as files
from draftless.bench.conversation import Conversation
from draftless.bench.methods import Method
from draftless.bench.near_ties import Judge
from draftless.bench.plan import PLAIN, Plan
from draftless.bench.questions import Question
from draftless.bench.rows import Case, Row
from draftless.bench.trust import is_comparable
from draftless.engine.latency import prices_of
from draftless.errors import ConfigError
from draftless.jsonl import append_lines, unwritable

_FILES = (files.ROWS_FILE, files.SESSIONS_FILE)

# Of the model, what no row may differ in; a run from before it was noted is taken to be the same.
_OF_MODEL = ("dtype", "device", "num_parameters", "fingerprint", "is_compiled", "is_strict")
_BEFORE = {"is_compiled": False, "is_strict": False}  # runs from before there was a choice
# Options that only add rows; all others change what a row means and must not be mixed. (A limit
# changes the order of a stream.)
_MAY_DIFFER = ("drafters", "variants", "samplings", "has_peers", "limit", "repeats")


class Run:
    """A plan that is carried out in a folder.

    Raises:
        ConfigError: the folder has rows and `is_resumed` is not set, or they were measured with
            other options.
        ArtifactError: the folder cannot be written.
    """

    def __init__(self, plan: Plan, folder: Path, *, is_resumed: bool = False) -> None:
        self.folder = folder
        self._plan = plan
        self._methods: dict[tuple[int, float | None], Mapping[Case, Method]] = {}
        target = plan.model.target
        self._judge = Judge(target.model, target.input_only_ids)
        self._samplings = {sampling.name: sampling for sampling in plan.options.samplings}
        self._done = {row.key: row for row in files.read_rows(folder) if row.error is None}
        check_folder(folder, is_resumed=is_resumed)
        sessions = files.read_sessions(folder)
        if sessions:
            _check_same(plan, folder, sessions)
        self.session = len(sessions)

    @property
    def pending(self) -> list[tuple[int, int]]:
        """Repetition and index of every question that has a case left."""
        return [
            (repeat, index)
            for repeat in range(self._plan.options.repeats)
            for index in range(len(self._plan.questions))
            if self._missing(repeat, index)
        ]

    def rows(self) -> Iterator[list[Row]]:
        """Measure what is missing; yields the rows of each question after they were written."""
        pending = self.pending
        if not pending:
            return
        prices = prices_of(self._plan.model.target)
        self._write(files.SESSIONS_FILE, {**self._plan.facts(), files.PRICES: prices.to_dict()})
        left = {case for repeat, index in pending for case in self._missing(repeat, index)}
        for case in self._plan.methods:
            if case in left:  # its first call pays for things that later ones do not
                self._measure(case, 0, 0, self._plan.methods[case])
        for repeat, index in pending:
            measured = self._question(repeat, index)
            for row in measured:
                self._write(files.ROWS_FILE, asdict(row))
            yield measured

    def _missing(self, repeat: int, index: int) -> list[Case]:
        question = self._plan.questions[index]
        key = (question.question_id, repeat, question.mix)
        return [case for case in self._plan.methods if (case, key) not in self._done]

    def _question(self, repeat: int, index: int) -> list[Row]:
        """All missing cases of one question; what they wrote is compared with plain decoding."""
        missing = self._missing(repeat, index)
        shift = (index + repeat) % len(missing)
        measured = []
        methods = self._methods_of(repeat, self._plan.questions[index].mix)
        for case in [*missing[shift:], *missing[:shift]]:
            row = self._measure(case, repeat, index, methods[case])
            if row.error is None:
                self._done[row.key] = row
            measured.append(row)
        plain = [row for row in measured if row.case.method == PLAIN and row.error is None]
        late = [row for one in plain for row in self._answered_before(one, measured)]
        for row in [*measured, *late]:
            self._compare(row, self._plan.questions[index])
        return [*measured, *(row for row in late if any(turn.margin for turn in row.turns))]

    def _answered_before(self, plain: Row, measured: Sequence[Row]) -> list[Row]:
        """Rows of an earlier session that plain decoding failed to be compared with then."""
        return [
            row
            for row in self._done.values()
            if row.question == plain.question
            and replace(row.case, method=PLAIN) == plain.case
            and all(row is not other for other in measured)
        ]

    def _methods_of(self, repeat: int, mix: float | None) -> Mapping[Case, Method]:
        """With drafters that have not met any of the questions: each repetition and stream has its own."""
        if (repeat, mix) not in self._methods:
            self._methods[repeat, mix] = self._plan.fresh_methods()
        return self._methods[repeat, mix]

    def _measure(self, case: Case, repeat: int, index: int, method: Method) -> Row:
        """One conversation; a failure becomes a row with its error and no numbers."""
        question = self._plan.questions[index]
        row = Row(case, question.category, question.question_id, repeat, session=self.session)
        row.seed = seed_of(self._plan.options.seed, question.question_id, repeat)
        row.mix, row.position = question.mix, question.position
        conversation = Conversation(self._plan.model, question, is_raw=self._plan.options.is_raw)
        try:
            for _ in question.turns:
                turn = method(conversation.prompt_ids(), row.seed)
                row.turns.append(turn)
                conversation.answer(turn.text)
        except Exception as error:  # noqa: BLE001 - a failed question is a result, too
            row.turns, row.error = [], f"{type(error).__name__}: {error}"
        row.load = round(os.getloadavg()[0], 2)
        return row

    def _compare(self, row: Row, question: Question) -> None:
        """Fill in the first margin; later turns of the conversation have other prompts."""
        plain = self._done.get((replace(row.case, method=PLAIN), row.question))
        if plain is None or row.error is not None or not is_comparable(row.case):
            return
        sampling = self._samplings[row.case.sampling]
        params = sampling.params(self._plan.options.max_new_tokens, row.seed, ())
        conversation = Conversation(self._plan.model, question, is_raw=self._plan.options.is_raw)
        for turn, plain_turn in zip(row.turns, plain.turns, strict=True):
            ids = conversation.prompt_ids()
            turn.margin = self._judge.margin(ids, turn.token_ids, plain_turn.token_ids, params)
            if turn.margin is not None:
                return
            conversation.answer(turn.text)

    def _write(self, name: str, value: Mapping[str, Any]) -> None:
        file = self.folder / name
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            append_lines(file, [value])
        except OSError as error:
            raise unwritable(file, error) from error


def seed_of(seed: int, question_id: str, repeat: int) -> int:
    """A question's seed: the same for all cases, whatever runs before it."""
    return zlib.crc32(f"{seed} {repeat} {question_id}".encode())


def check_folder(folder: Path, *, is_resumed: bool) -> None:
    """Refuse a folder that holds a run already, unless it shall go on.

    Raises:
        ConfigError: it does.
    """
    if not is_resumed and any((folder / name).exists() for name in _FILES):
        raise ConfigError(
            f"{folder} holds a run already; go on with --resume, or choose another --output"
        )


def _check_same(plan: Plan, folder: Path, sessions: Sequence[Mapping[str, Any]]) -> None:
    """Refuse to mix rows of different meaning."""
    facts, session = plan.facts(), sessions[-1]
    now, before = dict(facts["options"]), {"mixes": [], **session["options"]}
    for name in _OF_MODEL:
        now[name] = facts["model"][name]
        before[name] = session["model"].get(name, _BEFORE.get(name, now[name]))
    for name in ("num_threads", "suite_digest"):
        now[name], before[name] = facts[name], session[name]
    may_differ = [name for name in _MAY_DIFFER if not (plan.options.mixes and name == "limit")]
    for name, value in now.items():
        if name not in may_differ and before.get(name) != value:
            raise ConfigError(
                f"the rows in {folder} were measured with {name}={before.get(name)}, not {value}; "
                "use the same options, or another --output"
            )
    for one in sessions:
        known = one.get("file_digests", {})
        for name, digest in facts["file_digests"].items():
            if known.get(name, digest) != digest:
                raise ConfigError(
                    f"the rows of {name} in {folder} were measured with other contents of the file "
                    "that it names; give the file another name, or use another --output"
                )
