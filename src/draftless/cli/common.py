"""What the commands share: consoles, errors, and the loading of a model."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, NoReturn

from rich.console import Console
from rich.progress import Progress
from rich.text import Text

if TYPE_CHECKING:
    from draftless import Draftless

stderr = Console(stderr=True, highlight=False)
"""Progress, summaries and errors; standard output belongs to the result."""


def progress_bar() -> Progress:
    """A bar on standard error that vanishes when it is done; nothing where nobody is watching."""
    return Progress(console=stderr, transient=True, disable=not stderr.is_terminal)


def fail(message: str) -> NoReturn:
    """Print one clear line and end with code 2."""
    stderr.print(Text.assemble(("error: ", "bold red"), message), soft_wrap=True)
    sys.exit(2)


def set_up_torch(threads: int | None) -> None:
    """Threads of torch; warnings of `transformers` would tear the progress bar.

    Raises:
        ConfigError: `threads` is below 1.
    """
    import torch
    from transformers.utils import logging

    from draftless.errors import ConfigError

    logging.set_verbosity_error()
    if threads is not None:
        if threads < 1:
            raise ConfigError(f"threads={threads} is below 1")
        torch.set_num_threads(threads)


def load_model(model: str | None, **how: Any) -> Draftless:
    """Load `model`, or the embedded one, and show that something happens.

    Args:
        model: folder, hub id or GGUF file.
        **how: arguments of `Draftless.from_pretrained`; `compile=None` is True on a CPU.
    """
    if "compile" in how and how["compile"] is None:  # nobody has tried it on a GPU yet
        how["compile"] = how.get("device") in (None, "cpu")
    compiling = "and compiling " if how.get("compile") else ""
    with stderr.status(f"Loading {compiling}the model ..."):
        from transformers.utils import logging

        from draftless import Draftless, embedded_model_path

        logging.disable_progress_bar()
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


def read_text(path: Path) -> str:
    """Content of a file, or of standard input for `-`.

    Raises:
        InputError: if it cannot be read as UTF-8.
    """
    from draftless.errors import InputError

    try:
        return sys.stdin.read() if str(path) == "-" else path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise InputError(f"cannot read {path}: {error}") from error
