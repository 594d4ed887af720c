"""Token Recycling: draft with the successors that the target saw for each token before.

Source: Token Recycling (arXiv 2408.08696). Every node of every verified tree, accepted or not, shows
the target's next-token logits. A table keeps the likeliest successors of each token; the next tree
is grown from the root token breadth first, along one fixed template of ranks.

As in the paper: one row per token, 8 successors, a budget of 80 nodes, later rows replace earlier
ones. Differs from the paper and its reference implementation:

- It samples. The table keeps logits, so that successors are ranked under the noise of the target's
  own draws; the reference ignores its temperature.
- The template is derived, not searched for: the likeliest rank paths, see `recycling_template`.
- The table belongs to one request; the reference's lives on (here `keep_table`).
- An unknown token has no children; the reference gives it eight copies of token 0.
- Where a token stands at several nodes, the last one wins; the reference leaves that to the device.
- A request begins with what follows each token in its prompt (`learn_prompt`), and a drawn token
  that is still unknown takes the logits of a node beside it (`borrow`). Both off is the paper.
- Depth 12 is allowed, not 6: the likeliest path reaches 10 with 80 nodes, and 7 with 16.
"""

from __future__ import annotations

import heapq
from collections.abc import Sequence
from functools import lru_cache
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import torch

from draftless.drafters.common import check_least, fitting_template
from draftless.engine.likeliest import Ids, Scores, likeliest
from draftless.layout import tree_layout
from draftless.types import DraftPasses, DraftTree, Row, StepRecord

RECYCLED = "recycled"  # the name of this source in `DraftTree.sources`

GREEDY_RANKS = (0.60, 0.08, 0.045, 0.025, 0.025, 0.012, 0.008, 0.008)
"""How often the target's token has this rank among the successors of the token before it.

Measured on the embedded model with 16 nodes, over the tokens with a row: 64 tokens after each of 27
validation prompts of nine domains. Ranks beyond the last one count as its equals.
"""

COUPLED_RANKS = (0.35, 0.09, 0.045, 0.02, 0.02, 0.02, 0.01, 0.01)
"""The same at temperature 1, for successors that were ranked under the noise."""

_LIKELY = 128  # successors that compete under the noise
_LIKELY_TRUNCATED = 32  # the same, where the target truncates its own tail
_FIRST_ROWS = 256  # of a table; it doubles when they are full

Path = tuple[int, ...]
Cells = tuple[tuple[int, int], ...]
"""One depth of a template: for each node its parent's place in the depth above, and its rank."""


@lru_cache(maxsize=256)
def recycling_template(
    budget: int, top_k: int, depth: int, ranks: tuple[float, ...] = GREEDY_RANKS
) -> tuple[Path, ...]:
    """The `budget - 1` likeliest rank paths, by depth and then by rank.

    A path is as likely as the product of its ranks' probabilities, so a parent always comes before
    its children and the paths form a tree; of all trees of this size it holds the most acceptance.

    Args:
        budget: nodes, the root included.
        top_k: ranks per node.
        depth: longest path.
        ranks: probability of each rank.
    """
    probabilities = [ranks[min(rank, len(ranks) - 1)] for rank in range(top_k)]
    heap: list[tuple[float, Path]] = [(-1.0, ())]
    chosen: list[Path] = []
    while heap and len(chosen) < budget:
        likelihood, path = heapq.heappop(heap)
        chosen.append(path)
        if len(path) < depth:
            for rank, probability in enumerate(probabilities):
                heapq.heappush(heap, (likelihood * probability, (*path, rank)))
    return tuple(sorted(chosen[1:], key=lambda path: (len(path), path)))


@lru_cache(maxsize=256)
def _derived_cells(
    budget: int, top_k: int, depth: int, ranks: tuple[float, ...]
) -> tuple[Cells, ...]:
    return _template_cells(recycling_template(budget, top_k, depth, ranks))


@lru_cache(maxsize=256)
def _template_cells(paths: tuple[Path, ...]) -> tuple[Cells, ...]:
    """A template as depths of (place of the parent, rank), the form in which it is expanded."""
    depths: list[list[tuple[int, int]]] = []
    places: dict[Path, int] = {(): 0}
    for path in sorted(paths, key=lambda path: (len(path), path)):
        if len(path) > len(depths):
            depths.append([])
        places[path] = len(depths[-1])
        depths[-1].append((places[path[:-1]], path[-1]))
    return tuple(tuple(cells) for cells in depths)


