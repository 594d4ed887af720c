"""Measure a real model, all methods and peers in one run; resumable.

    PYTHONPATH=benchmarks python -m real.run --model models/smollm2-135m --suite spec-bench \\
        --data FOLDER [--limit N] [--minutes M]

Every method answers a question before the next question, in an order that rotates, so that other load
hits all alike. Each peer is one process that loads its model once and is idle while another runs. A row
is on the disk as soon as it is measured; a run that is started again skips what is there and retries
what failed.
"""

from __future__ import annotations

import argparse
import os
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from transformers import AutoTokenizer, GenerationConfig

from draftless.bench.methods import Sampling
from draftless.bench.questions import Question
from draftless.bench.runner import seed_of
from draftless.errors import ConfigError, DraftlessError
from draftless.jsonl import append_lines, read_lines
from draftless.provenance import collect_provenance
from real.peers import MODES_DEFAULT, OURS, PeerError, Peers, Setting, peer_commands
from real.rows import (
    PROMPTS_FILE,
    SESSIONS_FILE,
    RealRow,
    append_row,
    read_rows,
    read_sessions,
)
from real.suites import FILES, load_suite, messages_of

FIRST_TURN_METHOD = "none"
WARM_UP_TOKENS = 8
SAMPLINGS = "0,0.7:0.95,1"

# What no two sessions of one run folder may differ in: the rows would mean different things.
FIXED = ("threads", "dtype", "is_eager", "max_new_tokens", "seed")


@dataclass(frozen=True, slots=True)
class Options:
    """What is asked of every question.

    Attributes:
        suite: its name.
        samplings: each a row of its own.
        max_new_tokens: of an answer.
        seed: of the run; a question's own follows from it.
        minutes: no question begins after so long; None is no limit.
    """

    suite: str
    samplings: tuple[Sampling, ...]
    max_new_tokens: int = 128
    seed: int = 0
    minutes: float | None = None


class Prompts:
    """The ids of every question, made once for all methods and kept in the run folder."""

    def __init__(self, model: Path, folder: Path) -> None:
        self.tokenizer = AutoTokenizer.from_pretrained(model)
        self.eos_token_ids = eos_ids_of(model, self.tokenizer)
        self._file = folder / PROMPTS_FILE
        known = (line.value for line in read_lines(self._file, may_be_cut=True))
        self._known = {(one["suite"], one["question_id"]): one for one in known}

    def ids_of(
        self, suite: str, question: Question, peers: Peers, max_new_tokens: int
    ) -> list[int]:
        """The prompt's ids; an earlier turn of it is answered by our plain loop, greedy.

        Raises:
            PeerError: that answer failed.
        """
        key = (suite, question.question_id)
        if key not in self._known:
            first = None
            ids = self.encode(messages_of(suite, question, None))
            if len(messages_of(suite, question, "")) > 1:
                request = self.request(FIRST_TURN_METHOD, ids, Sampling(), max_new_tokens, 0)
                first = self.text(peers.by_method[FIRST_TURN_METHOD].ask(request)["token_ids"])
                ids = self.encode(messages_of(suite, question, first))
            found = {"suite": suite, "question_id": question.question_id, "ids": ids}
            append_lines(self._file, [{**found, "first_answer": first}])
            self._known[key] = found
        return list(self._known[key]["ids"])

    def encode(self, messages: Sequence[dict[str, str]]) -> list[int]:
        """Ids under the chat template; without one the texts, an empty line between them."""
        if self.tokenizer.chat_template:
            return list(
                self.tokenizer.apply_chat_template(
                    list(messages), add_generation_prompt=True, return_dict=False
                )
            )
        return list(self.tokenizer("\n\n".join(one["content"] for one in messages)).input_ids)

    def text(self, token_ids: Sequence[int]) -> str:
        """Without special tokens."""
        return str(self.tokenizer.decode(list(token_ids), skip_special_tokens=True))

    def request(
        self, method: str, ids: list[int], sampling: Sampling, max_new_tokens: int, seed: int
    ) -> dict[str, Any]:
        """What an adapter is asked."""
        return {
            "method": method,
            "ids": ids,
            "max_new_tokens": max_new_tokens,
            "temperature": sampling.temperature,
            "top_p": sampling.top_p,
            "seed": seed,
            "eos_token_ids": self.eos_token_ids,
        }


