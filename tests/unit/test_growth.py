"""The planner of SDSAT's trees: what is worth a row, and which slot speaks for which place."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from draftless.drafters.growth import _SHIFTED, TreeGrowth
from draftless.drafters.sdsat import ready_slots
from draftless.types import DraftTree

RATES = [0.7, 0.6, 0.5]


def grown(
    chances: list[list[float]], num_rows: int, rates: list[float] = RATES, max_depth: int = 50
) -> tuple[TreeGrowth, DraftTree]:
    """A tree whose candidate of rank `r` at depth `d` is token `10 * d + r`."""
    candidates = [
        [(10 * depth + rank, chance) for rank, chance in enumerate(found)]
        for depth, found in enumerate(chances, start=1)
    ]
    growth = TreeGrowth(candidates, rates, max_depth)
    growth.spend(num_rows)
    return growth, growth.tree(0, [60])


def chains(tree: DraftTree) -> dict[int, int]:
    """Draft nodes (and the root) by token, with the lengths of their chains of probes."""
    found = {token_id: 0 for token_id in tree.token_ids if token_id != 60}
    for node in range(1, tree.num_nodes):
        above = node
        while tree.is_probe and tree.is_probe[above]:
            above = tree.parents[above]
        found[tree.token_ids[above]] += above != node
    return found


def test_without_candidates_all_rows_are_probes_of_the_root() -> None:
    assert chains(grown([], 9)[1]) == {0: 3}


def test_without_rates_all_rows_are_drafts() -> None:
    """The likeliest paths: 10 has .5, 20 under it .4, 30 under both .2, 11 has .15, 20 there .12."""
    tree = grown([[0.5, 0.15], [0.8], [0.5]], 4, rates=[])[1]
    assert tree.token_ids == (0, 10, 20, 30, 11)
    assert tree.parents == (-1, 0, 1, 2, 0)
    assert not tree.is_probe


def test_probes_hang_where_the_walk_is_likely_to_stop() -> None:
    assert chains(grown([[0.99], [0.99]], 5)[1]) == {0: 0, 10: 0, 20: 3}, "below sure drafts"
    assert chains(grown([[0.1], [0.1]], 4)[1]) == {0: 3, 10: 0}, "above doubtful ones"


def test_a_slot_is_worth_more_where_nothing_speaks_for_the_place_yet() -> None:
    """One level down the root's chain speaks for all places but the last."""
    tree = grown([[0.5]], 5)[1]
    # Root .5, .5, .35, .35, ...: its second slot is the draft's first, so its chain is long first.
    assert chains(tree) == {0: 3, 10: 1}


def test_the_best_path_comes_first_and_probes_last() -> None:
    """An accepted best path then stays in place in the cache: no gather."""
    tree = grown([[0.3, 0.2], [0.9, 0.05], [0.9]], 20)[1]
    assert tree.token_ids[:4] == (0, 10, 20, 30)
    assert tree.parents[:4] == (-1, 0, 1, 2)
    first_probe = tree.is_probe.index(True)
    assert all(tree.is_probe[first_probe:])
    assert tree.sources[first_probe - 1 : first_probe + 1] == ("adaptive", "probe")


CHANCES = st.lists(
    st.lists(st.floats(0.001, 0.99), min_size=1, max_size=3).map(lambda c: sorted(c)[::-1]),
    max_size=4,
)


@given(
    chances=CHANCES,
    num_rows=st.integers(0, 24),
    rates=st.lists(st.floats(0.05, 0.95), max_size=5),
    max_depth=st.integers(0, 7),
)
def test_any_tree_is_within_its_limits_and_knows_who_speaks(
    chances: list[list[float]], num_rows: int, rates: list[float], max_depth: int
) -> None:
    growth, tree = grown(chances, num_rows, rates, max_depth)
    assert tree.num_nodes <= num_rows + 1
    layout = tree.layout
    flags = tree.is_probe or (False,) * tree.num_nodes
    for node in range(1, tree.num_nodes):
        assert layout.depths[node] <= max_depth - flags[node]
        assert flags[node] or not flags[tree.parents[node]], "under a probe hang probes only"
        assert flags[node] or layout.depths[node] <= len(chances)
    assert all(length <= len(rates) for length in chains(tree).values())
    # What the planner holds of every node is what a walk that stops there would find.
    for place, node in enumerate(growth._preorder()):
        path = layout.mask[place].nonzero()[:, 0].tolist()
        slots = [slot for _, slot in ready_slots(tree, path)]
        found = [rates[s - 1] * _SHIFTED ** (s - 1 - i) for i, s in enumerate(slots)]
        held = growth._held[node]
        assert [round(rate, 9) for rate in held if rate] == [round(rate, 9) for rate in found]
