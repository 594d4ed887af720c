"""Measured price lists: which passes are timed, what of it is kept, and where. No time is asserted."""

from __future__ import annotations

import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import torch

from draftless import ConfigError
from draftless.engine import latency
from draftless.engine.latency import LatencyOptions, cache_file, grid, measure, prices_of
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
    points = grid(target, latency.QUICK)
    assert max(width + length for width, length, _ in points) <= CONTEXT
    assert {length for _, length, _ in points} == {128, CONTEXT - 64}
    target.max_positions = 40  # narrower than the widest tree
    points = grid(target, latency.QUICK)
    assert max(width + length for width, length, _ in points) <= 40
    widths = {width for width, _, rows in points if rows == 1}
    assert widths == {1, 2, 4, 6, 7, 8, 9, 12, 13, 16, 17}


@pytest.mark.parametrize(("seconds", "widths"), [(0.01, latency.QUICK), (0.2, latency.COARSE)])
def test_a_slow_model_is_measured_at_fewer_points(
    target: TargetModel, monkeypatch: pytest.MonkeyPatch, seconds: float, widths: LatencyOptions
) -> None:
    monkeypatch.setattr(
        latency._Passes, "round", lambda self: [seconds * width for width, *_ in self._points]
    )
    assert measure(target).widths == widths.widths


def test_lists_are_measured_once(target: TargetModel, monkeypatch: pytest.MonkeyPatch) -> None:
    calls: Counter[str] = Counter()

    def count(one: TargetModel, *_: object) -> Any:
        calls["measured"] += 1
        return few(one)

    monkeypatch.setattr(latency, "measure", count)
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
    monkeypatch.setattr(latency, "measure", few)
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
    monkeypatch.setattr(latency, "measure", few)
    (folder / "prices").write_text("a file where the folder should be")
    with pytest.warns(RuntimeWarning, match="DRAFTLESS_CACHE"):
        first = prices_of(target)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert prices_of(target) is first


def test_what_a_busy_machine_measures_is_not_kept(
    target: TargetModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(latency, "_noise", lambda _: 0.3)
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