class SuccessorTable:
    """The likeliest successors of each token, with their logits; grows with the tokens it has seen.

    Args:
        width: successors per token.
    """

    def __init__(self, width: int) -> None:
        # Row 0 belongs to the tokens without a row: a successor with the logit -inf is none.
        self._slots: dict[int, int] = {}
        self._ids: Ids = np.zeros((_FIRST_ROWS, width), dtype=np.int64)
        self._logits: Scores = np.full((_FIRST_ROWS, width), -np.inf, dtype=np.float32)

    def __contains__(self, token_id: int) -> bool:
        return token_id in self._slots

    def learn(
        self,
        token_ids: Sequence[int],  # N
        logits: torch.Tensor,  # [N, V]
    ) -> None:
        """Set the rows of the tokens; of equal tokens the last one counts."""
        width = min(self._ids.shape[1], logits.shape[1])
        ids, values = likeliest(logits, width)
        slots = [self._slot(token_id) for token_id in token_ids]
        # NumPy leaves behind the last of several values for the same row.
        self._ids[slots, :width] = ids
        self._logits[slots, :width] = values

    def learn_text(self, token_ids: Sequence[int]) -> None:
        """Rows for unknown tokens of a text: what followed them in it, the newest first.

        There are no logits, so each place in the row lies one below the place before it.
        """
        followers: dict[int, dict[int, None]] = {}
        for index in range(len(token_ids) - 2, -1, -1):
            if token_ids[index] not in self._slots:
                followers.setdefault(token_ids[index], {})[token_ids[index + 1]] = None
        for token_id, found in followers.items():
            ids = list(found)[: self._ids.shape[1]]
            slot = self._slot(token_id)
            self._ids[slot, : len(ids)] = ids
            self._logits[slot, : len(ids)] = -np.arange(len(ids))

    def rows(self, token_ids: Sequence[int]) -> tuple[Ids, Scores]:
        """Ids and logits `[m, width]` of the tokens' successors, the likeliest first."""
        slots = [self._slots.get(token_id, 0) for token_id in token_ids]
        return self._ids[slots], self._logits[slots]

    def _slot(self, token_id: int) -> int:
        slot = self._slots.setdefault(token_id, len(self._slots) + 1)
        if slot == len(self._ids):
            self._ids = np.concatenate([self._ids, np.zeros_like(self._ids)])
            self._logits = np.concatenate([self._logits, np.full_like(self._logits, -np.inf)])
        return slot