def eos_ids_of(model: Path, tokenizer: Any) -> list[int]:
    """EOS ids of the checkpoint's generation config, else of its tokenizer."""
    has_config = (model / "generation_config.json").exists()
    eos = GenerationConfig.from_pretrained(model).eos_token_id if has_config else None
    eos = tokenizer.eos_token_id if eos is None else eos
    if eos is None:
        return []
    return [eos] if isinstance(eos, int) else list(eos)


class RealRun:
    """A run folder that is being filled.

    Raises:
        ConfigError: the folder's rows were measured with other options.
    """

    def __init__(self, setting: Setting, options: Options, folder: Path, peers: Peers) -> None:
        self._model, self._options, self._folder, self._peers = (
            setting.model,
            options,
            folder,
            peers,
        )
        folder.mkdir(parents=True, exist_ok=True)
        sessions = read_sessions(folder)
        now = {**asdict(options), **asdict(setting)}
        for name in FIXED if sessions else ():
            before = sessions[-1]["options"][name]
            if before != now[name]:
                raise ConfigError(
                    f"{folder} was measured with {name}={before}, got {now[name]}; "
                    "use the same value, or another --output"
                )
        self.session = len(sessions)
        self._fixed = {name: now[name] for name in (*FIXED, "suite", "minutes")}
        self._prompts = Prompts(setting.model, folder)
        self._done = {key for key, row in read_rows(folder).items() if row.error is None}
        self._is_warm: set[str] = set()

    def note_session(self, left_out: dict[str, str]) -> None:
        """Write where the rows of this session come from."""
        told = {"options": self._fixed, "left_out": left_out, "peers": self._peers.versions()}
        append_lines(self._folder / SESSIONS_FILE, [{**collect_provenance(), **told}])

    def pending(self, question: Question, sampling: Sampling) -> list[str]:
        """Methods that have no row yet, in the order of the question's turn."""
        return [
            method
            for method in self._peers.by_method
            if self._row(question, sampling, method).key not in self._done
        ]

    def measure(self, questions: Sequence[Question]) -> int:
        """All rows that are missing; returns how many questions are left when the time is up."""
        minutes = self._options.minutes
        deadline = time.monotonic() + (float("inf") if minutes is None else minutes * 60)
        for index, question in enumerate(questions):
            for sampling in self._options.samplings:
                pending = self.pending(question, sampling)
                if not pending:
                    continue
                if time.monotonic() > deadline:
                    return len(questions) - index
                shift = index % len(pending)
                rows = [
                    self._measure(question, sampling, method)
                    for method in pending[shift:] + pending[:shift]
                ]
                print(progress_line(index + 1, len(questions), rows), flush=True)
        return 0

    def _row(self, question: Question, sampling: Sampling, method: str) -> RealRow:
        return RealRow(
            model=self._model.name,
            suite=self._options.suite,
            category=question.category,
            question_id=question.question_id,
            sampling=sampling.name,
            method=method,
            session=self.session,
        )

    def _measure(self, question: Question, sampling: Sampling, method: str) -> RealRow:
        """Ask one peer and write its row; a failure becomes a row with its error."""
        row, options = self._row(question, sampling, method), self._options
        peer = self._peers.by_method[method]
        seed = seed_of(options.seed, question.question_id, 0)
        row.load = round(os.getloadavg()[0], 2)
        try:
            ids = self._prompts.ids_of(options.suite, question, self._peers, options.max_new_tokens)
            if method not in self._is_warm:  # its first call pays for things that later ones do not
                peer.ask(self._prompts.request(method, ids, sampling, WARM_UP_TOKENS, seed))
                self._is_warm.add(method)
            request = self._prompts.request(method, ids, sampling, options.max_new_tokens, seed)
            answer = peer.ask(request)
        except PeerError as error:
            row.error = str(error)
            self._is_warm -= set(peer.command.methods)
        else:
            for name, value in answer.items():
                setattr(row, name, round(value, 6) if isinstance(value, float) else value)
            row.text = self._prompts.text(row.token_ids)
            self._done.add(row.key)
        append_row(self._folder, row)
        return row


def progress_line(number: int, total: int, rows: Sequence[RealRow]) -> str:
    """One line a question: tokens per second of each method, the whole call counted."""
    told = [
        f"{row.method} {'failed' if row.error else f'{len(row.token_ids) / row.wall_s:.1f}'}"
        for row in rows
    ]
    first = rows[0]
    return (
        f"{number}/{total} {first.category} {first.question_id} {first.sampling}: {', '.join(told)}"
    )


