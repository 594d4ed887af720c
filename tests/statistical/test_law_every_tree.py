"""The law, first proof: for every tree and every table of draws, the walk emits plain decoding.

Vocabulary of two, three positions. A table gives the target's draw after each of the seven
prefixes; plain decoding just reads it. The tables stand for whatever noise the draws used, so a
drafter that has looked at the noise is covered: any tree goes with any table. One step suffices,
because every step begins the same way after whatever was committed.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from itertools import product

import pytest

from draftless.engine.verify import walk
from draftless.types import DraftTree, FinishReason

Prefix = tuple[int, ...]
Draw = Callable[[int, Sequence[int]], int]

NUM_POSITIONS = 3
PREFIXES = [p for n in range(NUM_POSITIONS) for p in product((0, 1), repeat=n)]
TABLES = [dict(zip(PREFIXES, t, strict=True)) for t in product((0, 1), repeat=len(PREFIXES))]


def plain(table: dict[Prefix, int]) -> list[int]:
    tokens: list[int] = []
    while len(tokens) < NUM_POSITIONS:
        tokens.append(table[tuple(tokens)])
    return tokens


PLAIN = [plain(table) for table in TABLES]


def trees(num_nodes: int, *, probes: bool) -> Iterator[DraftTree]:
    """Every tree of so many nodes; with `probes`, every set of probes with only probes below."""
    for parents in product(*(range(node) for node in range(1, num_nodes))):
        for flags in probe_sets(parents) if probes else [()]:
            for tokens in product((0, 1), repeat=num_nodes - 1):
                yield DraftTree((0, *tokens), (-1, *parents), flags)


def probe_sets(parents: Sequence[int]) -> Iterator[tuple[bool, ...]]:
    for flags in product((False, True), repeat=len(parents)):
        if any(flags) and all(flags[n] or not (p and flags[p - 1]) for n, p in enumerate(parents)):
            yield (False, *flags)


def prefixes(tree: DraftTree) -> list[Prefix]:
    """The tokens on the way to each node, the root's left out."""
    found: list[Prefix] = [()]
    for node in range(1, tree.num_nodes):
        found.append((*found[tree.parents[node]], tree.token_ids[node]))
    return found


def draw_from(table: dict[Prefix, int], at: Sequence[Prefix]) -> Draw:
    """The draw belongs to the node: its logits know the node's own prefix."""
    return lambda node, _path_ids: table[at[node]]


def draw_of_text(text: Sequence[int], at: Sequence[Prefix]) -> Draw:
    """Fails at a node that is not on the text, or if the path is not the node's own."""

    def draw(node: int, path_ids: Sequence[int]) -> int:
        assert at[node] == tuple(path_ids) == text[: len(path_ids)]
        return text[len(path_ids)]

    return draw


class Stop:
    """Ends the text after three tokens."""

    def __init__(self) -> None:
        self.num_tokens = 0

    def __call__(self, _token_id: int) -> FinishReason | None:
        self.num_tokens += 1
        return "length" if self.num_tokens == NUM_POSITIONS else None


@pytest.mark.parametrize(
    ("num_nodes", "probes"),
    [*((n, False) for n in range(1, 7)), *((n, True) for n in range(2, 6))],
)
def test_every_tree_with_every_table(num_nodes: int, probes: bool) -> None:
    for tree in trees(num_nodes, probes=probes):
        at = prefixes(tree)
        for table, wanted in zip(TABLES, PLAIN, strict=True):
            verdict = walk(tree, draw_from(table, at), Stop())
            emitted = verdict.token_ids
            assert emitted and list(emitted) == wanted[: len(emitted)], (tree, table)
            assert [at[node] for node in verdict.path] == [
                emitted[:depth] for depth in range(len(verdict.path))
            ], "what stays in the cache is what was emitted, but for the last token"


def test_probes_in_trees_of_six_nodes() -> None:
    """As above for the largest trees, over the eight texts instead of all 128 tables.

    A draw anywhere but on the text fails, so the entries of a table beside the text cannot matter.
    """
    for tree in trees(6, probes=True):
        at = prefixes(tree)
        for wanted in product((0, 1), repeat=NUM_POSITIONS):
            emitted = walk(tree, draw_of_text(wanted, at), Stop()).token_ids
            assert emitted and emitted == wanted[: len(emitted)], tree


def test_the_proof_can_fail() -> None:
    """A probe that is accepted has a node whose logits belong to another prefix."""
    tree = DraftTree((0, 1, 0), (-1, 0, 1), (False, True, True))
    wrong = DraftTree(tree.token_ids, tree.parents)
    assert walk(tree, lambda *_: 1, Stop()).path == (0,)
    assert walk(wrong, lambda *_: 1, Stop()).path == (0, 1)