class RecyclingDrafter:
    """Drafts a tree from recycled logits; no forward pass of its own.

    Args:
        budget: most nodes of a tree, the root included; 80 is the paper's tree.
        depth: deepest node.
        top_k: ranks that a node's children may have; 8 in the paper.
        couple: rank successors under the keyed noise of their positions when sampling.
        learn_prompt: start with what follows each token in the prompt.
        borrow: a drawn token without a row takes the logits of a draft that was rejected at its
            place, or else of the node it was drawn from: both are better hints than nothing.
        template: rank paths in the order in which a budget is spent, or a file of `draftless
            calibrate tree`; None derives them, see `recycling_template`.
        keep_table: keep one table for all requests, as the paper does, instead of one for each.
            The text of one request then shows in the drafts of later ones, and so in their
            *timing*; it never shows in their output. Leave it off where requests belong to
            people who must not learn of each other.
    """

    def __init__(  # noqa: PLR0913 - these are the options of one method
        self,
        budget: int = 80,
        depth: int = 12,
        top_k: int = 8,
        couple: bool = True,
        learn_prompt: bool = True,
        borrow: bool = True,
        keep_table: bool = False,
        template: Any = None,
    ) -> None:
        check_least("recycling", budget=(budget, 2), depth=(depth, 1), top_k=(top_k, 1))
        self._template = None if template is None else fitting_template(template, depth, top_k)
        self._budget = budget
        self._depth = depth
        self._top_k = top_k
        self._couple = couple
        self._learn_prompt = learn_prompt
        self._borrow = borrow
        self._kept: dict[int, SuccessorTable] | None = {} if keep_table else None
        self._tables: WeakKeyDictionary[Row, SuccessorTable] = WeakKeyDictionary()

    def reset(self, row: Row) -> None:
        width = self._width(row)
        table = SuccessorTable(width)
        if self._kept is not None:
            table = self._kept.setdefault(width, table)
        if self._learn_prompt:
            table.learn_text(row.token_ids)
        self._tables[row] = table

    def _is_coupled(self, row: Row) -> bool:
        return row.noise is not None and self._couple

    def _width(self, row: Row) -> int:
        """Successors per token: under noise less likely ones may win, too."""
        if not self._is_coupled(row):
            return self._top_k
        params = row.params
        return max(self._top_k, _LIKELY_TRUNCATED if params.is_truncated else _LIKELY)

    def propose(self, rows: Sequence[Row], _: DraftPasses) -> list[DraftTree]:
        return [self._tree(row, self._tables[row]) for row in rows]

    def _tree(self, row: Row, table: SuccessorTable) -> DraftTree:
        depth = min(self._depth, row.max_depth)
        token_ids, parents = [row.token_ids[-1]], [-1]
        above = [(0, row.token_ids[-1])]  # nodes and tokens of one depth; a missing one is (-1, -1)
        position = len(row.token_ids)
        for cells in self._cells(row, depth):
            if all(node < 0 for node, _ in above):
                break
            successors = self._successors(row, table, [token for _, token in above], position)
            here = []
            for place, rank in cells:
                found = successors[place]
                if rank < len(found):
                    here.append((len(token_ids), found[rank]))
                    token_ids.append(found[rank])
                    parents.append(above[place][0])
                else:
                    here.append((-1, -1))
            above = here
            position += 1
        sources = ("", *[RECYCLED] * (len(token_ids) - 1))
        return DraftTree(tuple(token_ids), tuple(parents), sources=sources)

    def _cells(self, row: Row, depth: int) -> tuple[Cells, ...]:
        """The template of a row, cut to the budget and a depth."""
        if self._template is None:
            ranks = COUPLED_RANKS if self._is_coupled(row) else GREEDY_RANKS
            return _derived_cells(self._budget, self._top_k, depth, ranks)
        paths = self._template[: self._budget - 1]
        return _template_cells(tuple(path for path in paths if len(path) <= depth))

    def future_ranks(self, row: Row, token_ids: Sequence[int]) -> Path:
        """Ranks of the tokens that follow, each among the successors of the one before, until the
        first that is none of them (`calibration.tree_search`)."""
        ranks: list[int] = []
        last = row.token_ids[-1]
        for token_id in token_ids:
            position = len(row.token_ids) + len(ranks)
            (found,) = self._successors(row, self._tables[row], [last], position)
            if token_id not in found:
                break
            ranks.append(found.index(token_id))
            last = token_id
        return tuple(ranks)

    def _successors(
        self, row: Row, table: SuccessorTable, token_ids: Sequence[int], position: int
    ) -> list[list[int]]:
        """Ranked successors of each token, for a draft that would stand at `position`."""
        ids, scores = table.rows(token_ids)
        if self._is_coupled(row):
            assert row.noise is not None
            noise = row.noise(position, torch.from_numpy(ids)).cpu().numpy()
            noisy = scores / row.params.temperature + noise
            order = np.argsort(-noisy, axis=1)[:, : self._top_k]
            ids = np.take_along_axis(ids, order, axis=1)
            scores = np.take_along_axis(scores, order, axis=1)
        counts = (scores[:, : self._top_k] > -np.inf).sum(1).tolist()
        return [found[:count] for found, count in zip(ids.tolist(), counts, strict=True)]

    def observe(self, records: Sequence[StepRecord]) -> None:
        for record in records:
            assert record.logits is not None
            tree, table = record.tree, self._tables[record.row]
            nodes = [n for n in range(tree.num_nodes) if not (tree.is_probe and tree.is_probe[n])]
            token_ids = [tree.token_ids[node] for node in nodes]
            drawn = record.row.token_ids[-1]
            if self._borrow and drawn not in table and drawn not in token_ids:
                beside = nodes_beside(tree.parents, record.verdict.path)
                stop = record.verdict.path[-1]
                nodes.append(next((node for node in beside if node in nodes), stop))
                token_ids.append(drawn)
            table.learn(token_ids, record.logits[nodes])


@lru_cache(maxsize=4096)
def nodes_beside(parents: tuple[int, ...], path: tuple[int, ...]) -> tuple[int, ...]:
    """Nodes at the place of the token that was drawn after `path`, its siblings first.

    The drawn token has no node of its own. A rejected node of its depth stands at its position and
    saw the same text, but for the tokens in which their paths differ.
    """
    depths = tree_layout(parents).depths
    beside = [node for node, depth in enumerate(depths) if depth == len(path)]
    return tuple(sorted(beside, key=lambda node: parents[node] != path[-1]))
