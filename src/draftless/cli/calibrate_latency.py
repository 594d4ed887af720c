"""`draftless calibrate latency`: what a forward pass costs here, by width, length and rows."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from draftless.cli import options
from draftless.cli.common import load_model, progress_bar, set_up_torch, stderr
from draftless.cli.tables import shown

if TYPE_CHECKING:
    from draftless.engine.target import TargetModel
    from draftless.prices import PriceList


def latency(  # noqa: PLR0913 - the command line is derived from the signature
    model: options.Model = None,
    output: options.PriceFile = None,
    force: options.Force = False,
    threads: options.Threads = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    compile: options.Compile[bool | None] = None,
    strict: options.Strict = False,
    int8: options.Int8 = False,
) -> None:
    """Measure the price list: seconds of a forward pass by tree width, cached length and rows.

    The drafter auto chooses its trees by it, and measures a short form by itself where there is none.
    Lists are kept in DRAFTLESS_CACHE, else in the user's cache folder, one per machine, model, dtype,
    number of threads and kind of pass (--compile, --strict). A busy machine gives a bad list: measure while nothing else runs.
    It takes minutes (some 8 for 135M parameters on two cores); the expected time is printed first.

    [bold]Examples[/bold]

        draftless calibrate latency
        draftless calibrate latency ./my-model --compile --threads 2 --force
        draftless calibrate latency ./my-model --output prices.json
    """
    from draftless.engine.latency import QUIET, cache_file
    from draftless.prices import write_price_list

    if output is not None:
        _check_output(output)
    set_up_torch(threads)
    loaded = load_model(
        model, dtype=dtype, device=device, drafter="none", compile=compile, strict=strict, int8=int8
    )
    target = loaded.target
    prices = _measured(target, is_forced=force)
    if output is not None:
        write_price_list(output, prices)
    _show(prices)
    if prices.facts["noise"] > QUIET:
        stderr.print(
            f"the two halves of the rounds differ by {prices.facts['noise']:.0%}: other load on this "
            "machine; measure again with --force while nothing else runs",
            soft_wrap=True,
        )
    line = {
        "file": str(output or cache_file(target)),
        "hardware": prices.hardware,
        "noise": prices.facts["noise"],
        "forward_ms": {
            str(width): round(1000 * prices.forward_s(width), 4) for width in prices.widths
        },
    }
    typer.echo(json.dumps(line))


def _check_output(output: Path) -> None:
    """Before minutes are spent on measuring.

    Raises:
        ConfigError: the file cannot be written.
    """
    from draftless.errors import ConfigError

    reason = "it is a folder" if output.is_dir() else ""
    try:
        output.parent.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        reason = str(error)
    if not reason and not os.access(output.parent, os.W_OK):
        reason = f"{output.parent} is not writable"
    if reason:
        raise ConfigError(
            f"--output must be a file that can be written, got {output} ({reason}); "
            "name another file"
        )


def _measured(target: TargetModel, *, is_forced: bool) -> PriceList:
    """The full list that is kept, or a new one, which is kept."""
    from draftless.engine.latency import (
        FULL,
        expected_s,
        grid,
        keep,
        measure,
        measure_quickly,
        read_cached,
    )

    found = None if is_forced else read_cached(target)
    if found is not None and found.facts.get("is_full"):
        stderr.print("measured before; --force measures again")
        return found
    points = grid(target, FULL)
    seconds = expected_s(found or measure_quickly(target), points, FULL)
    stderr.print(
        f"timing {len(points)} kinds of passes: about {_duration(seconds)}, up to three times "
        "as long on a busy machine",
        soft_wrap=True,
    )
    with progress_bar() as progress:
        task = progress.add_task("Timing passes", total=FULL.rounds[1])

        def tell(done: int, _: int) -> None:
            progress.update(task, completed=done)

        return keep(target, measure(target, FULL, tell))


def _duration(seconds: float) -> str:
    """Whole seconds below two minutes, else whole minutes."""
    return f"{max(1, round(seconds))} s" if seconds < 120 else f"{round(seconds / 60)} min"


def _show(prices: PriceList) -> None:
    from draftless.bench.price_tables import measured_on, rows_table, width_table

    stderr.print(shown(width_table(prices)))
    if len(prices.rows) > 1:
        stderr.print(shown(rows_table(prices)))
    stderr.print(measured_on(prices), soft_wrap=True)
