"""Curves, coloured texts and drawings."""

from __future__ import annotations

import pytest

from draftless.bench.curves import cost_of_width, position_edges, speed_over_position
from draftless.bench.summary import summarise
from draftless.bench.svg import inline, shortened, with_own_ids
from draftless.bench.viewer import MAX_TOKENS, excerpts, sources_of
from support.synthetic_run import CATEGORIES, make_case, make_row, make_run


def test_speed_over_position_is_tokens_over_time() -> None:
    """Tokens 0-10 in 0.5 s after the prefill, 10-20 in 0.25 s, in steps that cross the borders."""
    row = make_row(make_case("none"), "sql", 0, tokens=20, steps=4)
    turn = row.turns[0]
    turn.step_tokens, turn.prefill_s = [4, 6, 5, 5], 1.0
    turn.step_s = [1.3, 1.5, 1.6, 1.75]
    assert speed_over_position([row], [0, 10, 20, 30]) == [
        (5.0, pytest.approx(20.0)),
        (15.0, pytest.approx(40.0)),
    ]
    turn.prefill_s = None  # the first step may hold the prefill: it does not count
    assert speed_over_position([row], [0, 10])[0][1] == pytest.approx(6 / 0.2)
    assert position_edges([row]) == list(range(0, 22, 2))


def test_cost_of_width_is_a_median_by_powers_of_two() -> None:
    row = make_row(make_case("recycling"), "sql", 0, tokens=20, steps=20)
    turn = row.turns[0]
    turn.step_drafted = [0] * 10 + [2, 3] * 5
    times = [0.01] * 10 + [0.02] * 9 + [5.0]  # one hiccup
    turn.step_s = [0.1 + sum(times[: i + 1]) for i in range(20)]
    (one, first), (wide, second) = cost_of_width([row])
    assert (one, wide) == (1.0, 3.5)
    assert (first, second) == (pytest.approx(10.0), pytest.approx(20.0))
    turn.time_s = {}  # a peer does not tell what it fed
    assert cost_of_width([row]) == []


def test_excerpts_are_short_and_skip_loops() -> None:
    rows = make_run(samplings=("greedy",), questions=2, tokens=MAX_TOKENS + 40)
    groups = list(summarise(rows).groups().values())
    sources = sources_of(rows)
    assert sources[:2] == ["retrieval", "denoised"]
    for row in rows:
        if row.question_id == "code-0":
            row.turns[0].num_looping = row.num_tokens
    found = excerpts(rows, groups, {name: i for i, name in enumerate(sources)})
    assert [case.method for case in found] == ["tr-jacobi", "recycling"]
    texts = found[make_case("tr-jacobi")]
    assert len(texts) == len(CATEGORIES) - 1  # both answers on code are loops
    assert {len(one.tokens) for one in texts} == {MAX_TOKENS}
    assert {one.num_left for one in texts} == {40}


def test_tokens_carry_their_source_and_visible_signs() -> None:
    rows = make_run(samplings=("greedy",), categories=("sql",), methods=("recycling",), questions=1)
    turn = rows[0].turns[0]
    turn.pieces, turn.sources = ["a\n", "\x00", "\u202e"], ["retrieval", "odd", ""]
    turn.token_ids = [5, 6, 7]
    groups = list(summarise(rows).groups().values())
    ((one,),) = excerpts(rows, groups, {"retrieval": 0, "odd": 5}).values()
    assert [(t.text, t.source) for t in one.tokens] == [("a↵\n", 0), ("\u2400", 5), ("�", None)]
    turn.pieces = []
    ((one,),) = excerpts(rows, groups, {"retrieval": 0, "odd": 5}).values()
    assert [t.text for t in one.tokens] == ["5 ", "6 ", "7 "]


def test_drawings_take_their_colours_from_the_page() -> None:
    def draw(axes: object) -> None:
        axes.plot([0, 1], [0.123456, 1], color="#5e0003", marker="o")  # type: ignore[attr-defined]
        axes.set_title("50 % of $a_b$ 3.14159")  # type: ignore[attr-defined]

    svg = inline(draw, 2.0, 'a "b" <c>')
    assert "var(--c3)" in svg
    assert "var(--ink)" in svg
    assert "#000000" not in svg
    assert "50 % of $a_b$ 3.14159" in svg  # no mathematics, no rounding of text
    assert 'aria-label="a &quot;b&quot; &lt;c&gt;"' in svg
    own = with_own_ids(svg, 4)
    assert own.count("d4-") > 2
    assert 'href="#m' not in own
    assert "url(#p" not in own


def test_names_in_drawings_are_cut() -> None:
    assert shortened("a" * 30, 10) == "a" * 9 + "…"
    assert shortened("a\x00b", 10) == "a?b"
