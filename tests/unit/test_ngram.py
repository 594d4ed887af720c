"""Lookup: the longest suffix first, the newest match first, nothing where there is none."""

from __future__ import annotations

from collections.abc import Sequence

import pytest

from draftless.drafters.ngram import NgramIndex, NullDrafter, PromptLookupDrafter
from draftless.errors import ConfigError
from draftless.params import SamplingParams
from draftless.types import Row
from support.driving import RandomPasses


def lookup(ids: Sequence[int], count: int = 3, max_ngram: int = 3, min_ngram: int = 1) -> list[int]:
    return NgramIndex(max_ngram, min_ngram).continuation(ids, count)


def test_the_longest_suffix_wins_over_a_newer_shorter_one() -> None:
    assert lookup([1, 2, 3, 9, 8, 3, 7, 7, 1, 2, 3]) == [9, 8, 3]


def test_the_newest_of_equally_long_matches_wins() -> None:
    """MSN's reference takes the oldest (bug 6)."""
    assert lookup([5, 1, 8, 8, 5, 1, 9, 9, 5, 1])[:2] == [9, 9]


def test_no_match_means_no_draft() -> None:
    """MSN's reference then returns what follows the third token of the prompt (bug 5)."""
    assert lookup([1, 2, 3, 4, 5, 6]) == []


@pytest.mark.parametrize("ids", [[1], [1, 2], [1, 2, 3], [1, 2, 3, 4, 5]])
def test_short_texts_give_nothing_and_do_not_fail(ids: list[int]) -> None:
    """MSN's reference crashes below six tokens (bug 7)."""
    assert lookup(ids) == []


def test_a_shorter_suffix_is_tried_down_to_the_least() -> None:
    ids = [1, 2, 3, 9, 9, 4, 3]
    assert lookup(ids) == [9, 9, 4]
    assert lookup(ids, min_ngram=2) == []


@pytest.mark.parametrize(
    ("ids", "wanted"),
    [([1, 1], [1] * 5), ([1, 2, 1, 2], [1, 2, 1, 2, 1]), ([7, 4, 5, 6, 4, 5, 6], [4, 5, 6, 4, 5])],
)
def test_a_period_is_read_on(ids: list[int], wanted: list[int]) -> None:
    assert lookup(ids, count=5) == wanted


def test_the_index_grows_with_the_text() -> None:
    index, ids = NgramIndex(3), [1, 2, 3]
    assert index.continuation(ids, 2) == []
    ids += [1, 2]
    assert index.continuation(ids, 2) == [3, 1]
    ids += [4, 1, 2]
    assert index.continuation(ids, 2) == [4, 1]
    assert index.continuation(ids, 2) == [4, 1], "asking twice changes nothing"


def make_row(ids: Sequence[int], max_depth: int) -> Row:
    row = Row(0, ids, SamplingParams(), None)
    row.max_depth = max_depth
    return row


@pytest.mark.parametrize(("max_depth", "length"), [(0, 1), (2, 3), (100, 5)])
def test_the_chain_is_as_long_as_wanted_and_usable(max_depth: int, length: int) -> None:
    drafter = PromptLookupDrafter(num_draft_tokens=4)
    row = make_row([1, 2, 3, 1, 2], max_depth)
    drafter.reset(row)
    (tree,) = drafter.propose([row], RandomPasses())
    assert tree.token_ids == (2, 3, 1, 2, 3)[:length]
    assert tree.parents == (-1, 0, 1, 2, 3)[:length]


def test_rows_do_not_share_their_texts() -> None:
    drafter = PromptLookupDrafter()
    rows = [make_row([1, 2, 3, 1], 2), make_row([1, 5, 6, 1], 2)]
    for row in rows:
        drafter.reset(row)
    assert [t.token_ids for t in drafter.propose(rows, RandomPasses())] == [(1, 2, 3), (1, 5, 6)]


def test_plain_decoding_is_the_root_alone() -> None:
    (tree,) = NullDrafter().propose([make_row([4, 5], 9)], RandomPasses())
    assert (tree.token_ids, tree.parents) == ((5,), (-1,))


@pytest.mark.parametrize(
    "options", [{"num_draft_tokens": 0}, {"max_ngram": 1, "min_ngram": 2}, {"min_ngram": 0}]
)
def test_bad_options(options: dict[str, int]) -> None:
    with pytest.raises(ConfigError):
        PromptLookupDrafter(**options)
