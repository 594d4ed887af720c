"""An answer on its way: shown as it comes, stopped by Ctrl-C, and summed up."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.text import Text

from draftless.cli.common import phases, stderr
from draftless.cli.encodings import standard_output

if TYPE_CHECKING:
    from draftless import Chunk, Statistics

DRAFT_STYLES = ("bold green", "bold cyan")
"""Accepted drafts take turns between these, so that the borders of tokens are seen."""

STAGES = ("prefill", "propose", "forward", "verify", "commit")

CANCELLED = "cancelled"
"""The finish reason of an answer that Ctrl-C ended."""

Show = Callable[["Chunk"], None]


@dataclass(frozen=True)
class Answer:
    """What became of one request.

    Attributes:
        text, token_ids, seed, stats: as in `Output`; of a cancelled one, what was shown.
        finish_reason: as in `Output`, or `cancelled`.
        is_reproducible: as in `Output`.
        sources: what drafted each token; empty for the target's own.
        first_token_s, wall_s: seconds from the start to the first step's text and to the end; the
            first is None if there was none.
    """

    text: str
    token_ids: list[int]
    finish_reason: str
    seed: int
    stats: Statistics
    is_reproducible: bool
    sources: tuple[str, ...]
    first_token_s: float | None
    wall_s: float

    @property
    def is_cancelled(self) -> bool:
        return self.finish_reason == CANCELLED


class Interruption:
    """Ctrl-C ends an answer between two steps, so that drafter and cache stay whole.

    Before the first step, and the second time, it raises `KeyboardInterrupt` at once.
    """

    def __init__(self) -> None:
        self.has_begun = False
        self.is_wanted = False
        self._before: Any = None

    def __enter__(self) -> Interruption:
        is_main = threading.current_thread() is threading.main_thread()
        # Who ignores Ctrl-C (a job in the background) goes on ignoring it.
        if is_main and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
            self._before = signal.signal(signal.SIGINT, self._take)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _take(self, *_: object) -> None:
        if self.is_wanted or not self.has_begun:
            raise KeyboardInterrupt
        self.is_wanted = True


def follow(chunks: Iterable[Chunk], show: Show | None, *, seed: int, prompt_len: int) -> Answer:
    """Show an answer step by step (None: only that it goes on), until it ends or Ctrl-C ends it."""
    started = time.perf_counter()
    seen: list[Chunk] = []
    first_s: float | None = None
    with Interruption() as interruption, ExitStack() as waiting:
        try:
            steps = iter(chunks)
            say = waiting.enter_context(phases(f"reading the prompt ({prompt_len} tokens)"))
            chunk = next(steps, None)
            if show is not None:
                waiting.close()  # a status line would tear the text
            while chunk is not None:
                interruption.has_begun = True
                first_s = first_s or time.perf_counter() - started
                seen.append(chunk)
                if show is not None:
                    show(chunk)
                else:
                    say(f"generating (step {len(seen)})")
                chunk = None if interruption.is_wanted else next(steps, None)
        except KeyboardInterrupt:
            pass  # the answer has no output then: cancelled
    return _answer(seen, seed, first_s, time.perf_counter() - started)


def _answer(seen: Sequence[Chunk], seed: int, first_s: float | None, wall_s: float) -> Answer:
    sources = tuple(source for chunk in seen for source in chunk.sources)
    output = seen[-1].output if seen else None
    if output is not None:
        return Answer(
            output.text, list(output.token_ids), output.finish_reason, output.seed, output.stats,
            output.is_reproducible, sources, first_s, wall_s,
        )  # fmt: skip
    text = "".join(chunk.text for chunk in seen)
    token_ids = [token_id for chunk in seen for token_id in chunk.token_ids]
    stats = _stats_of(seen, first_s, wall_s)
    return Answer(text, token_ids, CANCELLED, seed, stats, False, sources, first_s, wall_s)


def _stats_of(seen: Sequence[Chunk], first_s: float | None, wall_s: float) -> Statistics:
    """Counts of what was shown. Without the engine's own times, all after the first step is forward."""
    from draftless import Statistics

    stats = Statistics(num_steps=len(seen), num_forward_passes=len(seen))
    for chunk in seen:
        accepted = chunk.num_accepted_tokens
        stats.num_draft_tokens += chunk.num_draft_tokens
        stats.num_accepted_tokens += accepted
        stats.num_committed_tokens += len(chunk.token_ids)
        missing = accepted + 1 - len(stats.acceptance_histogram)
        stats.acceptance_histogram.extend([0] * missing)
        stats.acceptance_histogram[accepted] += 1
    prefill_s = wall_s if first_s is None else first_s
    stats.time_s = {"prefill": prefill_s, "forward": wall_s - prefill_s}
    return stats


