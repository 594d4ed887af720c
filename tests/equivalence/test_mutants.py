"""The wall can fail: every planted bug is caught in every family.

"Caught" means that the ids of some row differ from the plain ones, or that an error is raised.
The audit of the invariants is off: the ids alone must tell.
"""

from __future__ import annotations

from itertools import product

import pytest

from support.driving import run
from support.matrix import plain_text
from support.models import FAMILIES, WINDOWED, target
from support.mutants import MUTANTS, WINDOW_MUTANTS
from support.replay import ReplayDrafter

LENGTHS = (5, 2, 30)
MODES = ("penalty", "greedy-penalty", "bad-words", "greedy")
CASES = [(family, name) for family in FAMILIES for name in MUTANTS]
CASES += [(family, name) for family in WINDOWED for name in WINDOW_MUTANTS]


def is_caught(family: str) -> bool:
    return any(goes_wrong(family, mode) for mode in MODES)


def goes_wrong(family: str, mode: str) -> bool:
    """Whether a replay of ragged rows, which end one after the other inside blocks, differs."""
    plains = [plain_text(family, "draftless", "fp64", mode, n) for n in LENGTHS]
    jobs = [p.until_eos(-1) for p in plains[1:]]
    jobs.insert(0, plains[0].until_length(11))
    replay = ReplayDrafter([p.token_ids for p in plains], [stop for _, stop in jobs])
    try:
        results = run(target(family), replay, [job for job, _ in jobs], audit=False)
    except Exception:  # noqa: BLE001 - an error is a catch, whatever it is
        return True
    wanted = [list(p.token_ids[:stop]) for p, (_, stop) in zip(plains, jobs, strict=True)]
    return [r.token_ids for r in results] != wanted


@pytest.mark.parametrize("family", FAMILIES)
def test_nothing_is_caught_without_a_mutant(family: str) -> None:
    assert not is_caught(family)


@pytest.mark.parametrize(("family", "name"), CASES)
def test_mutant_is_caught(family: str, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    plain_target = target(family)
    for mode, length in product(MODES, LENGTHS):  # plain texts come from the engine as it is
        plain_text(family, "draftless", "fp64", mode, length)
    {**MUTANTS, **WINDOW_MUTANTS}[name](monkeypatch, plain_target)
    assert is_caught(family)
