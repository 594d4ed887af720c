"""The price list: between and beyond the measured points, and its file."""

from __future__ import annotations

import json
from itertools import pairwise, product
from pathlib import Path

import numpy as np
import pytest

from draftless import ArtifactError, ConfigError
from draftless.prices import PriceList, completed, read_price_list, risen, write_price_list

POINTS = {
    (width, length, rows): width * 1.0 + length / 100 + rows * 10.0
    for width, length, rows in product((1, 4, 16), (100, 500), (1, 8))
}
ABOUT = {"hardware": "h", "model_fingerprint": "f", "dtype": "bfloat16", "is_compiled": True}


def prices(**about: object) -> PriceList:
    return PriceList.from_points(POINTS, **about)


def test_measured_points_come_back() -> None:
    assert all(prices().forward_s(*point) == pytest.approx(s) for point, s in POINTS.items())


@pytest.mark.parametrize(
    ("point", "seconds"),
    [
        ((2, 100, 1), 2 + 1 + 10),  # each axis between its points
        ((1, 300, 1), 1 + 3 + 10),
        ((1, 100, 3), 1 + 1 + 30),
        ((10, 200, 5), 10 + 2 + 50),
        ((64, 100, 1), 64 + 1 + 10),  # and beyond the last one
        ((1, 4000, 1), 1 + 40 + 10),
        ((4, 100, 32), 4 + 1 + 320),
        ((1, 0, 1), 1 + 1 + 10),  # before the first one it is flat
    ],
)
def test_linear_between_and_beyond(point: tuple[int, int, int], seconds: float) -> None:
    assert prices().forward_s(*point) == pytest.approx(seconds)


def test_each_interval_has_its_own_slope() -> None:
    steps = PriceList.from_points({(1, 0, 1): 1.0, (8, 0, 1): 1.0, (9, 0, 1): 3.0, (11, 0, 1): 4.0})
    assert [steps.forward_s(w) for w in (4, 8, 9, 10, 13)] == pytest.approx([1, 1, 3, 3.5, 5])


def test_noise_does_not_make_more_cost_less() -> None:
    measured = np.random.default_rng(0).uniform(1, 2, (5, 4, 3))
    found = risen(measured)
    assert all((np.diff(found, axis=axis) >= 0).all() for axis in range(3))
    assert measured.min() <= found.min() and found.max() <= measured.max()
    rising = np.add.outer(np.arange(1.0, 6), np.arange(4.0))
    assert np.array_equal(risen(rising), rising)  # what rises stays as it is
    assert risen(np.array([1.0, 3.0, 2.0, 4.0])).tolist() == [1.0, 2.5, 2.5, 4.0]


def test_prices_rise_everywhere() -> None:
    generator = np.random.default_rng(1)
    points = {point: float(generator.uniform(1, 2)) for point in POINTS}
    noisy = PriceList.from_points(points)
    for axis, values in enumerate((range(1, 40), range(0, 900, 30), range(1, 20))):
        for low, high in pairwise(values):
            beyond = [(30, 700, 12)] if axis == 0 else []
            for other in ((1, 50, 1), (6, 300, 4), (16, 500, 8), *beyond):
                below, above = list(other), list(other)
                below[axis], above[axis] = low, high
                assert noisy.forward_s(*below) <= noisy.forward_s(*above) + 1e-12


def test_rows_that_were_not_measured_are_width() -> None:
    one_row = PriceList.from_points({(w, 0, 1): float(w) for w in (1, 64)})
    assert one_row.forward_s(4, 512, 8) == 32
    assert one_row.curve(512, 2, 3).tolist() == [2, 4, 6]


def test_a_curve_is_computed_once_for_64_lengths() -> None:
    one = prices()
    found = one.curve(129, 1, 20)
    assert found is one.curve(192, 1, 20)
    assert found is not one.curve(193, 1, 20)
    assert len(one.curve(129, 1, 21)) == 21
    assert found.tolist() == pytest.approx([one.forward_s(w, 192, 1) for w in range(1, 21)])
    assert not found.flags.writeable


def test_missing_widths_are_filled_from_the_measured_ones() -> None:
    """A batch is measured at fewer widths than a single row."""
    one_row = {(w, 0, 1): float(w) for w in (1, 2, 8, 16, 64)}
    ragged = PriceList.from_points({**one_row, (2, 0, 8): 20.0, (16, 0, 8): 160.0})
    assert [ragged.forward_s(w, 0, 8) for w in (1, 2, 8, 16, 64)] == [20, 20, 80, 160, 640]
    assert ragged.forward_s(8, 0, 1) == 8


