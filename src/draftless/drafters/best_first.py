"""A draft tree that grows best first: drafts and probes by what each is expected to bring.

A draft gains the chance that the walk reaches it: one more token in this step. A probe gains tokens in
the next step: the chance that the walk stops above it, times what its slot has been worth there.
Nodes are added in the order of their gains, so the first `n` of them are the best tree of that size.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence

from draftless.drafters.fusion import Found, Fusion
from draftless.drafters.sources import Sources
from draftless.types import DraftTree

FUSED, PROBE = "fused", "probe"

DOUBT = 0.02  # a walk may always stop, however sure the drafts below look

# Of a chance, per place from the third on. Each chance by itself holds what it promises, but a long path
# is in the tree because all of its chances look good: of those 5 to 11 deep 0.75 to 0.83 of what they
# promised was accepted (validation prompts).
FADE, FADES_FROM = 0.93, 3

_CLOSED = -2  # in place of a rank: the node's own candidates, which gain no more than it does


class BestFirst:
    """Grows the tree of one row; its nodes here are the root and the drafts, each with its probes.

    Args:
        sources: where candidates come from.
        fusion: how likely they are.
        worth: per slot, tokens that its probe brings in the next step if the walk stops above it.
        max_depth: deepest useful draft.

    Attributes:
        gains: of the root (1) and of what was added, in order.
    """

    def __init__(
        self, sources: Sources, fusion: Fusion, worth: Sequence[float], max_depth: int
    ) -> None:
        self._sources = sources
        self._fusion = fusion
        self._worth = worth
        self._max_depth = max_depth
        self._heap: list[
            tuple[float, int, int, int]
        ] = []  # -gain, order, node, and rank, -1 or _CLOSED
        self._order = 0
        self._added: list[int] = []  # a draft's node, or ~node of a probe's
        self.gains = [1.0]
        self._least = self._floor = 0.0
        self.token_ids: list[int] = []
        self._parents: list[int] = []
        self._depths: list[int] = []
        self.reach: list[float] = []  # chance that the walk gets here
        self._stop: list[float] = []  # ... and no further
        self._contexts: list[tuple[int, ...]] = []
        self.found: list[tuple[Found, int]] = []
        self._options: list[list[tuple[float, int]]] = []
        self._num_probes: list[int] = []

    def grow(self, costs: Sequence[float], worth: float = 1.0) -> None:
        """Add nodes while the next one gains more than its place costs.

        Args:
            costs: per width, from 1 on, what the next place costs at least.
            worth: of a unit of costs, in tokens.
        """
        self._least = worth * costs[0]
        self._floor = worth * min(costs)
        self._add_node(-1, self._sources.end[0], 1.0)
        self._open(0)
        heap, gains, limit = self._heap, self.gains, len(costs)
        while heap and len(gains) < limit:
            gain = -heap[0][0]
            self._least = worth * costs[len(gains) - 1]
            if gain < self._least:
                break
            _, _, node, rank = heapq.heappop(heap)
            if rank == _CLOSED:
                self._open(node)
                continue
            gains.append(gain)
            if rank >= 0:
                options = self._options[node]
                self._added.append(len(self.token_ids))
                chance, token_id = options[rank]
                if rank + 1 < len(options):
                    self._push(self.reach[node] * options[rank + 1][0], node, rank + 1)
                self._add_node(node, token_id, self.reach[node] * chance)
            else:
                self._added.append(~node)
                self._num_probes[node] += 1
                self._push_probe(node)

    def _add_node(self, parent: int, token_id: int, reach: float) -> None:
        """A node whose candidates are not asked for before their turn can come."""
        node = len(self.token_ids)
        self.token_ids.append(token_id)
        self._parents.append(parent)
        self._depths.append(self._depths[parent] + 1 if node else 0)
        self.reach.append(reach)
        self._num_probes.append(0)
        self._contexts.append(())
        self.found.append(([], 0))
        self._options.append([])
        self._stop.append(reach)
        if node:
            self._push(reach, node, _CLOSED)

    def _open(self, node: int) -> None:
        """Ask for the candidates of a node."""
        sources, token_id, depth = self._sources, self.token_ids[node], self._depths[node]
        parent, reach = self._parents[node], self.reach[node]
        if node:
            before = self.token_ids[parent]
            context = sources.index.after(self._contexts[parent], token_id)
        else:
            before, context = sources.end[1], sources.context
        self._contexts[node] = context
        stop = reach
        if depth < self._max_depth:
            found = self.found[node] = sources.found(context, before, token_id, depth + 1)
            options = self._fusion.chances(*found)
            if depth + 1 >= FADES_FROM:
                options = [(FADE * chance, candidate) for chance, candidate in options]
            self._options[node] = options
            if options:
                self._push(reach * options[0][0], node, 0)
                for chance, _ in options:
                    if reach * chance < self._least:
                        break
                    stop -= reach * chance
        self._stop[node] = max(DOUBT * reach, stop)
        if self._worth:
            self._push_probe(node)

    def _push_probe(self, node: int) -> None:
        slot = self._num_probes[node]
        if slot < len(self._worth) and self._depths[node] + slot + 1 < self._max_depth:
            self._push(self._stop[node] * self._worth[slot], node, -1)

    def _push(self, gain: float, node: int, rank: int) -> None:
        if gain < self._floor:
            return
        self._order += 1
        heapq.heappush(self._heap, (-gain, self._order, node, rank))

    def tree(self, width: int, adaptive_ids: Sequence[int]) -> DraftTree:
        """The best tree of `width` nodes or fewer: drafts first, the best path before all others (it
        then stays in place in the cache), probes behind them.

        Afterwards `nodes` are the nodes here of the tree's drafts, and `probes` the tree's nodes of
        the chain of probes under each.
        """
        children: list[list[int]] = [[] for _ in self.token_ids]
        num_probes = [0] * len(self.token_ids)
        for added in self._added[: width - 1]:
            if added >= 0:
                children[self._parents[added]].append(added)
            else:
                num_probes[~added] += 1
        nodes, stack = [], [0]
        while stack:
            node = stack.pop()
            nodes.append(node)
            stack.extend(reversed(children[node]))
        place = {node: index for index, node in enumerate(nodes)}
        token_ids = [self.token_ids[node] for node in nodes]
        parents = [-1, *(place[self._parents[node]] for node in nodes[1:])]
        scores = [self.reach[node] for node in nodes]
        self.nodes = nodes
        self.probes: list[list[int]] = [[] for _ in nodes]
        for index, node in enumerate(nodes):
            above = index
            for slot in range(num_probes[node]):
                parents.append(above)
                above = len(token_ids)
                self.probes[index].append(above)
                token_ids.append(adaptive_ids[min(slot, len(adaptive_ids) - 1)])
                scores.append(self._stop[node])
        total = len(token_ids) - len(nodes)
        return DraftTree(
            tuple(token_ids),
            tuple(parents),
            is_probe=(*[False] * len(nodes), *[True] * total) if total else (),
            scores=tuple(scores),
            sources=("", *[FUSED] * (len(nodes) - 1), *[PROBE] * total),
        )
