"""`draftless calibrate latency`: what a forward pass costs here, by width, length and rows."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from draftless.cli import calibrate_options, options
from draftless.cli.common import load_model, progress_bar, set_up_torch, stderr
from draftless.cli.tables import shown

if TYPE_CHECKING:
    from draftless.engine.target import TargetModel
    from draftless.prices import PriceList

Output = Annotated[Path | None, typer.Option(help="Write the price list into this file, too.")]
Force = Annotated[bool, typer.Option("--force", help="Measure although there is a list.")]


def latency(  # noqa: PLR0913 - the command line is derived from the signature
    model: options.Model = None,
    output: Output = None,
    force: Force = False,
    threads: calibrate_options.Threads = None,
    dtype: options.Dtype = None,
    device: options.Device = None,
    compile: options.CompileHere = None,
    strict: options.Strict = False,
    int8: options.Int8 = False,
) -> None:
    """Measure the price list: seconds of a forward pass by tree width, cached length and rows.

    The drafter auto chooses its trees by it, and measures a short form by itself where there is none.
    Lists are kept in DRAFTLESS_CACHE, else in the user's cache folder, one per machine, model, dtype,
    number of threads and kind of pass (--compile, --strict). A busy machine gives a bad list: measure while nothing else runs.

    [bold]Examples[/bold]

        draftless calibrate latency
        draftless calibrate latency ./my-model --compile --threads 2 --force
        draftless calibrate latency ./my-model --output prices.json
    """
    from draftless.engine.latency import QUIET, cache_file
    from draftless.prices import write_price_list

    set_up_torch(threads)
    loaded = load_model(
        model, dtype=dtype, device=device, drafter="none", compile=compile, strict=strict, int8=int8
    )
    target = loaded.target
    prices = _measured(target, is_forced=force)
    if output is not None:
        output.parent.mkdir(parents=True, exist_ok=True)
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


def _measured(target: TargetModel, *, is_forced: bool) -> PriceList:
    """The full list that is kept, or a new one, which is kept."""
    from draftless.engine.latency import FULL, keep, measure, read_cached

    found = None if is_forced else read_cached(target)
    if found is not None and found.facts.get("is_full"):
        stderr.print("measured before; --force measures again")
        return found
    with progress_bar() as progress:
        task = progress.add_task("Timing passes", total=FULL.rounds[1])

        def tell(done: int, _: int) -> None:
            progress.update(task, completed=done)

        return keep(target, measure(target, FULL, tell))


def _show(prices: PriceList) -> None:
    from draftless.bench.price_tables import measured_on, rows_table, width_table

    stderr.print(shown(width_table(prices)))
    if len(prices.rows) > 1:
        stderr.print(shown(rows_table(prices)))
    stderr.print(measured_on(prices), soft_wrap=True)
