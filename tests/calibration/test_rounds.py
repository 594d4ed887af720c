"""The noise-free objective: what it simulates is what a real round does."""

from __future__ import annotations

from dataclasses import replace
from functools import cache

import numpy as np
import pytest
from transformers import LlamaConfig

from draftless import Draftless, InputError
from draftless.calibration.costs import CostTable
from draftless.calibration.rounds import (
    RoundsObjective,
    ScoredWindows,
    Scores,
    choose_windows,
    evaluate,
    simulate,
)
from draftless.calibration.texts import (
    OwnText,
    Prompt,
    TextOptions,
    make_texts,
    split_texts,
)
from draftless.skip_set import SkipSet, SkipSetting
from support.models import build_model, prompt_ids

DEPTH = 5
SURE = 0.5
SETS = (
    SkipSet(),
    SkipSet((1,), ()),
    SkipSet((2,), (1,)),
    SkipSet((), (3,)),
    SkipSet((1, 2), (1, 2)),
    SkipSet((0, 1, 2, 3), (0, 1, 2, 3)),
)
COSTS = CostTable(4, 10, tuple(10.0 + w for w in range(DEPTH + 9)), 1.0, 1.0, 1.0, 0.0)


@cache
def model(eos: int | None = None) -> Draftless:
    """Four layers whose weights are narrow enough that drafts are sometimes right, and a head that is
    wide enough that they are sometimes sure."""
    config = LlamaConfig(
        vocab_size=61, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, num_key_value_heads=2, max_position_embeddings=128,
        initializer_range=0.15, bos_token_id=None, eos_token_id=eos,
    )  # fmt: skip
    built = build_model(config, "fp32")
    built.lm_head.weight.data *= 6
    return Draftless.from_pretrained(built, drafter="none")


@cache
def texts(eos: int | None = None, num_tokens: int = 24) -> tuple[OwnText, ...]:
    prompts = [Prompt("ab"[n % 2], prompt_ids(5 + 3 * n, n)) for n in range(6)]
    return make_texts(model(eos), prompts, TextOptions(num_tokens=num_tokens, batch_size=3)).texts


def an_eos() -> int:
    """A token that the model says in the middle of a text."""
    return texts()[0].own_ids[9]


@pytest.mark.parametrize("has_eos", [False, True])
@pytest.mark.parametrize("skip_set", SETS, ids=str)
def test_simulated_rounds_are_real_rounds(skip_set: SkipSet, has_eos: bool) -> None:
    eos = an_eos() if has_eos else None
    own = texts(eos)
    assert any(text.is_complete for text in own) == has_eos
    windows = sorted(choose_windows(own, DEPTH, 2, 0), key=lambda window: len(window.prefix))
    scores = ScoredWindows(model(eos).target, windows, DEPTH).score(skip_set)
    for threshold, depth, siblings in ((0.0, 2, 0), (SURE, DEPTH, 0), (0.0, 1, 3), (0.0, 3, 4)):
        tokens, drafts = simulate(scores, threshold, depth, siblings)
        setting = SkipSetting(skip_set, threshold, depth, siblings)
        drafter = model(eos).with_drafter("layer-skip", setting.to_dict())
        for number, window in enumerate(windows):
            start = [*window.prefix, window.token_ids[0]]
            chunk = next(drafter.stream(start, max_new_tokens=DEPTH + 1))
            if siblings and depth > 1:  # which siblings fit in is approximated behind a miss
                assert abs(len(chunk.token_ids) - tokens[number]) <= 1
                continue
            assert len(chunk.token_ids) == tokens[number]
            # Up to the first miss the draft is the text; behind it confidences are approximated,
            # and behind the text's end the simulation drafts no more.
            if tokens[number] > drafts[number] and not window.is_end:
                assert chunk.num_draft_tokens == drafts[number] + siblings


def test_the_test_sees_hits_and_misses_sure_and_unsure() -> None:
    scores = ScoredWindows(model().target, choose_windows(texts(), DEPTH, 3, 0), DEPTH).score(
        SETS[1]
    )
    assert 0.1 < (scores.ranks == 0).mean() < 0.95
    assert ((scores.ranks > 0) & (scores.ranks <= 3)).mean() > 0.02
    assert 0 < (scores.shares[:, :, 0] < SURE).mean() < 1


