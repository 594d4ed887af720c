"""The run: every case on a question before the next question, in an order that rotates.

So other load on the machine hits all cases alike. Rows are written when a question is done; a run
that was killed goes on without losing or repeating one.
"""

from __future__ import annotations

import errno
import os
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import torch

from draftless.bench import rows as files
from draftless.bench.conversation import Conversation
from draftless.bench.methods import Method, Sampling, our_method, peer_methods, stock_copy
from draftless.bench.near_ties import Judge
from draftless.bench.questions import Question, balanced
from draftless.bench.rows import Case, Row, method_name
from draftless.bench.streams import make_streams
from draftless.bench.trust import is_comparable
from draftless.bench.variants import drafted_models, file_digests, left_out, store_labels
from draftless.engine.latency import prices_of
from draftless.errors import ArtifactError, ConfigError, InputError
from draftless.model import Draftless
from draftless.provenance import collect_provenance

PLAIN = "none"
_FILES = (files.ROWS_FILE, files.SESSIONS_FILE)

# Of the model, what no row may differ in; a run from before it was noted is taken to be the same.
_OF_MODEL = ("dtype", "device", "num_parameters", "fingerprint", "is_compiled", "is_strict")
_BEFORE = {"is_compiled": False, "is_strict": False}  # runs from before there was a choice
# Options that only add rows; all others change what a row means and must not be mixed. (A limit
# changes the order of a stream.)
_MAY_DIFFER = ("drafters", "variants", "samplings", "has_peers", "limit", "repeats")


@dataclass(frozen=True)
class RunOptions:
    """What is measured, and on what.

    Attributes:
        name: of the model in the rows.
        suite: of the questions, as the user gave it.
        drafters: names of the registry, None is all that the checkpoint supports; plain decoding
            (`none`) is always among the cases.
        variants: drafters with options of their own, one more case each beside `drafters`.
        samplings: one set of cases each.
        max_new_tokens: per turn.
        repeats: of everything; a repetition begins when all questions are done.
        limit: most questions, taken from the categories in turn; None is all.
        seed: of the sampling; question and repetition are mixed in.
        is_raw: prompts as they are, without a chat template or a checkpoint's format.
        has_peers: whether `transformers`' own loops run, too.
        mixes: a stream of requests for each of these mix ratios (0 to 1), one after the other and of
            the same questions; none is a suite. `seed` also gives their order.
    """

    name: str
    suite: str = "tiny"
    drafters: tuple[str, ...] | None = None
    variants: tuple[tuple[str, Mapping[str, Any]], ...] = ()
    samplings: tuple[Sampling, ...] = (Sampling(),)
    max_new_tokens: int = 128
    repeats: int = 1
    limit: int | None = None
    seed: int = 0
    is_raw: bool = False
    has_peers: bool = True
    mixes: tuple[float, ...] = ()

    def __post_init__(self) -> None:
        for name, low in (("max_new_tokens", 1), ("repeats", 1), ("limit", 1)):
            value = getattr(self, name)
            if value is not None and value < low:
                raise ConfigError(f"{name}={value} is below {low}")
        if not self.samplings:
            raise ConfigError("no sampling is given; say at least temperature 0")
        for mix in self.mixes:
            if not 0.0 <= mix <= 1.0:
                raise ConfigError(
                    f"mix={mix} is not between 0 (one category after the other) and 1 (another one "
                    "after every request)"
                )


@dataclass(frozen=True)
class Plan:
    """What a run will do.

    Attributes:
        options: as given.
        model: with plain decoding.
        methods: of every case, in order.
        questions: that fit into the model's context, in order; in streams as often as there are
            mix ratios.
        too_long: ids of those that do not.
        suite_digest: of the text of all questions of the suite.
        left_out: why a drafter, or a peer under a sampling, does not run.
        labels: domains that a method with anchors can route to.
    """

    options: RunOptions
    model: Draftless
    methods: Mapping[Case, Method]
    questions: Sequence[Question]
    too_long: Sequence[str]
    suite_digest: str
    left_out: Mapping[str, str]
    labels: Mapping[str, list[str]]

    def facts(self) -> dict[str, Any]:
        """A line of `sessions.jsonl`."""
        model = self.model.target.model
        return {
            **collect_provenance(),
            "options": _plain(self.options),
            "model": {
                "name": self.options.name,
                "class": type(model).__name__,
                "num_parameters": sum(p.numel() for p in model.parameters()),
                "dtype": _dtype_name(self.model),
                "fingerprint": self.model.target.fingerprint(),
                "is_compiled": self.model.target.is_compiled,
                "is_strict": self.model.target.is_strict,
                "device": str(self.model.target.device),
                "num_layers": self.model.target.config.num_hidden_layers,
                "vocab_size": self.model.target.vocab_size,
            },
            "suite_digest": self.suite_digest,
            "num_questions": len(self.questions),
            "too_long": list(self.too_long),
            "left_out": dict(self.left_out),
            "labels": dict(self.labels),
            "file_digests": file_digests(self.options.variants),
        }


