"""The search: what it proposes, that it survives kills, and what it says about chance."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from transformers import LlamaConfig

from draftless import ArtifactError, ConfigError, Draftless
from draftless.calibration import skip_search
from draftless.calibration.costs import CostTable
from draftless.calibration.margins import Comparison, compare, random_sets
from draftless.calibration.proposals import Proposer, eligible_sublayers, warm_starts
from draftless.calibration.rounds import Evaluation
from draftless.calibration.skip_search import SearchOptions, SkipResult, search_skip_setting
from draftless.calibration.texts import OwnText, Prompt, TextOptions, make_texts
from draftless.drafters.layer_skip import LayerSkipDrafter
from draftless.skip_set import SkipSet, SkipSetting
from support.models import build_model, prompt_ids

NUM_LAYERS = 6
COSTS = CostTable(NUM_LAYERS, 10, tuple(20.0 + w for w in range(13)), 2.0, 2.0, 1.0, 0.0)
OPTIONS = SearchOptions(trials=13, depth=4, num_random=4, windows_per_text=2)


@cache
def model(seed: int = 0) -> Draftless:
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=NUM_LAYERS,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        initializer_range=0.15, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return Draftless.from_pretrained(build_model(config, "fp32", seed), drafter="none")


@cache
def texts() -> tuple[OwnText, ...]:
    prompts = [Prompt("a", prompt_ids(5 + n, n)) for n in range(4)]
    return make_texts(model(), prompts, TextOptions(num_tokens=10)).texts


class Planted:
    """An objective with one best set: each sub-layer that differs from it costs value."""

    best = SkipSet((1, 2, 3), (2, 4))

    def __init__(self, *_: Any) -> None:
        pass

    def evaluate(self, skip_set: SkipSet) -> Evaluation:
        wrong = sum(
            len(set(getattr(skip_set, kind)) ^ set(getattr(self.best, kind)))
            for kind in ("attention", "mlp")
        )
        return Evaluation(SkipSetting(skip_set, 0.5, 3), 1.0 - 0.05 * wrong, 2.0, 1.5, 0.1)

    def totals(self, setting: SkipSetting) -> tuple[np.ndarray, np.ndarray]:
        value = self.evaluate(setting.skip_set).value
        return np.array([9.0, 10.0, 11.0]) * value, np.full(3, 10.0)


@pytest.fixture(autouse=True)
def fixed_costs(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skip_search, "measure_costs", lambda *_: COSTS)


@pytest.fixture
def planted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(skip_search, "RoundsObjective", Planted)


def search(folder: Path, options: SearchOptions = OPTIONS, **more: Any) -> SkipResult:
    return search_skip_setting(model(), texts(), options, folder, **more)


def tried(result: SkipResult) -> list[tuple[SkipSet, float, str]]:
    return [(t.skip_set, t.evaluation.value, t.origin) for t in result.trials]


@pytest.mark.usefixtures("planted")
def test_the_planted_set_is_found_and_beats_chance(tmp_path: Path) -> None:
    result = search(tmp_path, replace(OPTIONS, trials=18))
    assert result.setting.skip_set == Planted.best
    values = [trial.evaluation.value for trial in result.trials if trial.origin == "warm"]
    assert max(values) < 1.0  # no warm start was the answer
    assert result.comparison.over_mean.is_clear
    assert result.comparison.over_best.low > 0
    eligible = eligible_sublayers(NUM_LAYERS, protect_ends=True)
    others = [Planted().evaluate(one).value for one in random_sets(eligible, 5, 4, 0)]
    assert result.comparison.random_values == pytest.approx(tuple(others))


def test_a_search_on_a_model(tmp_path: Path) -> None:
    """The real objective, from texts to a file that the drafter reads."""
    told: list[tuple[int, float]] = []
    result = search(tmp_path, on_trial=lambda done, speed_up: told.append((done, speed_up)))
    assert [done for done, _ in told] == list(range(1, len(result.trials) + 1))
    assert told[-1][1] == result.speed_up == max(speed_up for _, speed_up in told)
    assert result.best.value == max(trial.evaluation.value for trial in result.trials)
    assert result.speed_up == pytest.approx(result.best.value * 20.0)
    assert result.share == pytest.approx(COSTS.share(result.setting.skip_set))
    drafter = LayerSkipDrafter(tmp_path / "skip.json", num_layers=NUM_LAYERS)
    assert drafter.setting == result.setting
    data = json.loads((tmp_path / "skip.json").read_text())
    assert data["model_fingerprint"] == model().target.fingerprint()
    assert len(data["random_sets"]["random_values"]) == 4
    best_so_far = data["tried"]["best_so_far"]
    assert len(best_so_far) == len(result.trials) and best_so_far == sorted(best_so_far)
    assert data["options"]["num_texts"] == 4 and data["provenance"]["cpu"]


@pytest.mark.usefixtures("planted")
def test_the_same_search_finds_the_same(tmp_path: Path) -> None:
    first, again = search(tmp_path / "a"), search(tmp_path / "b")
    assert tried(first) == tried(again)
    assert first.comparison == again.comparison
    assert {origin for _, _, origin in tried(first)} > {"warm"}


@pytest.mark.usefixtures("planted")
def test_a_kill_at_any_byte_loses_the_running_trial_at_most(tmp_path: Path) -> None:
    options = replace(OPTIONS, trials=12)
    whole = search(tmp_path / "whole", options)
    study = (tmp_path / "whole" / "study.jsonl").read_bytes()
    ends = [place + 1 for place, byte in enumerate(study) if byte == ord("\n")]
    for end in (0, 5, ends[0], ends[0] + 3, ends[-2] + 7, len(study) - 1):
        folder = tmp_path / str(end)
        folder.mkdir()
        (folder / "study.jsonl").write_bytes(study[:end])
        done: list[int] = []
        result = search(
            folder, options, is_resumed=True, on_trial=lambda n, _, done=done: done.append(n)
        )
        assert tried(result) == tried(whole)
        kept = sum(line_end <= end for line_end in ends[1:])
        assert len(done) == options.trials - kept
        lines = (folder / "study.jsonl").read_text().splitlines()
        assert len(lines) == 1 + options.trials


@pytest.mark.usefixtures("planted")
def test_a_search_that_stops_in_the_middle_goes_on(tmp_path: Path) -> None:
    def stop(done: int, _: float) -> None:
        if done == 11:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        search(tmp_path / "cut", on_trial=stop)
    assert tried(search(tmp_path / "cut", is_resumed=True)) == tried(search(tmp_path / "whole"))


@pytest.mark.usefixtures("planted")
def test_budgets(tmp_path: Path) -> None:
    first = search(tmp_path, replace(OPTIONS, trials=3))
    assert len(first.trials) == 3
    more = search(tmp_path, replace(OPTIONS, trials=5), is_resumed=True)
    assert tried(more)[:3] == tried(first) and len(more.trials) == 5
    short = search(tmp_path, replace(OPTIONS, minutes=1e-9), is_resumed=True)
    assert len(short.trials) == 5  # the minutes of earlier sessions count


@pytest.mark.usefixtures("planted")
def test_a_study_is_never_overwritten_or_mixed(tmp_path: Path) -> None:
    search(tmp_path)
    with pytest.raises(ConfigError, match="--resume"):
        search(tmp_path)
    with pytest.raises(ConfigError, match="seed=0, not 7"):
        search(tmp_path, replace(OPTIONS, seed=7), is_resumed=True)
    with pytest.raises(ConfigError, match="texts="):
        search_skip_setting(model(), texts()[:3], OPTIONS, tmp_path, is_resumed=True)
    with pytest.raises(ConfigError, match="model_fingerprint="):
        search_skip_setting(model(1), texts(), OPTIONS, tmp_path, is_resumed=True)


def _drop_value(lines: list[str]) -> None:
    lines[2] = lines[2].replace('"value"', '"worth"')


def _tear(lines: list[str]) -> None:
    lines[2] = lines[2][:20]


def _lose_head(lines: list[str]) -> None:
    del lines[0]


def _damage_costs(lines: list[str]) -> None:
    lines[0] = lines[0].replace('"base_s": 2.0', '"base_s": "x"')


@pytest.mark.usefixtures("planted")
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (_drop_value, "study.jsonl, line 3"),
        (_tear, "study.jsonl, line 3"),
        (_lose_head, "study.jsonl, line 1"),
        (_damage_costs, "cost table"),
    ],
)
def test_a_damaged_study_is_refused_by_name(
    tmp_path: Path, damage: Callable[[list[str]], None], message: str
) -> None:
    search(tmp_path)
    file = tmp_path / "study.jsonl"
    lines = file.read_text().splitlines()
    damage(lines)
    damaged = "\n".join(lines) + "\n"
    file.write_text(damaged)
    with pytest.raises(ArtifactError, match=message):
        search(tmp_path, is_resumed=True)
    assert file.read_text() == damaged


def test_warm_starts_reach_large_shares_and_keep_the_ends() -> None:
    for num_layers in (3, 12, 32):
        eligible = eligible_sublayers(num_layers, protect_ends=True)
        assert {index for _, index in eligible} == set(range(1, num_layers - 1))
        starts = warm_starts(eligible)
        assert len(set(starts)) == len(starts)
        shares = {start.num_skipped / len(eligible) for start in starts}
        assert max(shares) == 1.0
        assert num_layers == 3 or len({round(share, 1) for share in shares}) >= 6
        for start in starts:
            assert {*start.attention, *start.mlp} <= set(range(1, num_layers - 1))
    free = eligible_sublayers(2, protect_ends=False)
    assert {index for _, index in free} == {0, 1}
    with pytest.raises(ConfigError, match="no-protect-ends"):
        eligible_sublayers(2, protect_ends=True)


def test_nothing_is_tried_twice_until_all_was_tried() -> None:
    proposer = Proposer(eligible_sublayers(2, protect_ends=False), seed=0)
    tried: list[SkipSet] = []
    while not proposer.is_exhausted:
        skip_set, _ = proposer.propose()
        tried.append(skip_set)
        proposer.tell(skip_set, float(skip_set.num_skipped))
    assert len(tried) == len(set(tried)) == 15  # of 4 sub-layers, the empty set is none


def test_random_sets() -> None:
    eligible = eligible_sublayers(8, protect_ends=True)
    sets = random_sets(eligible, 5, 20, seed=0)
    assert len(set(sets)) == 20
    assert all(one.num_skipped == 5 for one in sets)
    assert {i for one in sets for i in (*one.attention, *one.mlp)} == set(range(1, 7))
    assert random_sets(eligible, 5, 20, seed=0) == sets != random_sets(eligible, 5, 20, seed=1)
    assert len(random_sets(eligible, 12, 20, seed=0)) == 1  # there is but one


def totals(factors: list[float], spread: float, num_texts: int = 30) -> tuple[Any, Any]:
    """Tokens and seconds of sets of given worth on texts of unequal worth and length."""
    generator = np.random.default_rng(0)
    length = generator.uniform(5, 15, num_texts)
    noise = np.exp(spread * generator.standard_normal((len(factors), num_texts)))
    return np.array(factors)[:, None] * length * noise, np.tile(length, (len(factors), 1))


def compared(factors: list[float], spread: float, num_texts: int = 30) -> Comparison:
    return compare(*totals(factors, spread, num_texts), seed=0)


def test_a_margin_is_clear_where_it_is_real() -> None:
    found = compared([1.2, 1.0, 1.01, 0.99, 1.0], spread=0.05)
    assert found.over_mean.margin == pytest.approx(0.2, abs=0.03)
    assert found.over_mean.low < found.over_mean.margin < found.over_mean.high
    assert found.over_mean.is_clear
    chance = compared([1.0] * 12, spread=0.3)
    assert not chance.over_mean.is_clear
    assert chance.over_best.margin < chance.over_mean.margin


def test_the_interval_knows_that_texts_and_random_sets_were_drawn() -> None:
    few, many = (compared([1.1] + [1.0] * 9, 0.2, n).over_mean for n in (6, 600))
    assert few.high - few.low > 3 * (many.high - many.low)
    # No difference between texts: what remains is which random sets were drawn.
    equal = compared([1.0, 0.7, 1.3, 0.9, 1.1], spread=0.0)
    assert equal.over_mean.low < -0.05 < 0.05 < equal.over_mean.high
    assert equal.over_best.high - equal.over_best.low == pytest.approx(0)


@pytest.mark.parametrize(
    "wrong", [{"trials": 0}, {"minutes": 0.0}, {"objective": "speed"}, {"num_random": 0}]
)
def test_options_out_of_bounds(wrong: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=next(iter(wrong))):
        SearchOptions(**wrong)
