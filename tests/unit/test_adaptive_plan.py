"""Where adaptive blocks stand: positions, targets, anchors, density; decided by the document alone."""

from __future__ import annotations

from collections import Counter
from typing import Any

import pytest

from draftless.errors import ConfigError
from draftless.training.adaptive import AdaptivePlanner, AdaptiveSettings
from draftless.training.block_places import TokenRun
from draftless.training.draft_collator import DraftCollator
from draftless.training.noise_runs import NoisePlanner, NoiseSettings
from draftless.training.packing import PaddingCollator, pack_documents
from support.tokenizer import small_tokenizer

PAD, ADAPTIVE = 2, 90
PROMPT = [0, 10, 11, 12]


def document(num_response: int) -> tuple[list[int], list[int]]:
    ids = [*PROMPT, *range(20, 20 + num_response), 1]
    return ids, [-100] * len(PROMPT) + ids[len(PROMPT) :]


def planner(ids: tuple[int, ...] = (ADAPTIVE,), **settings: Any) -> AdaptivePlanner:
    return AdaptivePlanner(AdaptiveSettings(ids, **settings))


def chat() -> tuple[list[int], list[int]]:
    """Two responses, at the places 2 to 7 and 10 to 13."""
    ids = list(range(30, 45))
    labels = [i if 2 <= place <= 7 or 10 <= place <= 13 else -100 for place, i in enumerate(ids)]
    return ids, labels


@pytest.mark.parametrize("is_packed", [False, True], ids=["padded", "packed"])
def test_slot_m_stands_at_t_plus_m_and_learns_the_token_at_t_plus_m_plus_1(is_packed: bool) -> None:
    ids, labels = document(30)
    blocks = planner(spacing=4)
    collator = DraftCollator(PaddingCollator(PAD), None, PAD, blocks, adds_places=True)
    features = [{"input_ids": ids, "labels": labels}]
    batch = collator(pack_documents(features, 60) if is_packed else features)
    ids_of, positions, targets, depths = (
        batch[name][0].tolist()
        for name in ("input_ids", "position_ids", "shift_labels", "block_depths")
    )
    seen = []
    for index, depth in enumerate(depths):
        if depth:
            anchor = positions[index] - depth
            seen.append(anchor)
            assert ids_of[index] == ADAPTIVE
            assert targets[index] == labels[anchor + depth + 1]
            sees = batch["attention_mask"][0, 0, index].nonzero().flatten().tolist()
            own = range(index - depth + 1, index + 1)
            assert sees == [*range(anchor + 1), *own]
    anchors = [run.start - 1 for run in blocks.plan(ids, labels, 0)]
    assert sorted(set(seen)) == anchors and len(anchors) >= 6, "several blocks a sequence"


def test_anchors_depend_on_seed_epoch_and_ids_alone() -> None:
    ids, labels = document(40)
    plan = planner().plan(ids, labels, 0)
    assert planner().plan(list(ids), list(labels), 0) == plan
    assert planner().plan(ids, labels, 1) != plan
    assert planner(seed=1).plan(ids, labels, 0) != plan
    assert planner().plan([0, 10, 11, 13, *ids[4:]], labels, 0) != plan
    other_ids = planner((91,)).plan(ids, labels, 0)
    assert [run.start for run in other_ids] == [run.start for run in plan]


def test_golden_plan() -> None:
    """Pinned: what a seed trains on must not change with our releases."""
    ids, labels = document(12)
    assert planner().plan(ids, labels, 0) == [
        TokenRun(9, (ADAPTIVE,) * 5),
        TokenRun(14, (ADAPTIVE,) * 2),
    ]


def test_blocks_stand_elsewhere_than_the_noise_of_the_same_seed() -> None:
    ids, labels = document(60)
    noise = NoisePlanner(NoiseSettings(mode="branch"), frozenset())
    same = [
        [run.start for run in noise.plan(ids, labels, epoch)]
        == [run.start for run in planner().plan(ids, labels, epoch)]
        for epoch in range(8)
    ]
    assert not any(same)


