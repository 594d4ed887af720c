"""Layer skipping: when drafting ends, who shares a pass, siblings, and the moving threshold.

Bugs of the reference implementations, numbered as in `research/seed-methods.md` 3.5 and 4.3:

3.5-1. drafted keys and values are computed again: inherent, and said in the module's docstring
3.5-2. the first new token is lost, 3.5-4 / 4.3-4. tokens after an EOS: the equivalence matrix
3.5-3 / 4.3-5. division by zero when nothing was drafted: `test_nothing_drafted` here
3.5-5 / 4.3-1. indices of another depth: `test_a_skip_set_of_a_deeper_model_is_refused` here
3.5-6 / 4.3-10. skip sets are globals: `test_skip_view.py`, and rows with sets of their own here
3.5-7, -8, -11. biased sampling: the proofs of law in `tests/statistical`
3.5-9. a copy of the cache and a host transfer a token, batch of one: `test_rows_share_passes` here
4.3-3. greedy only: the matrix
4.3-7. hidden states of all layers are kept: `test_target.py` (the prompt vector)
SWIFT's bonus token from unprocessed logits: mutant `no_warping_of_the_bonus`
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from draftless.drafters.layer_skip import LayerSkipDrafter, read_skip_file
from draftless.drafters.registry import make_drafter
from draftless.errors import ArtifactError, ConfigError
from draftless.params import SamplingParams
from draftless.skip_set import SkipSet, SkipSetting
from draftless.types import DraftTree, Row, StepRecord, Verdict
from support.drafters import EVERYTHING, HALF, registered
from support.driving import Job, make_row, run
from support.models import VOCAB_SIZE, prompt_ids, target

FAMILIES = ["llama", "mistral", "gemma2", "gpt_neox"]


class PlannedPasses:
    """Draft passes that answer by plan.

    Args:
        plan: per row and place a token and its chance (above a half); the id after it has the rest.
    """

    def __init__(self, plan: Mapping[int, Sequence[tuple[int, float]]]) -> None:
        self._plan = plan
        self.fed: list[dict[int, list[int]]] = []
        self.sets: list[SkipSet] = []

    def feed(
        self, token_ids: Mapping[int, Sequence[int]], skip_set: SkipSet
    ) -> dict[int, torch.Tensor]:
        logits = {}
        for row in token_ids:
            place = sum(row in before for before in self.fed)
            token_id, chance = self._plan[row][place]
            chances = torch.full((1, VOCAB_SIZE), 1e-9)
            chances[0, token_id], chances[0, token_id + 1] = chance, 1 - chance
            logits[row] = chances.log()
        self.fed.append({row: list(ids) for row, ids in token_ids.items()})
        self.sets.append(skip_set)
        return logits


def drafter(**options: object) -> LayerSkipDrafter:
    return LayerSkipDrafter(**{"skip_set": HALF, "siblings": 0, **options})  # type: ignore[arg-type]


def propose(one: LayerSkipDrafter, passes: PlannedPasses, *rows: Row) -> list[DraftTree]:
    for row in rows:
        one.reset(row)
    return one.propose(rows, passes)


def test_drafting_ends_behind_an_unsure_token() -> None:
    """Which is still drafted (Self-SD, section 3.4); each pass is fed what the last one drafted."""
    passes = PlannedPasses({0: [(5, 0.9), (8, 0.7), (11, 0.65), (3, 0.99)]})
    (tree,) = propose(drafter(threshold=0.68), passes, make_row([1, 2]))
    assert tree.token_ids == (2, 5, 8, 11)
    assert tree.parents == (-1, 0, 1, 2)
    assert tree.sources == ("", "skip", "skip", "skip")
    assert passes.fed == [{0: [2]}, {0: [5]}, {0: [8]}]
    assert passes.sets == [HALF] * 3


@pytest.mark.parametrize(("depth", "max_depth", "length"), [(3, 50, 3), (12, 2, 2), (12, 0, 0)])
def test_a_draft_is_no_longer_than_wanted_and_usable(
    depth: int, max_depth: int, length: int
) -> None:
    passes = PlannedPasses({0: [(5, 0.99)] * 12})
    row = make_row([1, 2], max_depth=max_depth)
    (tree,) = propose(drafter(depth=depth), passes, row)
    assert tree.num_nodes == 1 + length
    assert len(passes.fed) == length


def test_siblings_go_where_the_path_is_likely() -> None:
    """0.4 beside the first place, then 0.6 * 0.45 beside the second; 0.6 * 0.55 * 0.48 is third."""
    passes = PlannedPasses({0: [(5, 0.6), (8, 0.55), (11, 0.52)]})
    (tree,) = propose(drafter(threshold=0.0, depth=3, siblings=2), passes, make_row([1, 2]))
    assert tree.token_ids == (2, 5, 8, 11, 6, 9)
    assert tree.parents == (-1, 0, 1, 2, 0, 1)


def test_rows_share_passes() -> None:
    """One pass for all rows with one set; a row whose draft has ended is not fed any more."""

    class Chosen(LayerSkipDrafter):
        def setting_of(self, row: Row) -> tuple[SkipSetting, str]:
            sets = {1: HALF, 2: EVERYTHING, 3: HALF}
            return SkipSetting(sets[row.token_ids[0]], 0.7, 3), "skip"

    passes = PlannedPasses(
        {0: [(5, 0.9), (6, 0.6)], 1: [(7, 0.6)], 2: [(9, 0.9), (8, 0.9), (9, 0.9)]}
    )
    rows = [make_row([1]), make_row([2]), make_row([3])]
    trees = propose(Chosen(HALF), passes, *rows)
    assert [tree.token_ids for tree in trees] == [(1, 5, 6), (2, 7), (3, 9, 8, 9)]
    assert passes.fed == [{0: [1], 2: [3]}, {0: [5], 2: [9]}, {2: [8]}, {1: [2]}]
    assert passes.sets == [HALF] * 3 + [EVERYTHING]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("family", FAMILIES)
def test_an_empty_skip_set_accepts_everything(family: str, temperature: float) -> None:
    """So the passes see the cache, their own drafts, the right positions and the right noise."""
    whole = registered("layer-skip", skip_set=SkipSet(), threshold=0.0, depth=4, siblings=0)
    jobs = [
        Job(
            prompt_ids(n, seed=n), SamplingParams(max_new_tokens=m, temperature=temperature, seed=n)
        )
        for n, m in ((5, 20), (1, 25), (30, 16), (9, 1))
    ]
    for result in run(target(family), whole, jobs):
        stats = result.request.stats
        assert stats.num_accepted_tokens == stats.num_draft_tokens
        assert stats.num_draft_passes == stats.num_draft_tokens
        assert stats.num_steps == -(-len(result.token_ids) // 5)
        if stats.num_draft_passes:
            assert stats.time_s["draft"] > 0.0


def test_a_sampled_draft_uses_the_targets_noise() -> None:
    jobs = [
        Job(prompt_ids(9, seed=seed), SamplingParams(max_new_tokens=30, temperature=1.5, seed=seed))
        for seed in range(4)
    ]

    def accepted(*, couple: bool) -> float:
        one = registered(
            "layer-skip", skip_set=SkipSet(), threshold=0.0, depth=4, siblings=0, couple=couple
        )
        stats = [result.request.stats for result in run(target("llama"), one, jobs)]
        return sum(s.num_accepted_tokens for s in stats) / sum(s.num_draft_tokens for s in stats)

    assert accepted(couple=True) == 1.0
    assert accepted(couple=False) < 0.9


def record_of(row: Row, drafted: int, accepted: int) -> StepRecord:
    """A chain, of which some were accepted, with a sibling beside its first token."""
    parents = (*range(-1, drafted), *[0] * bool(drafted))
    tree = DraftTree(tuple(range(1, len(parents) + 1)), parents)
    committed = (*range(2, accepted + 2), 60)
    return StepRecord(row, tree, Verdict(tuple(range(accepted + 1)), committed, "recovered"))


@pytest.mark.parametrize(
    ("drafted", "accepted", "direction"), [(5, 0, 1), (5, 5, -1), (12, 12, 0), (0, 0, 0)]
)
def test_the_threshold_moves_as_in_the_paper(drafted: int, accepted: int, direction: int) -> None:
    """Up while less than 90 % is accepted, down otherwise, and not at all after a full draft."""
    one, row, other = drafter(adaptive=True, threshold=0.6), make_row([1]), make_row([2])
    one.reset(row)
    one.reset(other)
    for _ in range(4):  # the smoothed acceptance starts at 0
        one.observe([record_of(row, 5, 5)])
    before = one._controllers[row].threshold
    one.observe([record_of(row, drafted, accepted)])
    after = one._controllers[row].threshold
    assert after - before == pytest.approx(0.001 * direction, abs=1e-12)
    assert one._controllers[other].threshold == 0.6, "each request has its own"


def test_an_accepted_sibling_is_a_miss_of_the_chain() -> None:
    one, row = drafter(adaptive=True, threshold=0.6), make_row([1])
    one.reset(row)
    for _ in range(6):
        one.observe([record_of(row, 5, 5)])
    before = one._controllers[row].threshold
    beside = replace(record_of(row, 1, 0), verdict=Verdict((0, 2), (3, 60), "bonus"))
    one.observe([beside])
    assert one._controllers[row].threshold > before


def test_the_moving_threshold_decides() -> None:
    one, row = drafter(adaptive=True, threshold=0.6), make_row([1])
    one.reset(row)
    for _ in range(60):
        one.observe([record_of(row, 5, 0)])
    passes = PlannedPasses({0: [(5, 0.63), (8, 0.9)]})
    assert one.propose([row], passes)[0].token_ids == (1, 5)


def test_nothing_drafted() -> None:
    """An EOS as the first token, and one token only (bug 3)."""
    for limit in (1, 2):
        job = Job(prompt_ids(1), SamplingParams(max_new_tokens=limit))
        (result,) = run(target("llama"), registered("layer-skip", adaptive=True), [job])
        assert len(result.token_ids) == limit


def test_a_skip_set_of_a_deeper_model_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"names layers \[39\], and the model has 2"):
        registered("layer-skip", skip_set={"attention": [1, 39]})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip_set": None}, "draftless calibrate skip"),
        ({"skip_set": {"attn": [1]}}, "is not of the form"),
        ({"skip_set": {"mlp": [-1]}}, "is no list of layer indices"),
        ({"skip_set": {"mlp": 3}}, "is not of the form"),
        ({"depth": 0}, "depth=0 of layer-skip is below 1"),
        ({"siblings": -1}, "siblings=-1 of layer-skip is below 0"),
        ({"threshold": 1.5}, "threshold=1.5 of layer-skip is not between 0 and 1"),
    ],
)
def test_bad_options(options: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        drafter(**options)


def test_a_skip_file(tmp_path: Path) -> None:
    """Its threshold and depth count unless others are given; damage is refused by name."""
    setting = SkipSetting(SkipSet((1,), (0, 1)), 0.45, 7, 3)
    file = tmp_path / "skip.json"
    file.write_text(json.dumps({"format_version": 1, "setting": setting.to_dict()}))
    assert LayerSkipDrafter(str(file)).setting == setting
    assert LayerSkipDrafter(file, depth=3).setting == SkipSetting(setting.skip_set, 0.45, 3, 3)
    for text, message in (
        ('{"format_version": 1, "sett', "skip.json is not a valid skip file"),
        ('{"format_version": 1}', "skip.json is not a valid skip file"),
        ('{"format_version": 1, "setting": {"skip_set": {}}}', "does not have the keys"),
        ('{"format_version": 2, "setting": {}}', "format version 2"),
        ("[]", "skip.json is not a valid skip file"),
    ):
        file.write_text(text)
        with pytest.raises(ArtifactError, match=message):
            read_skip_file(file)
    with pytest.raises(ArtifactError, match=r"nowhere\.json is not a valid skip file"):
        make_drafter("layer-skip", {"skip_set": "nowhere.json"})


def test_a_skip_set_reads_well() -> None:
    assert str(SkipSet((3, 1, 2, 7), ())) == "attention 1-3, 7, MLP none"
    assert SkipSet((3, 1, 1), (2,)) == SkipSet.from_dict({"attention": [1, 3], "mlp": [2]})
    assert SkipSet((3, 1, 1), (2,)).num_skipped == 3
