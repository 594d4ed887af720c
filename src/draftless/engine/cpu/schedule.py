"""From nodes to steps: what is computed together for a token, and where its numbers lie."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from draftless.engine.cpu.values import Attend, Instruct, Linear, Node, Placed, Storage, View

_ALIGNED = 16  # floats of a token's room; and 64 bytes of a buffer


class Room:
    """Hands out numbers of an address space, first fit."""

    def __init__(self, aligned: int) -> None:
        self._aligned = aligned
        self._taken: list[tuple[int, int]] = []
        self.size = 0

    def take(self, size: int) -> int:
        # What is nothing takes something, too: its begin is its name.
        size = max(1, -(-size // self._aligned)) * self._aligned
        begin = 0
        for index, (start, end) in enumerate(self._taken):  # noqa: B007 - where to insert
            if begin + size <= start:
                break
            begin = end
        else:
            index = len(self._taken)
        self._taken.insert(index, (begin, begin + size))
        self.size = max(self.size, begin + size)
        return begin

    def give(self, begin: int) -> None:
        self._taken = [one for one in self._taken if one[0] != begin]


@dataclass(eq=False, slots=True)
class TokensStep:
    """Instructions for every token.

    Attributes:
        loads, stores: storage that lies in a buffer, before and after.
        instructions: between them.
        places: the first float of each storage in a token's room.
        room: floats.
    """

    instructions: list[Instruct]
    loads: list[Storage] = field(default_factory=list)
    stores: list[Storage] = field(default_factory=list)
    places: dict[Storage, int] = field(default_factory=dict)
    room: int = 0


Step = TokensStep | Linear | Attend


@dataclass(eq=False, slots=True)
class Schedule:
    """Steps in order.

    Attributes:
        steps: the steps.
        offsets: of storage in a buffer, bytes a token; the output is not among them.
        bytes_per_token: of all buffers.
    """

    steps: list[Step]
    offsets: dict[Storage, int]
    bytes_per_token: int


def reads_of(node: Node) -> list[Storage]:
    if isinstance(node, Linear):
        return [node.x.storage]
    if isinstance(node, Attend):
        return [node.query.storage, node.key.storage, node.value.storage]
    placed = [one.storage for one in (node.a, node.b) if one is not None]
    return [one for one in placed if isinstance(one, Storage)]


def write_of(node: Node) -> Storage:
    if isinstance(node, Instruct):
        assert isinstance(node.out.storage, Storage)
        return node.out.storage
    return node.out


def schedule(nodes: Sequence[Node], inputs: Iterable[Storage], result: View) -> Schedule:
    """Order nodes into steps and place their storage.

    Args:
        nodes: as lowered.
        inputs: storage of tokens and positions, which every step makes for itself.
        result: what is wanted; its storage is the output.
    """
    inputs = set(inputs)
    groups = _groups(_needed(nodes, result.storage))
    made_in: dict[Storage, int] = {}
    last_read: dict[Storage, int] = {}
    for index, group in enumerate(groups):
        for node in group:
            made_in.setdefault(write_of(node), index)
            for storage in reads_of(node):
                last_read[storage] = index
    whole = [isinstance(group[0], Linear | Attend) for group in groups]
    in_buffers = {
        storage
        for storage, index in made_in.items()
        if whole[index] or last_read.get(storage, index) > index or storage is result.storage
    }
    steps: list[Step] = []
    for index, group in enumerate(groups):
        if isinstance(group[0], Linear | Attend):
            steps.append(group[0])
            continue
        step = TokensStep([node for node in group if isinstance(node, Instruct)])
        made = {write_of(node) for node in group}
        step.stores = [one for one in dict.fromkeys(map(write_of, group)) if one in in_buffers]
        read = dict.fromkeys(storage for node in group for storage in reads_of(node))
        step.loads = [one for one in read if one not in made]
        _place(step)
        steps.append(step)
        assert all(one in inputs or made_in[one] < index for one in step.loads)
    offsets, size = _buffers(groups, made_in, last_read, in_buffers - {result.storage})
    return Schedule(steps, offsets, size)


def _needed(nodes: Sequence[Node], result: Storage) -> list[Node]:
    wanted, kept = {result}, []
    for node in reversed(nodes):
        if write_of(node) in wanted or isinstance(node, Attend):  # attention writes the cache
            kept.append(node)
            wanted.update(reads_of(node))
    return kept[::-1]


def _groups(nodes: Sequence[Node]) -> list[list[Node]]:
    """Neighbouring instructions together, products and attention alone."""
    groups: list[list[Node]] = []
    for node in nodes:
        if groups and isinstance(node, Instruct) and isinstance(groups[-1][0], Instruct):
            groups[-1].append(node)
        else:
            groups.append([node])
    return groups


def _place(step: TokensStep) -> None:
    """Give every storage of a step its floats; what was read for the last time makes room."""
    last = {one: index for index, node in enumerate(step.instructions) for one in reads_of(node)}
    last |= dict.fromkeys(step.stores, len(step.instructions))
    room = Room(_ALIGNED)
    for storage in step.loads:
        step.places[storage] = room.take(storage.size)
    for index, node in enumerate(step.instructions):
        out = write_of(node)
        if out not in step.places:
            step.places[out] = room.take(out.size)
        for storage in {*reads_of(node), out}:
            if last.get(storage, index) == index:
                room.give(step.places[storage])
    step.room = room.size


def _buffers(
    groups: Sequence[Sequence[Node]],
    made_in: dict[Storage, int],
    last_read: dict[Storage, int],
    in_buffers: set[Storage],
) -> tuple[dict[Storage, int], int]:
    offsets: dict[Storage, int] = {}
    room = Room(4 * _ALIGNED)
    for index, group in enumerate(groups):
        for storage in dict.fromkeys(write_of(node) for node in group):
            if storage in in_buffers and made_in[storage] == index:
                offsets[storage] = room.take(storage.size * storage.dtype.itemsize)
        for storage in in_buffers:
            if last_read.get(storage, made_in[storage]) == index:
                room.give(offsets[storage])
    return offsets, room.size


def base_of(step: TokensStep, placed: Placed) -> int | torch.Tensor:
    """The first float of an operand in a token's room, or the constant."""
    if isinstance(placed.storage, torch.Tensor):
        return placed.storage
    return step.places[placed.storage] + placed.first
