"""Measured price lists: which passes are timed, what of it is kept, and where. No time is asserted."""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from draftless import ConfigError
from draftless.engine import latency
from draftless.engine.latency import (
    LatencyOptions,
    cache_file,
    grid,
    measure,
    measure_quickly,
    prices_of,
)
from draftless.engine.target import TargetModel
from draftless.prices import PriceList, read_price_list
from support.models import CONTEXT, FAMILIES, build_model

FEW = LatencyOptions((1, 3), (4, 16), (1, 2), (2,), (2, 2))


class Watch:
    """Every forward pass of a target: width, cached length and rows."""

    def __init__(self, target: TargetModel) -> None:
        self.passes: list[tuple[int, int, int]] = []
        self._forward = target.forward
        target.forward = self  # type: ignore[method-assign, assignment]

    def __call__(self, cache: Any, token_ids: Any, layouts: Any, **more: Any) -> torch.Tensor:
        rows = len(token_ids)
        assert len(set(cache.lengths[:rows])) == 1
        assert [layout.num_nodes for layout in layouts] == [len(ids) for ids in token_ids]
        self.passes.append((len(token_ids[0]), cache.lengths[0], rows))
        return self._forward(cache, token_ids, layouts, **more)


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(latency.CACHE_VARIABLE, str(tmp_path))
    return tmp_path


@pytest.fixture
def target() -> TargetModel:
    """One of its own per test: price lists are remembered by target."""
    return TargetModel(build_model(FAMILIES["llama"].config(), "fp32"))


def few(target: TargetModel) -> PriceList:
    """A list that was measured in a moment on a quiet machine."""
    data = measure(target, FEW).to_dict()
    return PriceList.from_dict({**data, "facts": {**data["facts"], "noise": 0.0}})


@pytest.mark.parametrize(("block_s", "num_passes"), [(0.0, 3), (99.0, 12)])
def test_every_point_is_timed_in_turn(
    target: TargetModel, monkeypatch: pytest.MonkeyPatch, block_s: float, num_passes: int
) -> None:
    """Some passes in a row each time, more where they take little time."""
    monkeypatch.setattr(latency, "_BLOCK_S", block_s)
    watch = Watch(target)
    prices = measure(target, FEW)
    points = grid(target, FEW)
    assert points == [(1, 4, 1), (3, 4, 1), (1, 16, 1), (3, 16, 1), (2, 4, 2), (2, 16, 2)]
    blocks = watch.passes[::num_passes]
    assert watch.passes == [point for point in blocks for _ in range(num_passes)]
    rounds = [blocks[begin : begin + 6] for begin in (0, 6, 12)]
    assert len({tuple(one) for one in rounds}) > 1, "in another order each time"
    assert len(blocks) == 18 and all(
        sorted(one) == sorted(points) for one in rounds
    )  # one round to warm up, two that count
    assert (prices.widths, prices.lengths, prices.rows) == ((1, 2, 3), (4, 16), (1, 2))
    assert prices.facts["num_rounds"] == 2
    assert prices.model_fingerprint == target.fingerprint()
    assert (prices.dtype, prices.is_compiled) == ("float32", False)
    assert prices.hardware


