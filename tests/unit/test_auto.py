"""The drafter `auto`: lossless, as wide as it pays, off where it does not, and open to bad input."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from draftless.drafters.auto import AutoDrafter
from draftless.drafters.ngram import NullDrafter
from draftless.drafters.pace import Pace
from draftless.drafters.planner import Planner
from draftless.drafters.priors import COUPLED_WEIGHTS, GREEDY_WEIGHTS
from draftless.errors import ArtifactError, ConfigError
from draftless.params import SamplingParams
from draftless.prices import PriceList
from draftless.types import StepRecord, Verdict
from support.drafters import STEEP
from support.driving import Job, Result, make_row, run
from support.models import prompt_ids, target

FREE = PriceList.from_points({(1, 0, 1): 1.0, (64, 0, 1): 1.001})
DEAR = PriceList.from_points({(1, 0, 1): 1.0, (2, 0, 1): 5.0, (64, 0, 1): 320.0})
ADAPTIVE = (60,)


def written(drafter: AutoDrafter | NullDrafter, *jobs: Job) -> list[Result]:
    return run(target("llama"), drafter, jobs)


def job(length: int = 9, **options: object) -> Job:
    params = {"max_new_tokens": 40, "seed": 3, **options}
    return Job(prompt_ids(length), SamplingParams(**params))  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0}, {"temperature": 0.7, "top_p": 0.9}])
@pytest.mark.parametrize("prices", [FREE, DEAR, None])
def test_prices_never_change_the_text(prices: PriceList | None, options: dict[str, float]) -> None:
    jobs = [job(9, **options), job(1, **options), job(30, **options)]
    plain = [result.token_ids for result in written(NullDrafter(), *jobs)]
    drafter = AutoDrafter(prices=prices, adaptive_ids=ADAPTIVE)
    assert [result.token_ids for result in written(drafter, *jobs)] == plain


@pytest.fixture(autouse=True)
def told(monkeypatch: pytest.MonkeyPatch) -> list[tuple[Any, ...]]:
    """What the planner is told of forwards; it does not learn how cheap they are for a tiny model."""
    told: list[tuple[Any, ...]] = []
    monkeypatch.setattr(Planner, "learn", lambda _, *given, **more: told.append((*given, more)))
    return told


class FixedWeights(dict[bool, list[float]]):
    """So that a table is all that one request leaves to the next."""

    def __getitem__(self, is_sampled: bool) -> list[float]:
        return list(COUPLED_WEIGHTS if is_sampled else GREEDY_WEIGHTS)


def widths(result: Result) -> list[int]:
    return [step.tree.num_nodes for step in result.steps]


def test_behind_a_nap_that_did_not_look_the_whole_text_is_known() -> None:
    drafter, row = AutoDrafter(prices=FREE), make_row([1, 2, 3])
    row.max_depth = 9
    drafter.reset(row)
    pace = drafter._states[row].pace
    assert pace.lie_down(least=9.0)
    row.token_ids += [7, 8, 9, 5, 7, 8]  # while it sleeps
    while pace.is_asleep:
        pace.sleep(match_len=0)
    (tree,) = drafter.propose([row], None)  # type: ignore[arg-type]
    assert tree.token_ids[:3] == (8, 9, 5)


def test_where_width_costs_nothing_trees_are_wide() -> None:
    (result,) = written(AutoDrafter(prices=FREE, max_width=20), job())
    assert max(widths(result)) == 20
    assert result.request.stats.acceptance_length > 1.2


def test_the_planner_is_told_what_steps_take(told: list[tuple[Any, ...]]) -> None:
    results = written(AutoDrafter(prices=FREE), job(), job(11))
    (length, num_rows, width, more), *_ = told
    assert (length, num_rows) == (12, 2), "with the tokens that were just committed"
    assert width == max(result.steps[0].tree.num_nodes for result in results)
    time_s = results[0].steps[0].time_s
    assert more == {
        "forward_s": time_s["forward"],
        "propose_s": time_s["propose"],
        "is_sampled": False,
    }


def test_where_width_costs_too_much_nothing_is_drafted() -> None:
    (result,) = written(AutoDrafter(prices=DEAR, adaptive_ids=ADAPTIVE), job())
    assert set(widths(result)) == {1}


def test_a_row_alone_does_not_lose_heart_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two wrong drafts at the start say little; only in a batch no match makes up for the price."""
    asked: list[float] = []
    monkeypatch.setattr(Pace, "lie_down", lambda _, least: bool(asked.append(least)))
    written(AutoDrafter(prices=STEEP), job())
    assert not asked
    written(AutoDrafter(prices=STEEP), job(), job(11))
    assert asked and min(asked) > 0.0


def test_rows_of_a_batch_pay_for_each_other() -> None:
    """A place that costs so much for every row pays in a small batch, not in a large one."""
    points = {(width, 0, rows): 1.0 + 0.02 * width * rows for width in (1, 40) for rows in (1, 2)}
    points |= {(width, 0, 8): 1.0 + 0.5 * width * 8 for width in (1, 40)}
    prices = PriceList.from_points(points)
    alone = written(AutoDrafter(prices=prices), job())[0]
    batch = written(AutoDrafter(prices=prices), *[job(9 + i) for i in range(8)])
    early = [max(widths(result)[:5]) for result in batch]
    assert max(widths(alone)[:5]) > max(early)