def test_the_empty_set_accepts_everything() -> None:
    scores = ScoredWindows(model().target, choose_windows(texts(), DEPTH, 3, 0), DEPTH).score(
        SkipSet()
    )
    tokens, drafts = simulate(scores, 0.0, DEPTH, 0)
    assert (tokens == DEPTH + 1).all() and (drafts == DEPTH).all()


def test_scoring_leaves_nothing_behind() -> None:
    windows = ScoredWindows(model().target, choose_windows(texts(), DEPTH, 3, 0), DEPTH)
    first = windows.score(SETS[2])
    windows.score(SETS[4])
    again = windows.score(SETS[2])
    assert np.array_equal(first.ranks, again.ranks)
    assert np.array_equal(first.shares, again.shares)


def scores_of(matches: list[list[int]], confidences: list[list[float]]) -> Scores:
    """Nothing but the best token is known: a miss is no sibling either."""
    return scores_with(
        [[1 - hit for hit in row] for row in matches], np.array(confidences)[..., None]
    )


def scores_with(ranks: list[list[int]], shares: np.ndarray) -> Scores:
    found = np.array(ranks)
    return Scores(
        found,
        shares,
        np.full(len(found), found.shape[1]),
        np.zeros(len(found), dtype=bool),
        np.arange(len(found)),
    )


def test_rounds_by_hand() -> None:
    scores = scores_of(
        [[1, 1, 1], [1, 0, 1], [0, 1, 1]], [[0.9, 0.8, 0.9], [0.9, 0.4, 0.9], [0.4, 0.9, 0.9]]
    )
    tokens, drafts = simulate(scores, 0.5, 3, 0)
    assert tokens.tolist() == [4, 2, 1]  # the target's own token is counted
    assert drafts.tolist() == [3, 2, 1]  # the unsure token itself is still drafted
    tokens, drafts = simulate(scores, 0.5, 1, 0)
    assert (tokens.tolist(), drafts.tolist()) == ([2, 2, 1], [1, 1, 1])
    ended = replace(scores, num_ahead=np.array([3, 1, 3]), is_end=np.array([True, True, False]))
    tokens, drafts = simulate(ended, 0.0, 3, 0)
    assert (tokens.tolist(), drafts.tolist()) == ([3, 1, 1], [3, 1, 3])


@pytest.mark.parametrize(
    ("depth", "siblings", "tokens"),
    [(1, 1, [2, 2, 1]), (1, 2, [2, 2, 1]), (3, 1, [2, 2, 1]), (3, 2, [2, 3, 1]), (3, 0, [1, 2, 1])],
)
def test_siblings_by_hand(depth: int, siblings: int, tokens: list[int]) -> None:
    """The own token is second at place 0, second at place 1, and none of the three candidates.

    Of the second text, the path of .7 * .2 to the own token has .2 beside place 0 before it.
    """
    row = [[0.7, 0.2, 0.05]] * 3
    scores = scores_with([[1, 0, 0], [0, 1, 0], [3, 0, 0]], np.array([row] * 3))
    assert simulate(scores, 0.0, depth, siblings)[0].tolist() == tokens


def test_siblings_cost_their_place() -> None:
    """One more token in half of the rounds pays if the wider pass costs less."""
    scores = scores_with([[1], [3]], np.array([[[0.5, 0.4, 0.05]]] * 2))
    flat = CostTable(2, 1, (1.0,) * 10, 0.5, 0.0, 0.0, 0.0)
    steep = replace(flat, width_s=tuple(1.0 + w for w in range(10)))
    assert evaluate(scores, SkipSet(), flat).setting.siblings == 2
    assert evaluate(scores, SkipSet(), steep).setting.siblings == 0