def write_chunk(chunk: Chunk) -> None:
    """Write text as it becomes certain."""
    stream = standard_output()
    stream.write(chunk.text)
    stream.flush()


def write_chunks(chunks: Iterable[Chunk]) -> None:
    """Write a whole answer and a line end."""
    for chunk in chunks:
        write_chunk(chunk)
    end_line()


def end_line() -> None:
    """End the line of an answer."""
    standard_output().write("\n")
    standard_output().flush()


def explain_colours() -> None:
    """One line on what the colours of drafts mean."""
    stderr.print(
        Text.assemble(
            ("accepted drafts look ", "dim"), ("like ", DRAFT_STYLES[0]), ("this", DRAFT_STYLES[1]),
            ("; the rest are the tokens that the target had to draw itself\n", "dim"),
        )
    )  # fmt: skip


def painting(tokenizer: Any) -> Show:
    """Writes text as it becomes certain, with the accepted drafts coloured."""
    standard_output()
    console = Console(highlight=False)
    painter = DraftPainter(tokenizer)
    return lambda chunk: console.print(painter.paint(chunk), end="", soft_wrap=True)


class DraftPainter:
    """Finds which characters of a stream come from accepted drafts.

    Text lags behind ids (unfinished characters, beginnings of stop strings), so the styles of
    characters wait here until the stream shows them.
    """

    def __init__(self, tokenizer: Any) -> None:
        from draftless.engine.stops import TextDecoder

        self._decoder = TextDecoder(tokenizer)
        self._waiting: list[str] = []  # one style per character
        self._num_drafts = 0

    def paint(self, chunk: Chunk) -> Text:
        """The chunk's text with its styles; brackets in it are text, not markup."""
        for index, token_id in enumerate(chunk.token_ids):
            style = ""
            if index < chunk.num_accepted_tokens:
                style = DRAFT_STYLES[self._num_drafts % len(DRAFT_STYLES)]
                self._num_drafts += 1
            self._waiting += [style] * len(self._decoder.push([token_id]))
        shown, self._waiting = self._waiting[: len(chunk.text)], self._waiting[len(chunk.text) :]
        shown += [""] * (len(chunk.text) - len(shown))
        return Text.assemble(*zip(chunk.text, shown, strict=True))


def summary(answer: Answer, drafter: str) -> str:
    """One line for people."""
    stats = answer.stats
    drafts = f", {stats.num_accepted_tokens} of {stats.num_draft_tokens} drafts accepted"
    first = (
        "no token" if answer.first_token_s is None else f"first after {answer.first_token_s:.2f} s"
    )
    return (
        f"{drafter}: {len(answer.token_ids)} tokens in {stats.num_steps} steps, "
        f"{stats.acceptance_length:.2f} per step{drafts if stats.num_draft_tokens else ''}; "
        f"{stats.tokens_per_second:.0f} tokens/s, {first}, {answer.wall_s:.2f} s in all; "
        f"{'' if answer.is_cancelled else 'ended by '}{answer.finish_reason}; seed {answer.seed}"
        f"{'' if answer.is_reproducible or answer.is_cancelled else '; not reproducible here'}"
    )


def as_object(answer: Answer, *, drafter: str, model: str) -> dict[str, Any]:
    """The object of `--json`; its keys are a public contract."""
    stats = answer.stats.as_dict()
    time_s = dict(answer.stats.time_s)
    # The drafter's time is one number here: proposing, and learning from what became of it.
    time_s["propose"] = time_s.get("propose", 0.0) + time_s.pop("observe", 0.0)
    stats["time_s"] = {stage: time_s.get(stage, 0.0) for stage in STAGES}
    return {
        "text": answer.text,
        "token_ids": list(answer.token_ids),
        "finish_reason": answer.finish_reason,
        "stats": stats,
        "time_to_first_token_s": answer.first_token_s,
        "wall_time_s": answer.wall_s,
        "seed": answer.seed,
        "is_reproducible": answer.is_reproducible,
        "drafter": drafter,
        "model": model,
    }