def test_other_load_does_not_show(target: TargetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    """Other load only adds: of four passes two were hit."""
    rounds = iter([[99.0, 99.0], [1.0, 2.0], [50.0, 2.0], [1.0, 70.0], [30.0, 20.0]])
    monkeypatch.setattr(latency._Passes, "round", lambda _: next(rounds))
    prices = measure(target, LatencyOptions((1, 3), (4,), (1,), (1,), (4, 4)))
    assert [prices.forward_s(width, 4) for width in (1, 3)] == [1.0, 2.0]


@pytest.mark.parametrize(
    ("rounds", "num"),
    [
        ([[1.0], [1.0], [1.0], [1.0], [1.0]], 3),  # quiet: the fewest are enough
        ([[1.0], [2.0], [1.0], [2.0], [1.0], [2.0]], 5),  # noisy: as many as there may be
    ],
)
def test_noise_asks_for_more_rounds(
    target: TargetModel, monkeypatch: pytest.MonkeyPatch, rounds: list[list[float]], num: int
) -> None:
    told: list[tuple[int, int]] = []
    left = iter([[9.0], *rounds])
    monkeypatch.setattr(latency._Passes, "round", lambda _: next(left))
    options = LatencyOptions((1,), (4,), (1,), (1,), (3, 5), seconds=1e9)
    prices = measure(target, options, lambda *done: told.append(done))
    assert prices.facts["num_rounds"] == num
    assert told == [(done, 5) for done in range(1, num + 1)]
    assert (prices.facts["noise"] > 0.5) == (num == 5)


@pytest.mark.parametrize(("noise", "num"), [(0.3, 11), (0.08, 4), (0.01, 3)])
def test_noise_is_given_more_time(
    target: TargetModel, monkeypatch: pytest.MonkeyPatch, noise: float, num: int
) -> None:
    """A round takes 1 s here, and 3.5 s are planned."""
    now = iter(range(1000))
    monkeypatch.setattr(latency._Passes, "round", lambda _: [1.0])
    monkeypatch.setattr(latency, "_noise", lambda _: noise)
    monkeypatch.setattr(latency.time, "perf_counter", lambda: float(next(now)))
    options = LatencyOptions((1,), (4,), (1,), (1,), (3, 50), seconds=3.5)
    num_rounds = measure(target, options).facts["num_rounds"]
    assert num_rounds == num


def test_the_default_form_fits_the_context(target: TargetModel) -> None:
    default = LatencyOptions()
    points = grid(target, default)
    assert max(width + length for width, length, _ in points) <= CONTEXT
    assert {length for _, length, _ in points} == {128, CONTEXT - 64}
    target.max_positions = 40  # narrower than the widest tree
    points = grid(target, default)
    assert max(width + length for width, length, _ in points) <= 40
    widths = {width for width, _, rows in points if rows == 1}
    assert widths == {1, 2, 4, 6, 7, 8, 9, 12, 13, 16, 17}


class Clock:
    """Stands for `time`; only the passes of `target` take time, as `cost` says."""

    def __init__(
        self, target: TargetModel, monkeypatch: pytest.MonkeyPatch, cost: Callable[..., float]
    ) -> None:
        self.now = 0.0
        self.passes: list[tuple[int, int, int]] = []
        self._cost, self._logits = cost, [torch.zeros(1)]
        monkeypatch.setattr(latency.time, "perf_counter", lambda: self.now)
        monkeypatch.setattr(target, "forward", self._forward)

    def _forward(self, cache: Any, token_ids: Any, _: Any) -> list[torch.Tensor]:
        point = (len(token_ids[0]), cache.lengths[0], len(token_ids))
        self.passes.append(point)
        self.now += self._cost(*point)
        return self._logits


def rising(seconds: float) -> Callable[..., float]:
    """Costs with one half more at 16 nodes."""
    return lambda width, _, rows: seconds * (1 + width * rows / 32)


def test_quickly_everything_of_a_fast_model(
    target: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = Clock(target, monkeypatch, rising(0.001))
    prices = measure_quickly(target)
    seen = list(dict.fromkeys(clock.passes))
    long = CONTEXT - 64
    assert [(w, 128, 1) for w in (1, 4, 8, 2, 16, 6, 12, 24, 32)] == seen[:9]
    assert seen[9:] == [(1, long, 1), (16, long, 1), (1, 128, 8), (4, 128, 8), (16, 128, 8)]
    assert [prices.forward_s(w, 128) for w in (1, 16)] == pytest.approx([0.00103125, 0.0015])
    assert prices.forward_s(4, 128, 8) == pytest.approx(0.002)
    facts = prices.facts
    assert (facts["is_full"], facts["num_points"], facts["num_rounds"]) == (False, 14, 3)
    assert facts["noise"] == 0.0


@pytest.mark.parametrize(
    ("seconds", "num_points", "num_passes", "most"),
    [(5.0, 1, 1, 5.2), (0.45, 1, 2, 1.0), (0.1, 4, 8, 1.0), (0.02, 14, 30, 1.0)],
)
def test_the_budget_ends_the_quick_measurement(
    target: TargetModel,
    monkeypatch: pytest.MonkeyPatch,
    seconds: float,
    num_points: int,
    num_passes: int,
    most: float,
) -> None:
    """A single pass that takes longer than the budget is T(1), and the only one."""
    clock = Clock(target, monkeypatch, rising(seconds))
    prices = measure_quickly(target)
    assert clock.now <= most + 0.05
    assert prices.facts["num_points"] == num_points == len(set(clock.passes))
    assert num_passes == len(clock.passes)
    assert prices.forward_s(1, 128) == pytest.approx(seconds * (1 + 1 / 32))
    line = prices.curve(128, 1, 64)
    assert line[0] < line[15] < line[63], "the default shape stands for the others"
    assert (prices.facts["noise"] == 1.0) == (num_points == 1), "T(1) alone is not kept"


def test_a_disturbed_quick_measurement(
    target: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Other load during four nodes of eight rows: dearer than 16 nodes, whose line would fall."""

    def cost(width: int, _: int, rows: int) -> float:
        return rising(0.002)(width, 0, rows) * (6 if (width, rows) == (4, 8) else 1)

    Clock(target, monkeypatch, cost)
    prices = prices_of(target)
    assert (np.diff(prices.seconds, axis=0) >= 0).all() and prices.seconds.min() > 0
    assert prices.facts["noise"] > latency.QUIET and not cache_file(target).exists()


def test_a_machine_that_only_makes_noise(
    target: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Times over three orders of magnitude, and the clock runs on: no error, within 3 s."""
    for seed in range(20):
        generator = np.random.default_rng(seed)
        clock = Clock(target, monkeypatch, lambda *_, g=generator: 10 ** g.uniform(-3.5, -0.5))
        prices = measure_quickly(target)
        assert clock.now < 3.0
        assert prices.forward_s(300, 5000, 64) >= prices.forward_s(1, 64, 1) > 0


def test_the_expected_time_of_a_measurement() -> None:
    table = PriceList.from_points({(1, 0, 1): 0.01, (2, 0, 1): 0.03})
    points = [(1, 0, 1), (2, 0, 1)]  # blocks of 3 passes: 0.03 s and 0.09 s
    options = LatencyOptions((1, 2), (1,), (1,), (1,), (3, 50), seconds=0.1)
    assert latency.expected_s(table, points, options) == pytest.approx(4 * 0.12)
    longer = LatencyOptions((1, 2), (1,), (1,), (1,), (3, 50), seconds=1.2)
    assert latency.expected_s(table, points, longer) == pytest.approx(11 * 0.12)


def test_lists_are_measured_once(target: TargetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def count(one: TargetModel, *_: object) -> Any:
        calls["measured"] += 1
        return few(one)

    monkeypatch.setattr(latency, "measure_quickly", count)
    first = prices_of(target)
    assert prices_of(target) is first  # in this process
    assert read_price_list(cache_file(target)) == first
    again = TargetModel(build_model(FAMILIES["llama"].config(), "fp32"))
    assert prices_of(again) == first  # in another one
    assert calls["measured"] == 1
    other = TargetModel(build_model(FAMILIES["llama"].config(), "fp32", seed=1))
    assert prices_of(other).model_fingerprint != first.model_fingerprint
    wide = TargetModel(build_model(FAMILIES["llama"].config(), "fp64"))
    assert prices_of(wide).dtype == "float64"
    monkeypatch.setattr(torch, "get_num_threads", lambda: 77)
    assert prices_of(target).facts["num_threads"] == 77
    assert calls["measured"] == 4
    assert len(list(cache_file(target).parent.iterdir())) == 4


@pytest.mark.parametrize("change", ["{", "{}", None])
def test_a_damaged_or_strange_file_is_measured_again(
    target: TargetModel, monkeypatch: pytest.MonkeyPatch, change: str | None
) -> None:
    monkeypatch.setattr(latency, "measure_quickly", few)
    file = cache_file(target)
    file.parent.mkdir(parents=True)
    if change is None:  # the list of another model under this name
        other = TargetModel(build_model(FAMILIES["llama"].config(), "fp32", seed=1))
        latency.write_price_list(file, measure(other, FEW))
    else:
        file.write_text(change)
    assert prices_of(target).model_fingerprint == target.fingerprint()
    assert read_price_list(file).model_fingerprint == target.fingerprint()


def test_a_cache_that_cannot_be_written_costs_one_warning(
    target: TargetModel, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    monkeypatch.setattr(latency, "measure_quickly", few)
    (folder / "prices").write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="DRAFTLESS_CACHE"):
        first = prices_of(target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prices_of(target) is first


def test_what_a_busy_machine_measures_is_not_kept(
    target: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_quick_noise", lambda *_: 0.3)
    first = prices_of(target)
    assert prices_of(target) is first and not cache_file(target).exists()


def test_the_users_own_cache_folder(
    target: TargetModel, monkeypatch: pytest.MonkeyPatch, folder: Path
) -> None:
    assert cache_file(target).is_relative_to(folder)
    monkeypatch.delenv(latency.CACHE_VARIABLE)
    monkeypatch.setenv("XDG_CACHE_HOME", "/cache")
    assert cache_file(target).is_relative_to("/cache/draftless/prices")
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", "/users/me")
    assert cache_file(target).is_relative_to("/users/me/.cache/draftless/prices")

    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    assert cache_file(target).parts[-3:-1] == ("draftless", "prices")


@pytest.mark.parametrize(
    "change", [{"widths": ()}, {"lengths": (0, 5)}, {"rows": (2, 1)}, {"rounds": (5, 3)}]
)
def test_impossible_options(change: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(change))):
        LatencyOptions(**change)