def test_the_best_threshold_and_depth_by_hand() -> None:
    scores = scores_of([[1, 1, 0], [1, 0, 0]], [[0.9, 0.9, 0.3], [0.9, 0.3, 0.3]])
    costs = CostTable(2, 1, (1.0,) * 12, 0.5, 0.0, 0.0, 0.0)
    found = evaluate(scores, SkipSet(), costs)
    # Depth 2 drafts twice in both rounds: (3 + 2) tokens in 2 * (2 * 0.5 + 1) seconds; of its
    # thresholds the lowest that is as good.
    assert (found.setting.depth, found.setting.threshold) == (1, 0.0)  # (2 + 2) / (2 * 1.5) = 1.33
    cheap = evaluate(scores, SkipSet(), replace(costs, base_s=0.1))
    assert cheap.setting.depth == 2  # (3 + 2) / (2 * 1.2) = 2.08 against (2 + 2) / 2.2
    assert cheap.value == pytest.approx(5 / 2.4)
    assert (cheap.tokens_per_round, cheap.drafts_per_round) == (2.5, 2.0)


def test_windows_depend_on_their_text_alone() -> None:
    own = texts()
    windows = choose_windows(own, DEPTH, 3, 0)
    alone = choose_windows(own[2:3], DEPTH, 3, 0)
    assert [replace(window, text=2) for window in alone] == [w for w in windows if w.text == 2]
    assert windows != choose_windows(own, DEPTH, 3, 1)
    for window in windows:
        text = own[window.text]
        ids = text.prompt_ids + text.own_ids
        root = len(window.prefix)
        assert ids[:root] == window.prefix
        assert ids[root : root + 1 + window.num_ahead] == window.token_ids
        assert root >= len(text.prompt_ids) - 1
        assert window.num_ahead == DEPTH


def test_a_complete_text_has_windows_up_to_its_end() -> None:
    own = OwnText("a", (1, 2), (3, 4, 5, 6, 7), is_complete=True)
    (first, second) = choose_windows([own], DEPTH, 3, 0)
    assert (first.num_ahead, first.is_end) == (5, True)  # root: the prompt's last token
    assert (second.num_ahead, second.is_end) == (4, True)
    (cut,) = choose_windows([replace(own, is_complete=False)], DEPTH, 3, 0)
    assert not cut.is_end


def test_texts_are_what_the_model_says() -> None:
    for text in texts():
        said = model().generate(list(text.prompt_ids), max_new_tokens=24)
        assert tuple(said.token_ids) == text.own_ids


def test_texts_are_chosen_by_content_alone() -> None:
    prompts = [Prompt("a", prompt_ids(5 + n, n)) for n in range(9)]
    others = [Prompt("b", prompt_ids(6, 50)), Prompt("b", prompt_ids(200, 51))]
    options = TextOptions(per_domain=3, num_tokens=6)
    found = make_texts(model(), prompts, options)
    again = make_texts(model(), [*others, *reversed(prompts), *prompts], options)
    assert len(found.texts) == 3
    assert [text for text in again.texts if text.domain == "a"] == list(found.texts)
    assert again.left_out == {"too_long": 1}
    other = make_texts(model(), prompts, replace(options, seed=1))
    assert set(other.texts) != set(found.texts)


def test_nothing_to_search_on_is_said() -> None:
    with pytest.raises(InputError, match="too_long"):
        make_texts(model(), [Prompt("a", prompt_ids(120))], TextOptions())
    with pytest.raises(InputError, match="at least two texts"):
        split_texts(texts()[:1])


def test_halves_share_no_text_and_every_domain() -> None:
    searched, held = split_texts(texts())
    assert not set(searched) & set(held)
    assert {text.domain for text in searched} == {text.domain for text in held} == {"a", "b"}


def test_totals_are_of_held_out_texts() -> None:
    halves = split_texts(texts())
    objective = RoundsObjective(model().target, halves, COSTS, DEPTH, 2, 0)
    tokens, seconds = objective.totals(SkipSetting(SkipSet(), 0.0, 2))
    # The empty set: two drafts and the bonus in each of two rounds a text.
    assert tokens.tolist() == [6] * len(halves[1])
    assert seconds.tolist() == [2 * (2 * 9.0 + 12.0)] * len(halves[1])
    searched = RoundsObjective(model().target, halves[::-1], COSTS, DEPTH, 2, 0)
    assert objective.evaluate(SETS[1]) != searched.evaluate(SETS[1])