@pytest.mark.parametrize("temperature", [0.0, 1.0, 3.0])
@pytest.mark.parametrize("slope", [0.02, 0.1, 0.3])
def test_by_its_prices_no_text_is_slower_than_plain(slope: float, temperature: float) -> None:
    """A random model with a large vocabulary of nonsense; at most 4 plain steps of 150 are lost."""
    prices = PriceList.from_points({(1, 0, 1): 1.0, (11, 0, 1): 1.0 + 10 * slope})
    drafter = AutoDrafter(prices=prices, adaptive_ids=ADAPTIVE)
    (result,) = written(drafter, job(temperature=temperature, max_new_tokens=150))
    assert sum(1.0 + slope * (width - 1) for width in widths(result)) < 154


def test_a_step_asleep_learns_nothing_and_reads_no_logits() -> None:
    drafter = AutoDrafter(prices=DEAR)
    (result,) = written(drafter, job(max_new_tokens=5))
    row = result.request.row
    drafter.reset(row)
    state = drafter._states[row]
    while not state.pace.is_asleep:
        state.pace.count(1, 2.0, 1.0)
    (tree,) = drafter.propose([row], None)  # type: ignore[arg-type]
    assert tree.num_nodes == 1
    step = result.steps[0]
    row.token_ids.append(5)
    drafter.observe([type(step)(row, tree, step.verdict, None)])


def test_sources_and_scores_are_told() -> None:
    (result,) = written(AutoDrafter(prices=FREE, adaptive_ids=ADAPTIVE), job())
    tree = max((step.tree for step in result.steps), key=lambda one: one.num_nodes)
    assert set(tree.sources) == {"", "fused", "probe"}
    assert len(tree.scores) == tree.num_nodes
    assert all(
        tree.scores[node] <= tree.scores[max(parent, 0)] for node, parent in enumerate(tree.parents)
    )


def test_a_little_of_what_a_request_learnt_stays() -> None:
    drafter = AutoDrafter(prices=FREE)
    before = {is_sampled: list(weights) for is_sampled, weights in drafter._learnt.items()}
    written(drafter, job())
    assert drafter._learnt[False] != before[False]
    assert drafter._learnt[True] == before[True], "greedy and sampled have weights of their own"


def test_a_request_of_one_step_counts_by_what_it_saved() -> None:
    """Its only step is its last one, and where a single token is wanted nothing could be drafted."""
    drafter = AutoDrafter(prices=FREE)
    drafter.reset(row := make_row([1, 2, 3]))
    row.max_depth = 9
    for max_depth, num_tokens, trust in [(0, 1, 0.5), (9, 4, 0.75), (9, 1, 0.375)]:
        row = make_row([1, 2, 3, 1, 2, 3, 1, 2])
        row.max_depth = max_depth
        drafter.reset(row)
        (tree,) = drafter.propose([row], None)  # type: ignore[arg-type]
        assert (tree.num_nodes > 1) == bool(max_depth)
        verdict = Verdict((0,), (5,) * num_tokens, "bonus", "length")
        drafter.observe([StepRecord(row, tree, verdict, None)])
        assert drafter._trust[False] == trust


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_what_the_target_said_serves_later_requests(temperature: float) -> None:
    """The same request again takes fewer steps, unless every request has a table of its own."""
    num_steps: dict[bool, list[int]] = {}
    written_ids = set()
    for keep_table in (False, True):
        drafter = AutoDrafter(prices=FREE, max_width=6, keep_table=keep_table)
        drafter._learnt = FixedWeights()
        results = [written(drafter, job(temperature=temperature))[0] for _ in range(2)]
        num_steps[keep_table] = [len(result.steps) for result in results]
        written_ids |= {tuple(result.token_ids) for result in results}
    assert num_steps[False][0] == num_steps[False][1] == num_steps[True][0]
    assert num_steps[True][1] < num_steps[True][0]
    assert len(written_ids) == 1, "a table changes drafts and no text"


def test_prices_come_as_a_list_a_dict_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "prices.json"
    file.write_text(json.dumps(DEAR.to_dict()))
    for prices in (DEAR, DEAR.to_dict(), file, str(file)):
        (result,) = written(AutoDrafter(prices=prices), job(max_new_tokens=10))
        assert set(widths(result)) == {1}


def test_what_cannot_be_honoured_is_refused() -> None:
    with pytest.raises(ConfigError, match="max_width=1 of auto is below 2"):
        AutoDrafter(max_width=1)
    with pytest.raises(ConfigError, match=r"adaptive_ids=\[61\] of auto .* 0 to 60"):
        AutoDrafter(adaptive_ids=[61], vocab_size=61)
    with pytest.raises(ArtifactError, match="nowhere"):
        AutoDrafter(prices="nowhere.json")