def make_plan(model: Draftless, questions: Sequence[Question], options: RunOptions) -> Plan:
    """Build all methods and choose the questions.

    Raises:
        ConfigError: a drafter or one of its options is unknown, the checkpoint was not trained for
            a drafter that is asked for by name, or two variants have one name.
        InputError: no question fits into the model's context.
    """
    plain = model.with_drafter(PLAIN)
    skipped: dict[str, str] = {}
    if options.drafters is None:
        options = replace(options, drafters=plain.drafters)
        skipped = left_out(plain)
    drafted = drafted_models(plain, (PLAIN, *(options.drafters or ())), options.variants)
    stock = stock_copy(plain.target.model) if options.has_peers else None
    methods: dict[Case, Method] = {}
    for sampling in options.samplings:
        found: dict[str, Method] = {}
        if stock is not None:
            found, reasons = peer_methods(plain, stock, sampling, options.max_new_tokens)
            skipped |= {f"{peer}, {sampling.name}": reason for peer, reason in reasons.items()}
        for name, one in drafted.items():
            found[name] = our_method(one, sampling, options.max_new_tokens)
        for name, method in found.items():
            methods[Case(options.name, name, sampling.name, _dtype_name(plain))] = method
    limit = plain.target.max_positions
    fitting: list[Question] = []
    too_long: list[Question] = []
    for question in balanced(questions):
        is_fitting = limit is None or _longest(plain, question, options) <= limit
        (fitting if is_fitting else too_long).append(question)
    if not fitting:
        raise InputError(
            f"none of {len(questions)} questions leaves room for {options.max_new_tokens} new "
            f"tokens a turn in the model's context of {limit}; lower --max-new-tokens"
        )
    chosen = fitting[: options.limit]
    return Plan(
        options=options,
        model=plain,
        methods=methods,
        questions=make_streams(chosen, options.mixes, options.seed) if options.mixes else chosen,
        too_long=[question.question_id for question in too_long],
        suite_digest=f"{zlib.crc32(repr(list(questions)).encode()):08x}",
        left_out=skipped,
        labels=store_labels(drafted),
    )


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
                self._measure(case, 0, 0)
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
        for case in [*missing[shift:], *missing[:shift]]:
            row = self._measure(case, repeat, index)
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

    def _measure(self, case: Case, repeat: int, index: int) -> Row:
        """One conversation; a failure becomes a row with its error and no numbers."""
        question = self._plan.questions[index]
        row = Row(case, question.category, question.question_id, repeat, session=self.session)
        row.seed = seed_of(self._plan.options.seed, question.question_id, repeat)
        row.mix, row.position = question.mix, question.position
        conversation = Conversation(self._plan.model, question, is_raw=self._plan.options.is_raw)
        try:
            for _ in question.turns:
                turn = self._plan.methods[case](conversation.prompt_ids(), row.seed)
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
            files.append_line(file, value)
        except OSError as error:
            mend = "make room" if error.errno == errno.ENOSPC else "make it writable"
            raise ArtifactError(
                f"cannot write {file}: {error.strerror or error}; the rows written so far are "
                f"whole: {mend} and go on with --resume"
            ) from error


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


def _plain(options: RunOptions) -> dict[str, Any]:
    """The options as JSON keeps them."""
    return {
        **asdict(options),
        "drafters": list(options.drafters or ()),
        "variants": [method_name(name, more) for name, more in options.variants],
        "samplings": [one.name for one in options.samplings],
        "mixes": list(options.mixes),
    }


def _longest(model: Draftless, question: Question, options: RunOptions) -> int:
    """Most tokens of a conversation; 0 if its prompt cannot be made, which its rows will tell."""
    try:
        conversation = Conversation(model, question, is_raw=options.is_raw)
        return conversation.longest(options.max_new_tokens)
    except Exception:  # noqa: BLE001 - chat templates are programs and may raise anything
        return 0


def _dtype_name(model: Draftless) -> str:
    dtype: torch.dtype = model.target.model.dtype
    return str(dtype).removeprefix("torch.")