def test_anchors_are_even_from_the_last_prompt_token_on() -> None:
    ids, labels = document(32)
    anchors = Counter(
        run.start - 1 for epoch in range(1200) for run in planner().plan(ids, labels, epoch)
    )
    last_prompt = len(PROMPT) - 1
    # The last anchor has one slot, which learns EOS.
    assert sorted(anchors) == list(range(last_prompt, len(ids) - 2))
    assert all(abs(count - 200) < 65 for count in anchors.values())  # 1200 / 6, 5 sigma


@pytest.mark.parametrize(("length", "spacing"), [(5, 6), (7, 3), (2, 8)])
def test_density_is_block_length_over_spacing(length: int, spacing: int) -> None:
    ids, labels = document(600)
    blocks = planner(block_length=length, spacing=spacing)
    count = sum(len(run.token_ids) for e in range(20) for run in blocks.plan(ids, labels, e))
    assert count / (20 * 601) == pytest.approx(length / spacing, rel=0.02)


def test_blocks_are_cut_where_labels_end_and_every_response_gets_some() -> None:
    ids, labels = chat()
    starts = set()
    for epoch in range(300):
        for run in planner(block_length=4, spacing=2).plan(ids, labels, epoch):
            starts.add(run.start)
            length = len(run.token_ids)
            end = 8 if run.start < 8 else 14
            assert length == min(4, end - 1 - run.start)
            assert -100 not in labels[run.start : run.start + length + 1]
    assert starts == {2, 3, 4, 5, 6, 10, 11, 12}


@pytest.mark.parametrize("num_response", [0, -1])
def test_a_response_without_a_token_to_look_ahead_to_gets_none(num_response: int) -> None:
    ids, labels = document(0)
    ids, labels = (ids, labels) if num_response == 0 else (ids[:-1], labels[:-1])
    assert planner(spacing=1).plan(ids, labels, 0) == []


def test_distinct_ids_stand_in_their_slots_also_in_a_block_that_is_cut() -> None:
    ids, labels = document(20)
    distinct = planner((91, 92, 93), block_length=3, spacing=1)
    lengths = set()
    for run in distinct.plan(ids, labels, 0):
        lengths.add(len(run.token_ids))
        assert run.token_ids == (91, 92, 93)[: len(run.token_ids)]
    assert lengths == {1, 2, 3}
    shared = planner(block_length=3, spacing=1).plan(ids, labels, 0)
    assert {i for run in shared for i in run.token_ids} == {ADAPTIVE}


def test_noise_from_the_vocabulary_never_holds_an_adaptive_id() -> None:
    """An unassigned id may lie among the others, where the tokenizer has a gap."""
    noise = NoiseSettings(mode="branch", source="vocabulary", spacing=1)
    blocks = AdaptiveSettings((50,))
    tokenizer = small_tokenizer()
    collator = DraftCollator.from_tokenizer(tokenizer, noise, adaptive=blocks)
    ids, labels = document(60)
    drawn: set[int] = set()
    for epoch in range(40):
        assert collator.noise is not None
        runs = collator.noise.plan(ids, labels, epoch)
        drawn.update(i for run in runs for i in run.token_ids)
    assert drawn == set(range(2, len(tokenizer))) - {50}


@pytest.mark.parametrize(
    ("ids", "settings", "message"),
    [
        ((7, 8), {}, "2 adaptive ids for blocks of 5; give one shared id, or as many"),
        ((), {}, "0 adaptive ids"),
        ((7,), {"block_length": 0}, "block_length is 0"),
        ((7,), {"spacing": 0}, "spacing is 0"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(
    ids: tuple[int, ...], settings: dict[str, int], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        planner(ids, **settings)


def test_inline_noise_and_blocks_are_refused_together() -> None:
    noise = NoisePlanner(NoiseSettings(mode="inline"), frozenset())
    with pytest.raises(ConfigError, match="use noise mode 'branch'"):
        DraftCollator(PaddingCollator(PAD), noise, PAD, planner())