def parse_samplings(text: str) -> tuple[Sampling, ...]:
    """`0,0.7:0.95,1` are greedy, T=0.7 with top-p 0.95, and T=1.

    Raises:
        ConfigError: a part is no such thing.
    """
    found = []
    for part in text.split(","):
        temperature, _, top_p = part.partition(":")
        try:
            found.append(Sampling(temperature=float(temperature), top_p=float(top_p or 1.0)))
        except ValueError as error:
            raise ConfigError(
                f"--samplings must be TEMPERATURE or TEMPERATURE:TOP_P, got {part!r}"
            ) from error
    return tuple(found)


def chosen_peers(
    setting: Setting, methods: Sequence[str] | None
) -> tuple[list[Any], dict[str, str]]:
    """The processes of the methods that are asked for, and why others are left out.

    Raises:
        ConfigError: a method is unknown, or ours are not among them: every speed-up is over them.
    """
    commands = peer_commands(setting)
    known = [method for command in commands for method in command.methods]
    unknown = [method for method in methods or () if method not in known]
    if unknown:
        raise ConfigError(f"unknown method {', '.join(unknown)}; known are {', '.join(known)}")
    wanted = [*dict.fromkeys(["none", *(methods or known)])]
    found, left_out = [], {}
    for command in commands:
        own = tuple(method for method in command.methods if method in wanted)
        if own and command.missing:
            reason = f"{command.missing} is missing; make it with make peers"
            left_out.update(dict.fromkeys(own, reason))
        elif own:
            found.append(type(command)(command.name, own, command.command, command.needed))
    return found, left_out


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--model", type=Path, required=True, help="checkpoint folder")
    parser.add_argument("--suite", choices=FILES, required=True)
    parser.add_argument("--data", type=Path, required=True, help="folder with the suite's file")
    parser.add_argument("--limit", type=int, help="questions; the suite's own number if not given")
    parser.add_argument("--methods", help=f"comma-separated; ours are {', '.join(OURS)}")
    parser.add_argument(
        "--samplings", default=SAMPLINGS, help="TEMPERATURE[:TOP_P], comma-separated"
    )
    parser.add_argument("--max-new-tokens", type=int, default=128)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--minutes", type=float, help="begin no question after so long")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--dtype", help="of the torch peers; the checkpoint's if not given")
    parser.add_argument("--eager", action="store_true", help="do not compile our forward pass")
    parser.add_argument("--ngram-modes", default=MODES_DEFAULT, help="of llama.cpp")
    parser.add_argument("--peers", type=Path, default=Path(".peers"))
    parser.add_argument("--gguf", type=Path, help="folder of GGUF files; gguf/ beside the model")
    parser.add_argument(
        "--output", type=Path, help="run folder; bench-runs/real/MODEL if not given"
    )
    return parser.parse_args()


def run(args: argparse.Namespace) -> int:
    """Measure; returns the number of questions that are left."""
    model: Path = args.model.resolve()
    setting = Setting(
        model=model,
        peers=args.peers.resolve(),
        gguf=(args.gguf or model.parent / "gguf").resolve(),
        threads=args.threads,
        dtype=args.dtype,
        is_eager=args.eager,
        ngram_modes=tuple(mode for mode in args.ngram_modes.split(",") if mode),
    )
    options = Options(
        suite=args.suite,
        samplings=parse_samplings(args.samplings),
        max_new_tokens=args.max_new_tokens,
        seed=args.seed,
        minutes=args.minutes,
    )
    questions = load_suite(args.suite, args.data, args.limit)
    commands, left_out = chosen_peers(setting, args.methods.split(",") if args.methods else None)
    for method, reason in left_out.items():
        print(f"left out: {method}: {reason}", flush=True)
    folder = args.output or Path("bench-runs") / "real" / model.name
    folder.mkdir(parents=True, exist_ok=True)
    with Peers(commands, folder) as peers:
        measured = RealRun(setting, options, folder, peers)
        pending = [
            method
            for question in questions
            for sampling in options.samplings
            for method in measured.pending(question, sampling)
        ]
        if not pending:
            print("nothing is missing")
            return 0
        print(f"{len(pending)} rows to measure; loading {len(commands)} processes", flush=True)
        peers.start(lambda name, error: print(f"{name}: {error}", flush=True))
        measured.note_session(left_out)
        return measured.measure(questions)


def main() -> None:
    try:
        left = run(arguments())
    except DraftlessError as error:
        sys.exit(f"error: {error}")
    if left:
        print(f"time is up; {left} questions are left: start it again")


if __name__ == "__main__":
    main()
