"""What the commands share: consoles, errors, and the loading of a model."""

from __future__ import annotations

import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

if TYPE_CHECKING:
    from draftless import Draftless

stderr = Console(stderr=True, highlight=False)
"""Progress, summaries and errors; standard output belongs to the result."""

SILENT_S = 2.0
"""Seconds that a phase may last without a line where standard error is no terminal."""


def progress_bar() -> Progress:
    """A bar on standard error that vanishes when it is done; nothing where nobody is watching."""
    return Progress(console=stderr, transient=True, disable=not stderr.is_terminal)


@contextmanager
def phases(first: str) -> Iterator[Callable[[str], None]]:
    """Show what is going on; call what is yielded with a short phrase when something else begins.

    A status line that vanishes on a terminal; elsewhere a line for each phase that lasts.
    """
    if stderr.is_terminal:
        with stderr.status(Text(f"{first} ...")) as status:
            yield lambda phrase: status.update(Text(f"{phrase} ..."))
        return
    slow = _SlowPhases()
    slow.begin(first)
    try:
        yield slow.begin
    finally:
        slow.end()


class _SlowPhases:
    """Prints a phase that is not over after `SILENT_S`."""

    def __init__(self) -> None:
        self._timer: threading.Timer | None = None

    def begin(self, phrase: str) -> None:
        self.end()
        text = Text(f"{phrase} ...", style="dim")
        self._timer = threading.Timer(SILENT_S, stderr.print, [text], {"soft_wrap": True})
        self._timer.daemon = True
        self._timer.start()

    def end(self) -> None:
        if self._timer is not None:
            self._timer.cancel()


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
