"""Messages of the library in the words of the command line: `top_p=2` becomes `--top-p 2`."""

from __future__ import annotations

import re
from collections.abc import Sequence
from contextvars import ContextVar
from typing import Any

import typer
from rich.text import Text
from typer.core import TyperCommand

from draftless.cli.common import stderr
from draftless.errors import DraftlessError

_OTHER_NAMES = {
    "max_width": "budget",
    "drafter_options": "drafter_option",
    "use_model_defaults": "model_defaults",
}
"""What the library calls some options of the command line."""

_VALUE = r"""=('[^']*'|"[^"]*"|\[[^\]]*\]|[^\s,;:)]+)"""

_running: ContextVar[Sequence[Any]] = ContextVar("parameters of the running command", default=())


class Command(TyperCommand):
    """A command whose errors name its options as they are typed."""

    def invoke(self, ctx: Any) -> Any:
        """Run it.

        Raises:
            DraftlessError: as the library raised it, in the words of the command line.
        """
        before = _running.set(self.params)
        try:
            return super().invoke(ctx)
        except DraftlessError as error:
            raise type(error)(in_flags(str(error), self.params)) from error
        finally:
            _running.reset(before)


def use_command_words(app: typer.Typer) -> None:
    """Make every command of an application, and of those below it, a `Command`."""
    for command in app.registered_commands:
        command.cls = Command
    for group in app.registered_groups:
        if group.typer_instance is not None:
            use_command_words(group.typer_instance)


def in_flags(message: str, params: Sequence[Any]) -> str:
    """A message with the flags of a command in place of Python's keywords."""
    flags = {param.name: param for param in params if param.opts[0].startswith("-")}
    flags |= {name: flags[ours] for name, ours in _OTHER_NAMES.items() if ours in flags}
    for name, param in flags.items():
        flag = next(opt for opt in (*param.opts, *param.secondary_opts) if opt.startswith("--"))
        off = param.secondary_opts[0] if param.secondary_opts else f"no {flag}"
        alone = rf"(?<![\w.-]){re.escape(name)}(?![\w-])"

        def shown(match: re.Match[str], flag: str = flag, off: str = off) -> str:
            value = match.group(1).strip("'\"")
            return {"True": flag, "False": off}.get(value, f"{flag} {value}")

        message = re.sub(alone + _VALUE, shown, message)
        if "_" in name:
            message = re.sub(alone, flag, message)
    return message


def show_warning(message: Warning | str, *_: Any, **__: Any) -> None:
    """One line on standard error, in place of `warnings.showwarning`."""
    text = " ".join(in_flags(str(message), _running.get()).split())
    stderr.print(Text.assemble(("warning: ", "yellow"), text), soft_wrap=True)
