"""Where numbers lie: no two that live at one time share a place; axes are seen as torch sees them."""

from __future__ import annotations

from math import prod

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from draftless.engine.cpu.schedule import Room, TokensStep, base_of, reads_of, schedule, write_of
from draftless.engine.cpu.values import (
    TOKENS,
    Attend,
    Axis,
    Instruct,
    Linear,
    Node,
    NotLowered,
    Placed,
    Storage,
    View,
    dense_axes,
    merged,
    regrouped,
)


@given(
    st.lists(st.tuples(st.booleans(), st.integers(0, 70), st.integers(0, 50)), max_size=40),
    st.sampled_from([1, 16, 64]),
)
def test_rooms_do_not_overlap(steps: list[tuple[bool, int, int]], aligned: int) -> None:
    room = Room(aligned)
    taken: dict[int, int] = {}
    for is_given_back, size, which in steps:
        if is_given_back and taken:
            begin = sorted(taken)[which % len(taken)]
            room.give(begin)
            del taken[begin]
            continue
        begin = room.take(size)
        assert begin % aligned == 0
        assert begin not in taken
        for other, its_size in taken.items():
            assert begin + size <= other or other + its_size <= begin
        taken[begin] = size
        assert room.size >= begin + size


def test_what_is_empty_has_a_place_of_its_own() -> None:
    """A place is given back by its begin."""
    room = Room(16)
    assert len({room.take(size) for size in (0, 5, 0)}) == 3


