"""Messages of the library in the words of the command line."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
from typer.main import get_command

from draftless import cli
from draftless.cli.words import in_flags, show_warning


def params_of(name: str) -> Any:
    return get_command(cli.app).commands[name].params  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("message", "expected"),
    [
        ("strict=True needs compile=True; leave it out", "--strict needs --compile; leave it out"),
        ("compile=False silences this", "--no-compile silences this"),
        ("max_width=1 of auto is below 2", "--budget 1 of auto is below 2"),
        ("top_p=2.0 lies outside (0.0, 1.0]", "--top-p 2.0 lies outside (0.0, 1.0]"),
        ("drafter='none' (or stop=['a b'])", "--drafter none (or --stop ['a b'])"),
        ("drafter_options go with a name", "--drafter-option go with a name"),
        (
            "threshold=3 of layer-skip",
            "threshold=3 of layer-skip",
        ),  # typed so after --drafter-option
        ("the seed is a model of the temperature", "the seed is a model of the temperature"),
        ("my_top_p=3, top_pit=4", "my_top_p=3, top_pit=4"),
    ],
)
def test_keywords_become_flags(message: str, expected: str) -> None:
    assert in_flags(message, params_of("generate")) == expected


def test_only_flags_of_the_command_are_named() -> None:
    assert in_flags("max_width=1, seed=-1", params_of("demo")) == "max_width=1, --seed -1"


def test_a_warning_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(warnings, "showwarning", show_warning)
    with warnings.catch_warnings():
        warnings.simplefilter("always")
        warnings.showwarning = show_warning  # catch_warnings put its own there
        warnings.warn("it goes on\nwithout [bold]", stacklevel=1)
    assert capsys.readouterr().err == "warning: it goes on without [bold]\n"
