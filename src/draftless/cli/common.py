"""What the commands share: consoles, errors, and the loading of a model."""

from __future__ import annotations

import shlex
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

if TYPE_CHECKING:
    from draftless import Draftless

stderr = Console(stderr=True, highlight=False)
"""Progress, summaries and errors; standard output belongs to the result."""

SILENT_S = 1.2
"""Seconds without a line, at most, where standard error is no terminal: imports hold up the clock, too."""


def progress_bar() -> Progress:
    """A bar on standard error that vanishes when it is done; nothing where nobody is watching."""
    return Progress(console=stderr, transient=True, disable=not stderr.is_terminal)


@contextmanager
def phases(first: str) -> Iterator[Callable[[str], None]]:
    """Show what is going on; call what is yielded with a short phrase when something else begins.

    A status line that vanishes on a terminal; elsewhere a line from time to time.
    """
    if stderr.is_terminal:
        with stderr.status(Text(f"{first} ...")) as status:
            yield lambda phrase: status.update(Text(f"{phrase} ..."))
        return
    slow = _SlowPhases(first)
    try:
        yield slow.begin
    finally:
        slow.end()


class _SlowPhases:
    """Prints what is going on every `SILENT_S`, with the seconds since the begin of a phase that was printed before."""

    def __init__(self, first: str) -> None:
        self._is_over = threading.Event()
        self.begin(first)
        threading.Thread(target=self._print, daemon=True, name="phases").start()

    def begin(self, phrase: str) -> None:
        self._now = (phrase, time.monotonic())

    def end(self) -> None:
        self._is_over.set()

    def _print(self) -> None:
        printed = ""
        while not self._is_over.wait(SILENT_S):
            phrase, since = self._now
            seconds = f" {time.monotonic() - since:.0f} s" if phrase == printed else ""
            stderr.print(Text(f"{phrase} ...{seconds}", style="dim"), soft_wrap=True)
            printed = phrase


@contextmanager
def resumable(output: Path) -> Iterator[None]:
    """Ctrl-C ends what is inside with a line on how to resume it."""
    try:
        yield
    except KeyboardInterrupt:
        stderr.print(
            f"stopped; what is complete stands in {shlex.quote(str(output))}. "
            "To go on, give the same command with --resume",
            soft_wrap=True,
        )
        raise


def note(text: str) -> None:
    """One dim line on standard error."""
    stderr.print(Text(text, style="dim"), soft_wrap=True)


def fail(message: str) -> NoReturn:
    """Print one clear line and end with code 2."""
    stderr.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    sys.exit(2)


def set_up_torch(threads: int | None) -> None:
    """Threads of torch; warnings of `transformers` would tear the progress bar.

    Raises:
        ConfigError: `threads` is below 1.
    """
    from transformers.utils import logging

    from draftless.engine.threads import use_threads
    from draftless.errors import ConfigError

    logging.set_verbosity_error()
    if threads is not None:
        if threads < 1:
            raise ConfigError(f"threads={threads} is below 1")
        use_threads(threads)


def load_model(model: str | None, *, threads: int | None = None, **how: Any) -> Draftless:
    """Load `model`, or the embedded one, and show what is going on.

    Args:
        model: folder, hub id or GGUF file.
        threads: as `set_up_torch` takes it.
        **how: arguments of `Draftless.from_pretrained`; `compile=None` is its default.
    """
    from draftless.engine.build import begin_building

    begin_building()  # beside the imports
    with phases("importing torch and transformers") as show:
        if threads is not None:
            set_up_torch(threads)
        from transformers.utils import logging

        from draftless import Draftless, embedded_model_path

        logging.disable_progress_bar()
        if how.get("compile", True) is None:
            del how["compile"]
        show("loading the model")
        how["on_progress"] = show
        return Draftless.from_pretrained(model or embedded_model_path(), **how)


def drafter_name(model: Draftless) -> str:
    """The name of the drafter that a model carries."""
    from draftless.drafters.registry import DRAFTERS

    kind = type(model.drafter)
    place = f"{kind.__module__}:{kind.__qualname__}"
    return next(name for name, known in DRAFTERS.items() if known == place)


def model_name(model: str | None) -> str:
    """What the model is called in results."""
    return model if model is not None else "embedded"
