"""The nucleus rule of SDSAT's reference implementation, which no test of the law may let pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from itertools import pairwise

from draftless.types import DraftTree, FinishReason, Verdict


def nucleus_of_sdsat(
    tree: DraftTree,
    draw: Callable[[int, Sequence[int]], int],
    stop: Callable[[int], FinishReason | None],
) -> Verdict:
    """Every path of drafts draws at each of its nodes anew, the one that gets furthest wins, and its
    last token is drawn once more (seed-methods.md 2.4, bugs 1 and 2; stops are honoured here).

    Args:
        tree: what was proposed.
        draw: a new, independent draw with every call.
        stop: told every committed token.
    """
    drafts = [node for node in range(1, tree.num_nodes) if not is_probe(tree, node)]
    inner = {tree.parents[node] for node in drafts}
    best: list[int] = [0]
    for leaf in (node for node in drafts if node not in inner):
        path = tree.layout.mask[leaf].nonzero()[:, 0].tolist()
        kept, ids = [0], []
        for node, child in pairwise(path):
            if draw(node, ids) != tree.token_ids[child]:
                break
            kept.append(child)
            ids.append(tree.token_ids[child])
        best = max(best, kept, key=len)
    token_ids = [tree.token_ids[node] for node in best[1:]]
    token_ids.append(draw(best[-1], token_ids))
    for count, token_id in enumerate(token_ids, start=1):
        reason = stop(token_id)
        if reason:
            return Verdict(tuple(best[:count]), tuple(token_ids[:count]), "stopped", reason)
    return Verdict(tuple(best), tuple(token_ids), "bonus")


def is_probe(tree: DraftTree, node: int) -> bool:
    return bool(tree.is_probe) and tree.is_probe[node]
