"""The `draftless` command: one module per command; torch is imported when a command runs."""

from __future__ import annotations

import atexit
import contextlib
import os
import sys
import warnings
from typing import Annotated, NoReturn

import typer

from draftless.cli.bench import bench_app
from draftless.cli.calibrate import calibrate_app
from draftless.cli.calibrate_anchors import anchors
from draftless.cli.calibrate_latency import latency
from draftless.cli.calibrate_tree import tree
from draftless.cli.chat import chat
from draftless.cli.common import fail
from draftless.cli.data import data_app
from draftless.cli.demo import demo
from draftless.cli.encodings import standard_output
from draftless.cli.generate import generate
from draftless.cli.train import train_app
from draftless.cli.words import show_warning, use_command_words
from draftless.errors import DraftlessError

app = typer.Typer(
    name="draftless",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
    context_settings={"help_option_names": ["-h", "--help"]},
)
app.command()(generate)
app.command()(chat)
app.command()(demo)
app.add_typer(train_app, name="train")
app.add_typer(data_app, name="data")
calibrate_app.command()(anchors)
calibrate_app.command()(latency)
calibrate_app.command()(tree)
app.add_typer(calibrate_app, name="calibrate")
app.add_typer(bench_app, name="bench")
use_command_words(app)


def _print_version(is_wanted: bool) -> None:
    if is_wanted:
        from draftless import __version__

        typer.echo(f"draftless {__version__}")
        raise typer.Exit


@app.callback()
def draftless(
    version: Annotated[
        bool,
        typer.Option(
            "--version", callback=_print_version, is_eager=True, help="Print the version."
        ),
    ] = False,
) -> None:
    """A causal language model drafts for itself: the same output, fewer forward passes.

    MODEL is optional everywhere; without it a small model that ships with Draftless is used.

    [bold]Start here[/bold]

        draftless demo
        draftless chat ./my-model
        draftless generate ./my-model --prompt "Why is the sky blue?" --show-drafts
        draftless train msn --help
        draftless bench run --limit 18
    """


def main() -> NoReturn:
    """Run the command; errors and warnings become one line each, Ctrl-C a clean end."""
    warnings.showwarning = show_warning
    standard_output()  # help, too, on a terminal that is no UTF-8
    try:
        _run()
    except SystemExit as end:
        code = end.code if isinstance(end.code, int) else int(end.code is not None)
    _leave(code)


def _run() -> NoReturn:
    try:
        app()
    except DraftlessError as error:
        fail(str(error))
    except OSError as error:  # a full disk, a folder that may not be written
        if error.filename is None:
            raise
        fail(f"{error.filename}: {error.strerror}")
    except KeyboardInterrupt:
        sys.exit(130)
    sys.exit()


def _leave(code: int) -> NoReturn:
    """End at once, after what modules asked for: to take torch and the weights apart costs a second."""
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):  # nobody reads it any more
            stream.flush()
    os._exit(code)