@given(st.lists(st.integers(1, 70), min_size=1, max_size=20))
def test_room_is_used_again(sizes: list[int]) -> None:
    room = Room(16)
    for size in sizes:
        room.give(room.take(size))
    assert room.size == -(-max(sizes) // 16) * 16


@st.composite
def graphs(draw: st.DrawFn) -> tuple[list[Node], Storage, View]:
    """Instructions and products of storage of many sizes, in any order."""
    tokens = Storage(1, torch.int64)
    made: list[Storage] = [tokens]
    nodes: list[Node] = []
    for _ in range(draw(st.integers(1, 25))):
        dtype = draw(st.sampled_from([torch.float32, torch.bfloat16]))
        out = Storage(draw(st.integers(1, 100)), dtype)
        a, b = draw(st.sampled_from(made)), draw(st.sampled_from(made))
        if draw(st.integers(0, 3)) == 0 and a is not tokens:
            x = View(a, dense_axes((1, 13, a.size), 1), 0, a.dtype)
            nodes.append(Linear(x, out, [], []))
        else:
            parts = draw(st.integers(1, 2))  # as a concatenation fills its storage
            nodes += [
                Instruct("add", (1, 1, 1), Placed(out, 0), Placed(a, 0), Placed(b, 0))
            ] * parts
        made.append(out)
    result = View(out, dense_axes((1, 13, out.size), 1), 0, out.dtype)
    return nodes, tokens, result


@given(graphs())
def test_what_lives_keeps_its_place(  # noqa: C901 - one pass over the steps
    graph: tuple[list[Node], Storage, View],
) -> None:
    """Plays a schedule with the name of what was written in every byte, and finds it when it is read."""
    nodes, tokens, result = graph
    plan = schedule(nodes, [tokens], result)
    memory: dict[int, Storage] = {}
    output: list[Storage] = []

    def place(storage: Storage, is_write: bool) -> None:
        if storage is result.storage:
            if is_write:
                output.append(storage)
            assert output
            return
        begin = plan.offsets[storage]
        assert begin % 64 == 0
        for byte in range(begin, begin + storage.size * storage.dtype.itemsize):
            assert byte < plan.bytes_per_token
            if is_write:
                memory[byte] = storage
            assert memory.get(byte) is storage

    for step in plan.steps:
        if not isinstance(step, TokensStep):
            for storage in reads_of(step):
                place(storage, False)
            place(write_of(step), True)
            for storage in reads_of(step):  # is read while the result is written
                place(storage, False)
            continue
        room: dict[int, Storage] = {}

        def inner(storage: Storage, is_write: bool, step: TokensStep = step, room=room) -> None:  # type: ignore[no-untyped-def]
            begin = base_of(step, Placed(storage, 0))
            assert isinstance(begin, int)
            for at in range(begin, begin + storage.size):
                assert at < step.room
                if is_write:
                    room[at] = storage
                assert room.get(at) is storage

        for storage in step.loads:
            if storage is not tokens:
                place(storage, False)
            inner(storage, True)
        for node in step.instructions:
            for storage in reads_of(node):
                inner(storage, False)
            inner(write_of(node), True)
            for storage in reads_of(node):
                inner(storage, False)
        for storage in step.stores:
            inner(storage, False)
            place(storage, True)
    assert output


@given(graphs())
def test_what_serves_nothing_is_left_out(graph: tuple[list[Node], Storage, View]) -> None:
    nodes, tokens, result = graph
    plan = schedule(nodes, [tokens], result)
    wanted = {result.storage}
    for node in reversed(nodes):
        if write_of(node) in wanted:
            wanted.update(reads_of(node))
    kept = [
        node
        for step in plan.steps
        for node in (step.instructions if isinstance(step, TokensStep) else [step])
    ]
    assert kept == [node for node in nodes if write_of(node) in wanted]


def test_attention_is_kept_for_what_it_writes() -> None:
    """Later passes read its keys and values, also where nothing reads its output."""
    tokens, state, out = (Storage(1, torch.int64), *(Storage(8, torch.float32) for _ in range(2)))
    view = View(state, dense_axes((1, 13, 8), 1), 0, torch.float32)
    first = Instruct("copy", (1, 1, 8), Placed(state, 0), Placed(tokens, 0))
    attend = Attend(view, view, view, out, {})
    assert attend in schedule([first, attend], [tokens], view).steps


@st.composite
def strided(draw: st.DrawFn) -> torch.Tensor:
    """A tensor of up to four axes: transposed, cut and expanded."""
    shape = draw(st.lists(st.sampled_from([1, 2, 3, 4, 6]), min_size=1, max_size=4))
    x = torch.arange(prod(shape), dtype=torch.float32).reshape(shape)
    if draw(st.booleans()):
        x = x.permute(draw(st.permutations(range(len(shape)))))
    if draw(st.booleans()):
        axis = draw(st.integers(0, len(shape) - 1))
        x = x.narrow(axis, x.shape[axis] // 2, x.shape[axis] - x.shape[axis] // 2)
    if draw(st.booleans()):
        x = x.unsqueeze(draw(st.integers(0, x.dim())))
        x = x.expand([3 if size == 1 and draw(st.booleans()) else size for size in x.shape])
    return x


@st.composite
def factors(draw: st.DrawFn, number: int) -> list[int]:
    sizes = []
    while number > 1 and draw(st.booleans()):
        size = draw(st.sampled_from([n for n in range(1, number + 1) if number % n == 0]))
        sizes.append(size)
        number //= size
    return [*sizes, number]


@given(st.data())
def test_views_are_those_of_torch(data: st.DataObject) -> None:
    x = data.draw(strided())
    sizes = data.draw(factors(x.numel()))
    found = regrouped([Axis(n, step) for n, step in zip(x.shape, x.stride(), strict=True)], sizes)
    try:
        expected = x.view(sizes)
    except RuntimeError:
        assert found is None
        return
    assert found is not None
    assert torch.equal(x.as_strided(sizes, found, x.storage_offset()), expected)


@given(st.data())
def test_merged_axes_are_the_same_numbers_in_order(data: st.DataObject) -> None:
    first = data.draw(strided())
    second = torch.randn(first.shape)
    if data.draw(st.booleans()):
        second = second[:1].expand(first.shape)
    operands = [first, second]
    try:
        sizes, strides = merged(list(first.shape), [list(one.stride()) for one in operands])
    except NotLowered:
        assert sum(size > 1 for size in first.shape) > 3
        return
    assert len(sizes) == 3
    assert all(len(one) == 3 for one in strides)
    for one, its_strides in zip(operands, strides, strict=True):
        found = one.as_strided(sizes, its_strides, one.storage_offset())
        assert torch.equal(found.flatten(), one.flatten())


def test_dense_operands_become_one_axis() -> None:
    """A long loop, not many short ones."""
    assert merged([2, 3, 1, 4], [[12, 4, 4, 1], [0, 0, 0, 0]]) == (
        [1, 1, 24],
        [[0, 0, 1], [0, 0, 0]],
    )
    assert merged([2, 3], [[3, 1], [0, 1]]) == ([1, 2, 3], [[0, 3, 1], [0, 0, 1]])
    with pytest.raises(NotLowered):
        merged([2, 2, 2, 2], [[8, 4, 2, 1], [1, 2, 4, 8]])


def test_dense_axes() -> None:
    assert dense_axes((1, 4, 13, 8), 2) == (Axis(1, 32), Axis(4, 8), Axis(13, TOKENS), Axis(8, 1))