def test_times_that_fall_by_noise_are_not_carried_on_below_zero() -> None:
    """Batches are measured up to 16 nodes, and single rows up to 64."""
    points = {(w, 128, 1): 0.002 + 0.0001 * w for w in (1, 4, 16, 64)}
    points |= {(1, 128, 8): 0.003, (4, 128, 8): 0.0084, (16, 128, 8): 0.0050}
    found = PriceList.from_points(points)
    assert found.forward_s(16, 128, 8) == pytest.approx(0.0067)
    assert found.forward_s(64, 128, 8) == pytest.approx(0.00755)  # one row of 64 nodes took 0.0084
    generator = np.random.default_rng(2)
    for _ in range(50):
        noisy = {point: float(10 ** generator.uniform(-4, 0)) for point in points}
        for table in (noisy, completed(noisy), completed({(1, 128, 1): 1.0, **noisy})):
            prices = PriceList.from_points(table)
            assert prices.forward_s(1, 0, 1) > 0
            assert (np.diff(prices.curve(4096, 16, 100)) >= 0).all()


def test_the_default_shape_stands_for_what_was_not_measured() -> None:
    one = PriceList.from_points(completed({(1, 128, 1): 0.5}))
    assert one.forward_s(1) == 0.5
    assert one.forward_s(8) == pytest.approx(0.57)
    assert one.forward_s(4, 512, 4) == pytest.approx(0.5 * 1.29), "rows are width"
    twice = completed({(1, 128, 1): 0.5, (8, 128, 1): 2 * 0.57})
    assert twice[32, 128, 1] == pytest.approx(2 * 0.5 * 1.57), "as the nearest measured one"
    assert 1.0 < twice[4, 128, 1] / (0.5 * 1.06) < 2.0
    assert twice[1, 128, 1] == 0.5 and twice[8, 128, 1] == 2 * 0.57


def test_what_was_measured_scales_other_lengths_and_rows() -> None:
    few = {(1, 128, 1): 1.0, (1, 1024, 1): 3.0, (1, 128, 8): 2 * 1.14}
    found = completed(few)
    assert found[8, 1024, 1] == pytest.approx(3 * 1.14)
    assert found[4, 128, 8] == pytest.approx(2 * 1.57)
    assert found[4, 1024, 8] == pytest.approx(2 * 3 * 1.57)
    assert {found[point] - seconds for point, seconds in few.items()} == {0.0}
    assert len(found) == 2 * 2 * 10


def test_one_point_prices_everything() -> None:
    one = PriceList.from_points({(1, 512, 1): 0.25})
    assert (one.forward_s(1), one.forward_s(64, 4096)) == (0.25, 0.25)


def test_it_comes_back_from_its_file(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    write_price_list(file, prices(**ABOUT, facts={"num_threads": 2}))
    found = read_price_list(file)
    assert found == prices(**ABOUT, facts={"num_threads": 2})
    assert found.hardware == "h" and found.is_compiled
    assert found != prices(**ABOUT, facts={"num_threads": 1})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"seconds": [[[1.0]]]}, "not a price list"),
        ({"seconds": "x"}, "not a price list"),
        ({"widths": [4, 1, 16]}, "not a price list"),
        ({"rows": None}, "not a price list"),
        ({"more": 1}, "not a price list"),
        ({"facts": None}, "not a price list"),
        ({"format_version": 2}, "format version 2"),
        ({"format_version": None}, "format version None"),
    ],
)
def test_damage_is_named(tmp_path: Path, change: dict[str, object], told: str) -> None:
    file = tmp_path / "prices.json"
    file.write_text(json.dumps({**prices().to_dict(), **change}))
    with pytest.raises(ArtifactError, match=told) as caught:
        read_price_list(file)
    assert str(file) in str(caught.value)


@pytest.mark.parametrize("text", [None, "", "{", "[]", "7"])
def test_what_is_no_price_list_at_all(tmp_path: Path, text: str | None) -> None:
    file = tmp_path / "prices.json"
    if text is not None:
        file.write_text(text)
    with pytest.raises(ArtifactError, match=r"prices\.json"):
        read_price_list(file)


@pytest.mark.parametrize(
    ("points", "told"),
    [
        ({}, "at least one"),
        ({(1, 0, 1): 1.0, (1, 5, 1): 1.0, (1, 5, 2): 1.0}, "0 tokens in 2 rows"),
        ({(0, 0, 1): 1.0}, "widths"),
        ({(1, -1, 1): 1.0}, "lengths"),
        ({(1, 0, 0): 1.0}, "rows"),
        ({(1, 0, 1): 0.0}, "above 0"),
        ({(1, 0, 1): float("nan")}, "above 0"),
    ],
)
def test_impossible_points(points: dict[tuple[int, int, int], float], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        PriceList.from_points(points)
