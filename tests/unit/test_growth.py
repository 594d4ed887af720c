"""The planner of SDSAT's trees: what is worth a row, and which slot speaks for which place."""

from __future__ import annotations

from collections.abc import Sequence

from hypothesis import given
from hypothesis import strategies as st

from draftless.drafters.growth import _SHIFTED, TreeGrowth
from draftless.drafters.sdsat import probe_chain, ready_slots
from draftless.types import DraftTree

RATES = [0.7, 0.6, 0.5]


def grown(
    chances: list[list[float]],
    num_rows: int,
    rates: list[float] = RATES,
    max_depth: int = 50,
    chain: Sequence[tuple[int, float]] = (),
) -> tuple[TreeGrowth, DraftTree]:
    """A tree whose candidate of rank `r` at depth `d` is token `10 * d + r`."""
    candidates = [
        [(10 * depth + rank, chance) for rank, chance in enumerate(found)]
        for depth, found in enumerate(chances, start=1)
    ]
    growth = TreeGrowth(candidates, rates, max_depth, chain)
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


def test_a_retrieved_chain_is_grown_like_a_candidate_of_each_depth() -> None:
    """70 .6, 20 under it .6 * .4 by the slot's share, 71 there .6 * .5, 10 beside 70 .4 * .5."""
    chain = [(70, 0.6), (71, 0.5)]
    tree = grown([[0.5], [0.8]], 4, rates=[], chain=chain)[1]
    assert tree.token_ids == (0, 70, 71, 20, 10)
    assert tree.parents == (-1, 0, 1, 1, 0)
    assert tree.sources[1:] == ("retrieval", "retrieval", "adaptive", "adaptive")
    assert grown([[0.5], [0.8]], 2, rates=[], max_depth=1, chain=chain)[1].token_ids == (0, 70, 10)


def test_a_chain_goes_on_where_no_slot_speaks_and_only_there_where_it_was_followed() -> None:
    tree = grown([[0.5]], 4, rates=[], chain=[(70, 0.9), (71, 0.9), (72, 0.9)])[1]
    assert tree.token_ids == (0, 70, 71, 72, 10)
    assert tree.parents == (-1, 0, 1, 2, 0)


def test_a_token_of_the_chain_beside_the_chain_does_not_lead_back_to_it() -> None:
    tree = grown([[0.6], [0.9]], 6, rates=[], chain=[(70, 0.5), (20, 0.9), (72, 0.9)])[1]
    assert tree.token_ids.count(20) == 2
    (last,) = [node for node in range(tree.num_nodes) if tree.token_ids[node] == 72]
    assert tree.token_ids[tree.parents[tree.parents[last]]] == 70


def test_a_token_that_both_know_is_one_node_and_likelier() -> None:
    """10 has .4 + .6 * .5 = .7, so it comes before 11 with .6 * .4, and 20 stands under it."""
    tree = grown([[0.5, 0.4], [0.3]], 3, rates=[], chain=[(10, 0.4)])[1]
    assert tree.token_ids == (0, 10, 11, 20) or tree.token_ids == (0, 10, 20, 11)
    assert tree.sources[1] == "adaptive"


CHANCES = st.lists(
    st.lists(st.floats(0.001, 0.99), min_size=1, max_size=3).map(lambda c: sorted(c)[::-1]),
    max_size=4,
)


@given(
    chances=CHANCES,
    num_rows=st.integers(0, 24),
    rates=st.lists(st.floats(0.05, 0.95), max_size=5),
    max_depth=st.integers(0, 7),
    chain=st.lists(
        st.tuples(st.sampled_from([10, 11, 20, 70]), st.floats(0.001, 0.99)), max_size=4
    ),
)
def test_any_tree_is_within_its_limits_and_knows_who_speaks(
    chances: list[list[float]],
    num_rows: int,
    rates: list[float],
    max_depth: int,
    chain: list[tuple[int, float]],
) -> None:
    growth, tree = grown(chances, num_rows, rates, max_depth, chain)
    assert tree.num_nodes <= num_rows + 1
    layout = tree.layout
    flags = tree.is_probe or (False,) * tree.num_nodes
    for node in range(1, tree.num_nodes):
        assert layout.depths[node] <= max_depth - flags[node]
        assert flags[node] or not flags[tree.parents[node]], "under a probe hang probes only"
        assert flags[node] or layout.depths[node] <= max(len(chances), len(chain))
        siblings = [c for c in layout.children[tree.parents[node]] if not flags[c]]
        assert len({tree.token_ids[c] for c in siblings}) == len(siblings)
    drafts = [node for node in range(tree.num_nodes) if not flags[node]]
    assert all(len(probe_chain(tree, node)) <= len(rates) for node in drafts)
    # What the planner holds of every node is what a walk that stops there would find.
    for place, node in enumerate(growth._preorder()):
        path = layout.mask[place].nonzero()[:, 0].tolist()
        slots = [slot for _, slot in ready_slots(tree, path)]
        found = [rates[s - 1] * _SHIFTED ** (s - 1 - i) for i, s in enumerate(slots)]
        held = growth._held[node]
        assert [round(rate, 9) for rate in held if rate] == [round(rate, 9) for rate in found]
