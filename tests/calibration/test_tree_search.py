"""Templates from statistics: chances, the best tree of every size, its price, and what is compared."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import combinations
from typing import Any

import numpy as np
import pytest

from draftless import ConfigError, Draftless, InputError
from draftless.calibration import rank_trees, tree_search
from draftless.calibration.rank_trees import (
    KINDS,
    Kind,
    Place,
    Template,
    hit_rates,
    likeliest_paths,
    promising,
    sized_templates,
)
from draftless.calibration.texts import OwnText
from draftless.calibration.tree_search import TreeOptions, Watched, search_template
from draftless.manifest import Manifest
from draftless.prices import PriceList
from draftless.rank_paths import RankPath, read_template
from support.bench import bench_model

SMALL = Kind(depth=3, top_k=2, has_spine=False)
FLAT = PriceList.from_points({(1, 0, 1): 1.0, (128, 0, 1): 1.0 + 1e-6})


def line(slope: float) -> PriceList:
    """A pass costs 1, and `slope` for every node beside the root."""
    return PriceList.from_points({(1, 0, 1): 1.0, (128, 0, 1): 1.0 + 127 * slope})


def test_chances_are_counted_where_all_above_was_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(rank_trees, "_PRIOR", 0.0)
    places = [
        Place((0, 1, 0), 3),
        Place((0, 1), 3),  # a miss at depth 3
        Place((0,), 3),
        Place((1,), 1),  # the text ends: nothing is known of depth 2
        Place((), 3),
    ]
    rates = hit_rates(places, SMALL)
    assert rates.tolist() == [[3 / 5, 1 / 5], [0.0, 2 / 3], [1 / 2, 0.0]]


def test_few_observations_lean_on_all_depths() -> None:
    places = [Place((0, 0, 0), 3)] * 100 + [Place((), 1)] * 100
    rates = hit_rates(places, SMALL)
    assert rates[0, 0] == pytest.approx((100 + 20 * 0.75) / 220)  # 300 of 400 in all
    assert 0 == hit_rates(places, Kind(5, 2, False))[4, 1] < hit_rates(places, SMALL)[2, 0] < 1
    deep = hit_rates(places, Kind(5, 2, False))
    assert deep[4, 0] == pytest.approx(0.75)  # never reached: the chance of all depths
    assert not hit_rates([Place((), 0)], SMALL).any()


def value(paths: Sequence[RankPath], rates: np.ndarray) -> float:
    return float(sum(np.prod([rates[d, r] for d, r in enumerate(path)]) for path in paths))


def test_the_likeliest_paths_are_the_best_tree_of_every_size() -> None:
    """Against all trees of up to 6 of the 14 paths of two ranks and three depths."""
    rates = np.random.default_rng(3).uniform(0.05, 0.6, (3, 2))
    every: list[RankPath] = [(a,) for a in range(2)]
    every += [(*path, b) for path in every for b in range(2)]
    every += [(*path, b) for path in every if len(path) == 2 for b in range(2)]
    assert len(every) == 14
    for size in range(1, 7):
        found = [path for path, _ in likeliest_paths(rates, size)]
        assert len(found) == size and read_template(found) == tuple(found)
        trees = [
            tree
            for tree in combinations(every, size)
            if all(len(path) == 1 or path[:-1] in tree for path in tree)
        ]
        assert value(found, rates) == pytest.approx(max(value(tree, rates) for tree in trees))
    chances = [chance for _, chance in likeliest_paths(rates, 14)]
    assert chances == sorted(chances, reverse=True)
    assert sum(chances) == pytest.approx(value(every, rates))


def test_ranks_that_never_hit_get_no_node() -> None:
    rates = np.array([[0.5, 0.0], [0.0, 0.0], [0.3, 0.3]])
    assert likeliest_paths(rates, 9) == [((0,), 0.5)]


def best_template(rates: np.ndarray, kind: Kind, prices: PriceList, length: int) -> Template:
    return promising(sized_templates(rates, kind, prices, length))[0]


def test_the_price_list_picks_the_size() -> None:
    rates = np.array([[0.5, 0.2], [0.5, 0.2], [0.5, 0.2]])
    sizes = [len(best_template(rates, SMALL, line(s), 0).paths) for s in (0.5, 0.1, 0.02, 0.0)]
    assert (
        sizes == sorted(sizes) and sizes[0] == 1 and 3 < sizes[1] + 2 < sizes[2] <= sizes[3] == 14
    )
    found = best_template(rates, SMALL, line(0.1), 0)
    assert found.tokens_per_step == pytest.approx(1 + value(found.paths, rates))
    assert found.forward_s == pytest.approx(1 + 0.1 * len(found.paths))
    for size in range(1, 15):
        paths = [path for path, _ in likeliest_paths(rates, size)]
        assert (1 + value(paths, rates)) / (1 + 0.1 * size) <= found.tokens_per_second + 1e-12


def test_a_staircase_is_climbed_to_its_edge() -> None:
    steps = PriceList.from_points({(1, 0, 1): 1.0, (8, 0, 1): 1.0, (9, 0, 1): 5.0})
    rates = np.full((3, 2), 0.3)
    assert len(best_template(rates, SMALL, steps, 0).paths) == 7  # and the root


def test_a_spine_stays_whatever_it_is_worth() -> None:
    kind = Kind(depth=3, top_k=2, has_spine=True)
    rates = np.array([[0.1, 0.6], [0.1, 0.5], [0.1, 0.1]])
    found = best_template(rates, kind, line(0.2), 0)
    assert found.paths[:3] == ((0,), (0, 0), (0, 0, 0))
    assert found.paths[3:5] == ((1,), (1, 1))
    assert len(best_template(np.full((3, 2), 0.05), kind, line(9.0), 0).paths) == 3
    assert len(set(found.paths)) == len(found.paths)


def test_sizes_that_are_nearly_as_good_are_tried_out() -> None:
    rates = np.array([[0.5, 0.2], [0.5, 0.2], [0.5, 0.2]])
    every = sized_templates(rates, SMALL, line(0.02), 0)
    assert [len(one.paths) for one in every] == list(range(1, 15))
    speeds = [one.tokens_per_second for one in every]
    found = promising(every)
    assert found[0].tokens_per_second == max(speeds)
    widths = {len(one.paths) + 1 for one in found[1:]}
    assert widths == {
        w
        for w in (4, 6, 8, 12)
        if speeds[w - 2] >= 0.85 * max(speeds) and w - 1 != len(found[0].paths)
    }
    assert widths  # the curve is flat enough for this to say something


def test_a_size_that_drafts_better_wins(
    monkeypatch: pytest.MonkeyPatch, texts: list[OwnText]
) -> None:
    """By the price list one node is best; where drafting shows otherwise, that counts."""
    modelled = search_template(bench_model(), "recycling", texts, line(0.1), TreeOptions())
    totals = tree_search._totals

    def planted(model: Draftless, *given: Any) -> list[tuple[float, float, float]]:
        found = totals(model, *given)
        is_wide = model.drafter._budget == 12  # type: ignore[attr-defined]
        return [(tokens, seconds / (9 if is_wide else 1), n) for tokens, seconds, n in found]

    monkeypatch.setattr(tree_search, "_totals", planted)
    monkeypatch.setattr(rank_trees, "_NEAR", 0.0)
    result = search_template(bench_model(), "recycling", texts, line(0.1), TreeOptions())
    assert len(result.template.paths) == 11 != len(modelled.template.paths)


TEXTS = [
    OwnText(domain, tuple(range(seed, seed + 9)), (), False)
    for domain in ("cats", "dogs")
    for seed in (10, 30, 50, 70)
]


@pytest.fixture(scope="module")
def texts() -> list[OwnText]:
    model = bench_model()
    return [
        OwnText(
            text.domain,
            text.prompt_ids,
            tuple(model.generate(list(text.prompt_ids), max_new_tokens=12).token_ids),
            False,
        )
        for text in TEXTS
    ]


class Echo:
    """A drafter that drafts nothing and calls every future token rank 1."""

    def __init__(self) -> None:
        self.asked: list[list[int]] = []

    def future_ranks(self, _: Any, token_ids: Sequence[int]) -> RankPath:
        self.asked.append(list(token_ids))
        return (1,) * len(token_ids)

    def __getattr__(self, name: str) -> Any:
        return getattr(bench_model().drafter, name)


def test_a_drafter_is_asked_before_every_step(texts: list[OwnText]) -> None:
    text, echo = texts[0], Echo()
    own = list(text.own_ids)
    watched = Watched(echo, 3)
    watched.expect(own)
    bench_model().with_drafter(watched).generate(list(text.prompt_ids), max_new_tokens=12)
    assert echo.asked == [own[begin : begin + 3] for begin in range(len(own))]
    assert watched.places[-1] == Place((1,), 1)  # the text ends

    departed = [*own[:4], (own[4] + 1) % 290, *own[5:]]
    watched = Watched(Echo(), 3)
    watched.expect(departed)
    bench_model().with_drafter(watched).generate(list(text.prompt_ids), max_new_tokens=12)
    assert len(watched.places) == 5  # from there on it is another text


@pytest.mark.parametrize("drafter", ["recycling", "tr-jacobi"])
def test_a_search_from_texts_to_options(drafter: str, texts: list[OwnText]) -> None:
    model, told = bench_model(), []
    options = TreeOptions((0.0, 1.0))
    result = search_template(model, drafter, texts, line(0.05), options, lambda: told.append(1))
    assert len(told) >= 4 * 4 * 2 and not len(told) % 8  # passes over half of the texts, twice
    assert result.comparison.num_texts == 8 and result.num_places > 40
    assert result.rates.shape == (
        KINDS[drafter].depth,
        KINDS[drafter].top_k,
    )
    drafted = model.with_drafter(drafter, result.options)
    outputs = [
        one.generate(list(texts[0].prompt_ids), max_new_tokens=12) for one in (drafted, model)
    ]
    assert outputs[0].token_ids == outputs[1].token_ids
    data = result.to_dict()
    assert data["template"] == [list(path) for path in result.template.paths]
    assert data["budget"] == len(data["template"]) + 1
    assert data["held_out"]["is_better"] == (data["held_out"]["margin"]["low"] > 0)
    assert data["options"]["temperatures"] == [0.0, 1.0] and data["provenance"]["torch"]

    again = search_template(model, drafter, texts, line(0.05), options).to_dict()
    assert {**again, "provenance": 0} == {**data, "provenance": 0}


def test_sampled_texts_are_written_anew(texts: list[OwnText]) -> None:
    """A greedy text would be left at its first sampled token, and few places would be seen."""
    result = search_template(bench_model(), "recycling", texts, FLAT, TreeOptions((1.0,)))
    assert result.num_places > 20


def test_what_is_compared_is_real_drafting_at_its_prices(texts: list[OwnText]) -> None:
    result = search_template(bench_model(), "recycling", texts, line(1.0), TreeOptions())
    held = result.comparison
    assert len(result.template.paths) == 1
    assert held.value > held.random_values[0]  # two nodes against up to sixteen at 1.0 each
    assert result.tokens_per_step[0] <= result.tokens_per_step[1]
    assert held.value <= result.tokens_per_step[0] / 1.0


def test_what_cannot_be_learned(texts: list[OwnText]) -> None:
    with pytest.raises(ConfigError, match="'sdsat' has no template"):
        search_template(bench_model(), "sdsat", texts, FLAT, TreeOptions())
    with pytest.raises(InputError, match="at least two texts"):
        search_template(bench_model(), "recycling", texts[:1], FLAT, TreeOptions())
    for temperatures in ((), (-1.0,)):
        with pytest.raises(ConfigError, match="temperatures"):
            TreeOptions(temperatures)


def test_templates_come_from_the_checkpoint(texts: list[OwnText]) -> None:
    model = bench_model()
    manifest = Manifest({"recycling": {"template": [[0], [1]], "budget": 3}})
    loaded = Draftless(model.target, model.tokenizer, model.drafter, manifest)
    drafted = loaded.with_drafter("recycling").stream(list(texts[0].prompt_ids), max_new_tokens=12)
    assert max(chunk.num_nodes for chunk in drafted) <= 3
    with pytest.raises(ConfigError, match="rank path"):
        Draftless(
            model.target, None, model.drafter, Manifest({"recycling": {"template": [[0, 0]]}})
        ).with_drafter("recycling")
