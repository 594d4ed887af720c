"""Where noise may go, and that nothing but (settings, epoch, the document) decides it."""

from __future__ import annotations

from collections import Counter

import pytest

from draftless.errors import ConfigError
from draftless.training.block_places import TokenRun
from draftless.training.noise_runs import NoisePlanner, NoiseSettings

BOS, EOS = 0, 1
SPECIAL = frozenset({BOS, EOS})
PROMPT = [BOS, 10, 11, 12]


def document(num_response: int) -> tuple[list[int], list[int]]:
    """A prompt of 4 ids, `num_response` response ids from 20 upwards, and EOS."""
    ids = [*PROMPT, *range(20, 20 + num_response), EOS]
    return ids, [-100] * len(PROMPT) + ids[len(PROMPT) :]


def planner(**settings: object) -> NoisePlanner:
    return NoisePlanner(NoiseSettings(**settings), SPECIAL, vocab_size=50)  # type: ignore[arg-type]


def test_the_same_document_gets_the_same_noise_wherever_it_stands() -> None:
    ids, labels = document(12)
    assert planner().plan(ids, labels, 0) == planner().plan(list(ids), list(labels), 0)


@pytest.mark.parametrize("mode", ["inline", "branch"])
def test_seed_epoch_and_ids_each_change_the_noise(mode: str) -> None:
    ids, labels = document(40)
    noise = planner(mode=mode).plan(ids, labels, 0)
    assert planner(mode=mode).plan(ids, labels, 1) != noise
    assert planner(mode=mode, seed=1).plan(ids, labels, 0) != noise
    changed = [*ids[:-2], 49, EOS]
    assert planner(mode=mode).plan(changed, labels, 0) != noise


def test_golden_plan() -> None:
    """Pinned: a checkpoint's noise must not change with our releases."""
    ids, labels = document(8)
    assert planner(length=3).plan(ids, labels, 0) == [TokenRun(start=8, token_ids=(11, 20, 22))]


def test_inline_starts_are_uniform_over_the_response_and_spare_its_last_token() -> None:
    ids, labels = document(8)
    starts = Counter(
        run.start for epoch in range(3000) for run in planner().plan(ids, labels, epoch)
    )
    # 8 response tokens and EOS: runs of 5 begin at response tokens 0 to 3 and EOS stays.
    assert sorted(starts) == [4, 5, 6, 7]
    assert all(abs(count - 750) < 120 for count in starts.values())  # 5 sigma


@pytest.mark.parametrize("next_turn", [[], [12, 13]])
def test_inline_without_eos_leaves_the_last_response_token(next_turn: list[int]) -> None:
    ids, labels = document(8)
    ids, labels = [*ids[:-1], *next_turn], [*labels[:-1], *[-100] * len(next_turn)]
    starts = {run.start for epoch in range(200) for run in planner().plan(ids, labels, epoch)}
    assert starts == {4, 5, 6}


@pytest.mark.parametrize("num_response", [0, 1, 4])
def test_a_response_that_is_too_short_stays_clean(num_response: int) -> None:
    ids, labels = document(num_response)
    assert planner().plan(ids, labels, 0) == []


@pytest.mark.parametrize("mode", ["inline", "branch"])
@pytest.mark.parametrize("source", ["prefix", "vocabulary"])
def test_noise_stays_in_responses_and_off_special_tokens(mode: str, source: str) -> None:
    first, second = [20, 21, 22, EOS], [30, 31, 32, EOS, 33, 34, 35, EOS]
    ids = [BOS, 10, 11, *first, 12, 13, *second]
    labels = [-100, -100, -100, *first, -100, -100, *second]
    seen = set()
    for epoch in range(300):
        for run in planner(mode=mode, source=source, length=2).plan(ids, labels, epoch):
            places = range(run.start, run.start + len(run.token_ids))
            seen.update(places)
            assert not SPECIAL & set(run.token_ids)
            if source == "prefix":
                assert set(run.token_ids) <= set(ids[: run.start])
    assert seen == {3, 4, 5, 9, 10, 11, 13, 14, 15}


def test_vocabulary_noise_reaches_every_ordinary_id() -> None:
    ids, labels = document(12)
    drawn = {
        token
        for epoch in range(400)
        for run in planner(source="vocabulary").plan(ids, labels, epoch)
        for token in run.token_ids
    }
    assert drawn == set(range(50)) - SPECIAL


def test_an_empty_prefix_gets_no_noise() -> None:
    ids = [BOS, *range(20, 30), EOS]
    labels = [-100, *ids[1:]]
    runs = [run for epoch in range(100) for run in planner().plan(ids, labels, epoch)]
    assert runs
    assert all(run.start > 1 for run in runs)


def test_clean_share() -> None:
    ids, labels = document(12)
    noised = sum(bool(planner(clean_share=0.3).plan(ids, labels, epoch)) for epoch in range(2000))
    assert abs(noised - 1400) < 103  # 5 sigma
    assert all(planner(clean_share=1.0).plan(ids, labels, epoch) == [] for epoch in range(20))


def test_a_range_of_lengths_is_drawn_evenly() -> None:
    ids, labels = document(20)
    lengths = Counter(
        len(run.token_ids)
        for epoch in range(3000)
        for run in planner(length=2, max_length=4).plan(ids, labels, epoch)
    )
    assert sorted(lengths) == [2, 3, 4]
    assert all(abs(count - 1000) < 130 for count in lengths.values())


def test_branch_blocks_cover_the_response_evenly_and_end_with_it() -> None:
    ids, labels = document(32)  # a last stretch of 2
    starts: Counter[int] = Counter()
    for epoch in range(1200):
        for run in planner(mode="branch", spacing=6).plan(ids, labels, epoch):
            starts[run.start] += 1
            # The last token of a block predicts the place after it: at most EOS.
            assert run.start + len(run.token_ids) <= len(ids) - 1
            assert len(run.token_ids) == min(5, len(ids) - 1 - run.start)
    assert sorted(starts) == list(range(4, 36))
    assert all(abs(count - 200) < 65 for count in starts.values())  # 1200 / 6, 5 sigma


def test_every_noise_token_of_a_block_has_a_target() -> None:
    ids, labels = document(12)
    ids, labels = [*ids[:-1], 12, 13], [*labels[:-1], -100, -100]
    for epoch in range(100):
        for run in planner(mode="branch", spacing=2).plan(ids, labels, epoch):
            assert -100 not in labels[run.start + 1 : run.start + 1 + len(run.token_ids)]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"mode": "both"}, "both"),
        ({"length": 0}, "at least 1"),
        ({"length": 5, "max_length": 4}, "below"),
        ({"clean_share": 1.5}, "clean_share"),
        ({"spacing": 0}, "spacing"),
        ({"source": "model"}, "model"),
    ],
)
def test_settings_that_cannot_be_honoured_are_refused(
    settings: dict[str, object], message: str
) -> None:
    with pytest.raises(ConfigError, match=message):
        planner(**settings)
