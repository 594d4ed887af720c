"""The cost table: fitted parts, and what is refused."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from draftless import ArtifactError
from draftless.calibration.costs import (
    CostTable,
    fit_parts,
    kept_parts,
    measure_costs,
    probe_sets,
    rising,
)
from draftless.skip_set import SkipSet
from support.models import prompt_ids, target

PARTS = (2.0, 0.5, 0.3, 0.1)  # base, attention, MLP, layer


def table() -> CostTable:
    return CostTable(4, 7, (10.0, 11.0, 13.0), *PARTS)


def seconds_of(kept: tuple[int, int, int], parts: tuple[float, ...] = PARTS) -> float:
    return parts[0] + sum(count * part for count, part in zip(kept, parts[1:], strict=True))


def test_kept_parts() -> None:
    assert kept_parts(SkipSet(), 4) == (4, 4, 4)
    assert kept_parts(SkipSet((1, 2), (2, 3)), 4) == (2, 2, 3)  # layer 2 is gone as a whole


@pytest.mark.parametrize("num_layers", [2, 12, 33])
def test_the_probes_tell_all_parts_apart(num_layers: int) -> None:
    kept = [kept_parts(skip_set, num_layers) for skip_set in probe_sets(num_layers)]
    assert fit_parts(kept, [seconds_of(one) for one in kept]) == pytest.approx(PARTS)


def test_a_part_that_noise_drives_below_zero_costs_nothing() -> None:
    kept = [kept_parts(skip_set, 12) for skip_set in probe_sets(12)]
    found = fit_parts(kept, [seconds_of(one, (2.0, 0.5, 0.3, -0.05)) for one in kept])
    assert found[3] == 0.0
    assert min(found) >= 0
    assert found[1] == pytest.approx(0.5, abs=0.06)


def test_short_passes_are_fitted_as_closely_as_long_ones() -> None:
    """An error of 10 % in the longest pass may not spoil the short ones, which count."""
    kept = [kept_parts(skip_set, 12) for skip_set in probe_sets(12)]
    measured = [seconds_of(one) * (1.1 if one == (12, 12, 12) else 1.0) for one in kept]
    fitted = fit_parts(kept, measured)
    shortest = kept.index((0, 0, 0))
    assert seconds_of(kept[shortest], fitted) == pytest.approx(measured[shortest], rel=0.02)


def test_costs_of_passes_and_rounds() -> None:
    costs = table()
    assert costs.draft_pass_s(SkipSet()) == pytest.approx(2 + 4 * 0.9)
    assert costs.draft_pass_s(SkipSet((0, 1), (0, 1))) == pytest.approx(2 + 2 * 0.9)
    assert costs.draft_pass_s(SkipSet((0, 1), ())) == pytest.approx(2 + 2 * 0.5 + 4 * 0.4)
    assert costs.share(SkipSet(tuple(range(4)), tuple(range(4)))) == pytest.approx(0.2)
    # One draft is verified with the root: two tokens.
    assert costs.rounds_s(np.array([0, 1, 2]), 0, 3.0).tolist() == [10.0, 14.0, 19.0]
    assert costs.rounds_s(np.array([0, 1]), 1, 3.0).tolist() == [11.0, 16.0]


def test_wider_passes_cost_no_less() -> None:
    assert rising([1.0, 3.0, 2.0, 4.0]) == (1.0, 2.5, 2.5, 4.0)


def test_costs_come_back_from_json() -> None:
    costs = replace(table(), measured=({"layer": 1, "seconds": 2.0},))
    assert CostTable.from_dict(json.loads(json.dumps(costs.to_dict()))) == costs


@pytest.mark.parametrize(
    "change", [{"base_s": -1.0}, {"width_s": "x"}, {"more": 1}, {"mlp_s": None}]
)
def test_other_forms_are_refused(change: dict[str, object]) -> None:
    with pytest.raises(ArtifactError, match="not a cost table"):
        CostTable.from_dict({**table().to_dict(), **change})


def test_passes_are_measured() -> None:
    """No times are asserted, only that every width and part has one, and the cache is as it was."""
    costs = measure_costs(target("llama", "fp32"), prompt_ids(20), 3)
    assert (len(costs.width_s), costs.cached_len, costs.num_layers) == (4, 19, 2)
    assert all(one["seconds"] > 0 and one["fitted_s"] > 0 for one in costs.measured)
    assert len(costs.measured) == len(probe_sets(2))
