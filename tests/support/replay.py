"""A drafter that knows the plain text and plants what a verifier could fall for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from draftless.types import DraftTree, Row, StepRecord
from support.models import VOCAB_SIZE

_LOOK_BEYOND = 2  # depth that a tree has beyond the stop
_LAST_STRETCH = 6  # so many tokens before the stop, one tree goes through to it


@dataclass
class Planter:
    """Grows one tree along the true text. `truth[d - 1]` is the true token at depth `d`."""

    root: int
    truth: Sequence[int]
    token_ids: list[int] = field(init=False)
    parents: list[int] = field(init=False)
    is_probe: list[bool] = field(init=False)

    def __post_init__(self) -> None:
        self.token_ids, self.parents, self.is_probe = [self.root], [-1], [False]

    def add(self, parent: int, token_id: int, *, probe: bool = False) -> int:
        self.token_ids.append(token_id)
        self.parents.append(parent)
        self.is_probe.append(probe)
        return len(self.parents) - 1

    def right(self, depth: int) -> int:
        return self.truth[depth - 1]

    def wrong(self, depth: int, offset: int = 1) -> int:
        return (self.right(depth) + offset) % VOCAB_SIZE

    def tree(self) -> DraftTree:
        return DraftTree(tuple(self.token_ids), tuple(self.parents), tuple(self.is_probe))


def among_siblings(plant: Planter, depth: int) -> None:
    """The right token comes last: after a wrong one with a right tail, and a probe carrying it."""
    node = 0
    for d in range(1, depth + 1):
        wrong = plant.add(node, plant.wrong(d))
        if d < depth:
            plant.add(wrong, plant.right(d + 1))
        probe = plant.add(node, plant.right(d), probe=True)
        if d < depth:
            plant.add(probe, plant.right(d + 1), probe=True)
        node = plant.add(node, plant.right(d))


def wrong_tail(plant: Planter, depth: int) -> None:
    """Right down to `depth - 1` on each of two equal siblings, wrong from there on."""
    first = node = plant.add(0, plant.right(1))
    for d in range(2, depth):
        node = plant.add(node, plant.right(d))
    plant.add(node, plant.wrong(depth, 2))
    last = plant.add(node, plant.wrong(depth))
    plant.add(last, plant.right(depth + 1))
    twin = plant.add(0, plant.token_ids[first])
    plant.add(twin, plant.right(2))


def all_wrong(plant: Planter, depth: int) -> None:
    """No draft is right; a probe carries the right token, and right tails hang under wrong ones."""
    probe = plant.add(0, plant.right(1), probe=True)
    plant.add(probe, plant.right(2), probe=True)
    for offset in range(1, depth + 1):
        node = plant.add(0, plant.wrong(1, offset))
        plant.add(node, plant.right(2))


def right_chain(plant: Planter, depth: int) -> None:
    """Nothing but the truth."""
    node = 0
    for d in range(1, depth + 1):
        node = plant.add(node, plant.right(d))


def probes_only(plant: Planter, depth: int) -> None:
    """A chain of probes under the root; what they carry is wrong."""
    node = 0
    for d in range(1, depth + 1):
        node = plant.add(node, plant.wrong(d, d), probe=True)


def bushy(plant: Planter, depth: int) -> None:
    """Right tokens in the middle of wrong ones; each wrong one repeats the chain so far."""
    node = 0
    for d in range(1, depth + 1):
        for offset in (3, 7):
            plant.add(plant.add(node, plant.wrong(d, offset)), plant.right(d))
        below = plant.add(node, plant.right(d))
        plant.add(node, plant.wrong(d, 11))
        node = below


def crowd(plant: Planter, depth: int) -> None:
    """So many wrong tokens and not the right one that almost any other draw hits one of them."""
    for offset in range(1, VOCAB_SIZE - depth):
        plant.add(0, plant.wrong(1, offset))


def cut(plant: Planter, depth: int) -> None:
    """Nothing at all: a plain step between drafted ones."""


PLANS: tuple[tuple[Callable[[Planter, int], None], int], ...] = (
    (wrong_tail, 3),
    (all_wrong, 2),
    (among_siblings, 3),
    (crowd, 1),
    (probes_only, 3),
    (right_chain, 4),
    (cut, 0),
    (bushy, 3),
)


class ReplayDrafter:
    """Plays the plans in turn, starting elsewhere in every row; goes through to each stop.

    Args:
        texts: per request id, the plain new ids, going on for some tokens beyond the stop.
        stops: per request id, how many new ids the request will emit.
    """

    def __init__(self, texts: Sequence[Sequence[int]], stops: Sequence[int]) -> None:
        self._texts = texts
        self._stops = stops
        self._num_steps: dict[int, int] = {}

    def reset(self, row: Row) -> None:
        self._num_steps[row.request_id] = 0

    def propose(self, rows: Sequence[Row], _: object) -> list[DraftTree]:
        return [self._tree(row) for row in rows]

    def _tree(self, row: Row) -> DraftTree:
        step = self._num_steps[row.request_id]
        self._num_steps[row.request_id] += 1
        done = len(row.token_ids) - row.prompt_len
        truth = [*self._texts[row.request_id][done:], *[0] * (_LAST_STRETCH + _LOOK_BEYOND)]
        left = self._stops[row.request_id] - done
        plant = Planter(row.token_ids[-1], truth)
        if 0 < left <= _LAST_STRETCH:
            among_siblings(plant, left + _LOOK_BEYOND)
        elif plant.root in truth[:4] and step >= len(PLANS) // 2:
            # The leaf's draw repeats the root, which MSN's reference takes for one more draft.
            right_chain(plant, truth.index(plant.root))
        else:
            plan, depth = PLANS[step % len(PLANS)]
            plan(plant, depth)
        # Deeper than max_depth on purpose: the loop must prune.
        return plant.tree()

    def observe(self, records: Sequence[StepRecord]) -> None:
        """Nothing to learn."""


def coverage(steps: Sequence[StepRecord]) -> set[str]:
    """Which situations a request went through."""
    seen: set[str] = set()
    for record in steps:
        tree, verdict = record.tree, record.verdict
        accepted = verdict.num_accepted_tokens
        if tree.num_draft_tokens and not accepted:
            seen.add("nothing")
        if accepted and verdict.last_kind == "recovered":
            seen.add("part")
        if accepted and verdict.last_kind == "bonus":
            seen.add("everything")
        children = tree.layout.children
        if any(children[tree.parents[node]][0] != node for node in verdict.path[1:]):
            seen.add("later sibling")
        carriers = (
            c for c in children[verdict.path[-1]] if tree.token_ids[c] == verdict.token_ids[-1]
        )
        if any(tree.is_probe and tree.is_probe[c] for c in carriers):
            seen.add("right probe")
        if verdict.finish_reason and accepted:
            seen.add("stop in block")
    return seen


EVERYTHING = {"nothing", "part", "everything", "later sibling", "right probe", "stop in block"}
