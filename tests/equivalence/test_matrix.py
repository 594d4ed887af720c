"""The wall: in every cell, every drafter writes exactly what plain decoding writes.

Greedy cells are held against `transformers.generate` on the stock model with its own eager
attention, sampled ones (and those in bf16, which the native pass alone makes exact) against our `none`
drafter, run alone. A drafter that enters the registry
enters here by itself; the replay drafter makes sure that each cell could have failed. SDSAT with its
steps and lengths, as if its model had been trained, layer skipping with another skip set for every row
(none, half and all sub-layers), and other variants take turns; with `--full` all of them go through
every cell.
"""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from draftless.drafters.registry import DRAFTERS
from draftless.skip_set import SkipSet
from draftless.types import Drafter
from support.drafters import PLANTED, VARIANTS, PlantedSDSAT, SkipSetPerRow, registered
from support.driving import Job, run
from support.matrix import ROWS, Cell, Plain, all_cells, compiled_cells, pairwise, plain_text
from support.models import FAMILIES, FAMILIES_OF_INDUCTOR, INDUCTOR, target
from support.replay import EVERYTHING, ReplayDrafter, coverage


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "cell" not in metafunc.fixturenames:
        return
    cells = all_cells()
    selected = pairwise(cells)
    other_families = [name for name in FAMILIES if name not in FAMILIES_OF_INDUCTOR]
    others = compiled_cells(other_families, INDUCTOR, ("fp32",))
    rest = [cell for cell in [*cells, *others] if cell not in set(selected)]
    every = range(max(len(PLANTED), len(VARIANTS)))
    full = [pytest.param(cell, every, id=str(cell), marks=pytest.mark.full) for cell in rest]
    wanted = metafunc.config.getoption("--full") or "full" in metafunc.config.getoption("-m")
    chosen = [
        pytest.param(cell, every if wanted else [turn], id=str(cell))
        for turn, cell in enumerate(selected)
    ]
    metafunc.parametrize(("cell", "turns"), [*chosen, *(full if wanted else [])])


def test_every_drafter_writes_the_plain_text(cell: Cell, turns: Sequence[int]) -> None:
    plains = [
        plain_text(cell.family, cell.attention, cell.dtype, cell.mode, length)
        for length in ROWS[cell.rows]
    ]
    jobs = [stopped(cell, index, plain) for index, plain in enumerate(plains)]
    expected = [list(p.token_ids[:n]) for p, (_, n) in zip(plains, jobs, strict=True)]
    replay = ReplayDrafter([p.token_ids for p in plains], [n for _, n in jobs])
    drafters: dict[str, Drafter] = {name: registered(name) for name in DRAFTERS}
    drafters |= varied(turns, [p.token_ids for p in plains])
    for name, drafter in {**drafters, "replay": replay}.items():
        results = run(
            target(cell.family, cell.dtype, cell.attention), drafter, [job for job, _ in jobs]
        )
        assert [r.token_ids for r in results] == expected, name
        reason = "stop" if cell.stop == "eos" else "length"
        assert [r.finish_reason for r in results] == [reason] * len(results), name
        for result in results:
            if name == "replay":
                assert coverage(result.steps) == EVERYTHING
            elif name.startswith("planted"):
                assert result.request.stats.num_accepted_tokens >= 3, name
            elif (
                name.startswith("skip set per row")
                and cell.mode in ("greedy", "sampled")
                and cell.stop == "length"
            ):
                # The draft does what the target does, as long as no processor stands between.
                stats = result.request.stats
                is_whole = drafter.skip_set_of(result.request.row) == SkipSet()  # type: ignore[attr-defined]
                assert stats.num_draft_tokens
                assert stats.num_accepted_tokens == stats.num_draft_tokens or not is_whole


def varied(turns: Sequence[int], texts: Sequence[Sequence[int]]) -> dict[str, Drafter]:
    """The variants whose turn it is, by a name that says what they are."""
    found: dict[str, Drafter] = {}
    for turn in turns:
        name, options = VARIANTS[turn % len(VARIANTS)]
        found[f"{name} {options}"] = registered(name, **options)
        found[f"skip set per row from {turn % 3}"] = SkipSetPerRow(turn)
        planted = PLANTED[turn % len(PLANTED)]
        found[f"planted sdsat {planted}"] = PlantedSDSAT(texts, **planted)
    return found


def stopped(cell: Cell, index: int, plain: Plain) -> tuple[Job, int]:
    """The job with the cell's stop, and how many ids it must emit."""
    return plain.until_eos(index) if cell.stop == "eos" else plain.until_length(13 + 3 * index)


def test_the_selection_holds_every_pair_and_is_always_the_same() -> None:
    cells = all_cells()
    selected = pairwise(cells)
    assert selected == pairwise(list(cells))
    assert len(selected) < 200
    values = {(a, getattr(c, a), b, getattr(c, b)) for c in cells for a in vars(c) for b in vars(c)}
    kept = {
        (a, getattr(c, a), b, getattr(c, b)) for c in selected for a in vars(c) for b in vars(c)
    }
    assert kept == values
