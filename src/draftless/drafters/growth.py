"""Which drafts and which probes are worth their rows: a tree grown by expected gain.

A draft gains the chance that the walk reaches it: one more token in this step. A probe, slot `m` under
a node, gains tokens in the next step: the chance that the walk stops at the node, times the chance
that the next drafts hold through the slots before it, times what it is more often right than the slot
that would otherwise speak for that place. It speaks as well for the nodes below that have no slot of
their own there (`ready_slots` in `sdsat.py` is the other side of this).
"""

from __future__ import annotations

import heapq
from collections.abc import Iterator, Sequence

from draftless.drafters.ngram import RETRIEVAL
from draftless.types import DraftTree

ADAPTIVE, PROBE = "adaptive", "probe"  # the sources of drafts and of probes

_SHIFTED = 0.9  # a slot that speaks for a node below has not seen it: its rate falls per level
_DOUBT = 0.01  # a walk may always stop, however sure the drafts below look
_SAME = 1e-9  # a gain that fell by less is still the one that was expected


class TreeGrowth:
    """Grows one tree; its nodes here are the root and the drafts, each with a chain of probes.

    Args:
        candidates: per depth, tokens and the chance of each if all before are accepted, best first.
        rates: per slot, how often it is right; as many as a chain may have probes.
        chain: one path whose tokens are known from elsewhere, and the chance of each likewise.
        max_depth: deepest useful draft. A probe at this depth or below would speak for places
            that no later step drafts.
    """

    def __init__(
        self,
        candidates: Sequence[Sequence[tuple[int, float]]],
        rates: Sequence[float],
        max_depth: int,
        chain: Sequence[tuple[int, float]] = (),
    ) -> None:
        self._candidates = candidates[:max_depth]
        self._chain = chain[:max_depth]
        # What may follow a node of the chain: the candidates of its depth and the chain's next token.
        self._beside_chain = [
            _joined(token, chance, self._candidates[depth] if depth < len(self._candidates) else ())
            for depth, (token, chance) in enumerate(self._chain)
        ]
        self._on_chain: list[bool] = []
        self._rates = rates
        self._max_depth = max_depth
        self._heap: list[tuple[float, int, int, int]] = []  # -gain, order, node, rank or -1
        self._order = 0
        self._tokens: list[int] = []
        self._parents: list[int] = []
        self._depths: list[int] = []
        self._children: list[list[int]] = []
        self._reach: list[float] = []  # chance that the walk gets here
        self._stop: list[float] = []  # ... and no further
        self._num_probes: list[int] = []
        # Per node and slot, how often the probe that speaks for it is right, and its distance up.
        self._held: list[list[float]] = []
        self._from: list[list[int]] = []
        self._add_node(-1, -1, 1.0)

    def spend(self, num_rows: int) -> None:
        """Add up to so many nodes, each time the one with the largest gain."""
        while num_rows > 0 and self._heap:
            gain, _, node, rank = heapq.heappop(self._heap)
            if rank >= 0:
                token_id, chance = self._options(node)[rank]
                self._add_node(node, token_id, self._reach[node] * chance)
                self._push_draft(node, rank + 1)
            elif self._gain_of_probe(node) < -gain - _SAME:
                self._push_probe(node)
                continue
            else:
                self._add_probe(node)
            num_rows -= 1

    def _add_node(self, parent: int, token_id: int, reach: float) -> None:
        node, num_slots = len(self._tokens), len(self._rates)
        self._tokens.append(token_id)
        self._parents.append(parent)
        self._children.append([])
        self._reach.append(reach)
        self._stop.append(reach)
        self._num_probes.append(0)
        if parent < 0:
            self._depths.append(0)
            self._on_chain.append(True)
            self._held.append([0.0] * num_slots)
            self._from.append([num_slots] * num_slots)
        else:
            self._on_chain.append(self._carries_chain(parent, token_id))
            self._depths.append(self._depths[parent] + 1)
            self._children[parent].append(node)
            doubt = _DOUBT * self._reach[parent]
            self._stop[parent] = max(doubt, self._stop[parent] - reach)
            held = [rate * _SHIFTED for rate in self._held[parent][1:]]
            self._held.append([*held, 0.0][:num_slots])
            self._from.append([*(up + 1 for up in self._from[parent][1:]), num_slots][:num_slots])
        self._push_draft(node, 0)
        self._push_probe(node)

    def _options(self, node: int) -> Sequence[tuple[int, float]]:
        """What may follow a node, the likeliest first."""
        depth = self._depths[node]
        if self._on_chain[node] and depth < len(self._chain):
            return self._beside_chain[depth]
        return self._candidates[depth] if depth < len(self._candidates) else ()

    def _carries_chain(self, parent: int, token_id: int) -> bool:
        depth = self._depths[parent]
        is_next = depth < len(self._chain) and self._chain[depth][0] == token_id
        return self._on_chain[parent] and is_next

    def _push_draft(self, node: int, rank: int) -> None:
        options = self._options(node)
        if rank < len(options):
            self._push(self._reach[node] * options[rank][1], node, rank)

    def _push_probe(self, node: int) -> None:
        num_probes = self._num_probes[node]
        room = self._max_depth - 1 - self._depths[node]
        if num_probes < min(len(self._rates), room):
            self._push(self._gain_of_probe(node), node, -1)

    def _push(self, gain: float, node: int, rank: int) -> None:
        if gain > 0.0:
            self._order += 1
            heapq.heappush(self._heap, (-gain, self._order, node, rank))

    def _add_probe(self, node: int) -> None:
        slot = self._num_probes[node]
        self._num_probes[node] += 1
        for below, up in self._spoken_for(node, slot):
            self._held[below][slot - up] = self._rates[slot] * _SHIFTED**up
            self._from[below][slot - up] = up
        self._push_probe(node)

    def _gain_of_probe(self, node: int) -> float:
        """Tokens that the next probe under `node` is expected to bring in the next step."""
        slot = self._num_probes[node]
        gain = 0.0
        for below, up in self._spoken_for(node, slot):
            held = self._held[below]
            rate = self._rates[slot] * _SHIFTED**up
            better = self._stop[below] * (rate - held[slot - up])
            for before in held[: slot - up]:
                better *= before
            gain += better
        return gain

    def _spoken_for(self, node: int, slot: int) -> Iterator[tuple[int, int]]:
        """Nodes for which this slot would be the nearest at its place, and their distances."""
        level, up = [node], 0
        while level and up <= slot:
            for below in level:
                if self._from[below][slot - up] > up:
                    yield below, up
            level = [child for below in level for child in self._children[below]]
            up += 1

    def tree(self, root: int, adaptive_ids: Sequence[int]) -> DraftTree:
        """The tree: drafts first, the best path before all others (it then stays in place in the
        cache), probes behind them."""
        order = self._preorder()
        place = {node: index for index, node in enumerate(order)}
        token_ids = [root, *(self._tokens[node] for node in order[1:])]
        parents = [-1, *(place[self._parents[node]] for node in order[1:])]
        num_drafts = len(order) - 1
        for node in order:
            above = place[node]
            for slot in range(self._num_probes[node]):
                parents.append(above)
                above = len(token_ids)
                token_ids.append(adaptive_ids[min(slot, len(adaptive_ids) - 1)])
        num_probes = len(token_ids) - 1 - num_drafts
        return DraftTree(
            tuple(token_ids),
            tuple(parents),
            is_probe=(*[False] * (1 + num_drafts), *[True] * num_probes) if num_probes else (),
            sources=("", *map(self._source, order[1:]), *[PROBE] * num_probes),
        )

    def _source(self, node: int) -> str:
        """Adaptive where a slot says the token, too."""
        depth = self._depths[node] - 1
        said = self._candidates[depth] if depth < len(self._candidates) else ()
        is_adaptive = any(token_id == self._tokens[node] for token_id, _ in said)
        return ADAPTIVE if is_adaptive or not self._on_chain[node] else RETRIEVAL

    def _preorder(self) -> list[int]:
        order, stack = [], [0]
        while stack:
            node = stack.pop()
            order.append(node)
            stack.extend(reversed(self._children[node]))
        return order


def _joined(
    token_id: int, chance: float, candidates: Sequence[tuple[int, float]]
) -> list[tuple[int, float]]:
    """Candidates and one token from elsewhere: right by either of them, or by what is left."""
    found = {candidate: share * (1.0 - chance) for candidate, share in candidates}
    found[token_id] = found.get(token_id, 0.0) + chance
    return sorted(found.items(), key=lambda pair: -pair[1])
