"""Verification: one pure walk for every drafter, greedy and sampled (DESIGN 2, peers.md 3.2).

At each node the target's own token is drawn once. If a child carries it, the walk goes there;
if not, that draw is the next token and nothing is drawn again. So each emitted token is the
target's own draw, whatever the tree is: exact for any tree.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from draftless.types import DraftTree, FinishReason, LastKind, Verdict


def walk(
    tree: DraftTree,
    draw: Callable[[int, Sequence[int]], int],
    stop: Callable[[int], FinishReason | None],
) -> Verdict:
    """Walk down `tree` while a child carries the target's token.

    Args:
        tree: what was proposed.
        draw: `draw(node, path_ids)`, the target's token at `node`, after the committed ids and
            the `path_ids` that this walk has committed so far; called once per committed token.
        stop: told every committed token, in order; a reason ends the walk with that token.
    """
    path = [0]
    committed: list[int] = []
    while True:
        token_id = draw(path[-1], committed)
        committed.append(token_id)
        reason = stop(token_id)
        child = None if reason else tree.child_carrying(path[-1], token_id)
        if child is None:
            break
        path.append(child)
    return Verdict(tuple(path), tuple(committed), _last_kind(tree, path[-1], reason), reason)


def _last_kind(tree: DraftTree, node: int, reason: FinishReason | None) -> LastKind:
    if reason:
        return "stopped"
    children = tree.layout.children[node]
    has_drafts = any(not (tree.is_probe and tree.is_probe[child]) for child in children)
    return "recovered" if has_drafts else "bonus"
