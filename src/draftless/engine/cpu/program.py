"""A schedule as the structures that `native/forward.cpp` runs, and its runs."""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence

import torch

from draftless.engine.cpu import structures
from draftless.engine.cpu.library import library, use_threads
from draftless.engine.cpu.lower import Lowering
from draftless.engine.cpu.paging import page_in, page_out
from draftless.engine.cpu.schedule import Schedule, TokensStep, base_of, schedule
from draftless.engine.cpu.values import Attend, Instruct, Linear, NotLowered, Placed, Storage, View
from draftless.engine.threads import threads_of_passes
from draftless.engine.tree_pass import TreePass

DTYPES = {torch.float32: 0, torch.bfloat16: 1}
"""`DType` of `native/common.h`."""

_PACKED_ROWS = 4096
_PADDING = -(2**63)  # the id of what fills a row up
_NO_TREE, _OUTSIDE = 0, 2  # outcomes of a pass


class PackedWeight:
    """Weights side by side, in the order in which the kernels read them.

    Attributes:
        data: uint8.
        bias: `[width]` or None.
        width, num_inputs: of the product.
    """

    def __init__(
        self,
        weights: Sequence[torch.Tensor],
        biases: Sequence[torch.Tensor | None],
        dtype: torch.dtype,
        allocate: Callable[[int], torch.Tensor],
    ) -> None:
        number = DTYPES[dtype]
        self.num_inputs = weights[0].shape[1]
        self.width = sum(len(weight) for weight in weights)
        self.data = allocate(library().bytes_of_packed(self.width, self.num_inputs, number))
        first = 0
        use_threads(threads_of_passes())
        for weight in weights:
            parts = weight.split(_PACKED_ROWS)  # type: ignore[no-untyped-call]
            for read in parts:  # a copy in another form is never a whole one
                page_in(read)
                part = read.to(dtype)
                part = part if part.stride(1) == 1 else part.contiguous()
                rows, inputs = part.shape
                library().pack_weight(
                    part.data_ptr(),
                    rows,
                    inputs,
                    part.stride(0),
                    number,
                    first,
                    self.data.data_ptr(),
                )
                first += rows
                page_out(read)
        self.bias: torch.Tensor | None = None
        if any(bias is not None for bias in biases):
            pairs = zip(weights, biases, strict=True)
            self.bias = torch.cat(
                [torch.zeros(len(w), dtype=dtype) if b is None else b.to(dtype) for w, b in pairs]
            )


Pack = Callable[[Sequence[torch.Tensor], Sequence[torch.Tensor | None], torch.dtype], PackedWeight]


class Program:
    """One lowered pass.

    Args:
        lowering: of the pass.
        dtype: of the model.
        pack: packs weights, or returns what it packed before.
        result: what the pass gives, `[M, width]`: the logits, or what the head reads.
    """

    def __init__(self, lowering: Lowering, dtype: torch.dtype, pack: Pack, result: View) -> None:
        self._dtype, self._inputs = dtype, (lowering.token_ids, lowering.positions)
        self.width = result.storage.size
        is_whole = result.is_dense and result.storage.size == result.shape[-1]
        if not is_whole or not result.dtype == result.storage.dtype == dtype:
            raise NotLowered("a result of another form")
        plan = schedule(lowering.nodes, self._inputs, result)
        self._result = result.storage
        self._offsets = plan.offsets
        self._kept: list[object] = []  # what the structures point to
        steps = (structures.Step * len(plan.steps))(*self._steps(plan, pack))
        self._num_steps = len(plan.steps)
        self._program = library().new_program(
            DTYPES[dtype], plan.bytes_per_token, steps, len(plan.steps)
        )

    def __del__(self) -> None:
        if getattr(self, "_program", None):
            library().delete_program(self._program)

    def __call__(self, tree_pass: TreePass) -> torch.Tensor:  # [R*W, width]
        """One forward pass. What it returns is fresh memory."""
        use_threads(threads_of_passes())
        width, lengths = tree_pass.width, tree_pass.lengths
        ids: list[int] = []
        parents: list[int] = []
        for row_ids, layout in zip(tree_pass.token_ids, tree_pass.layouts, strict=True):
            missing = width - len(row_ids)
            ids += [*row_ids, *[_PADDING] * missing]
            parents += [*layout.parents, *[-1] * missing]
        windows = [window or 0 for window in tree_pass.windows]
        numbers = (ctypes.c_int64 * (2 * len(ids) + len(lengths) + len(windows)))(
            *ids, *parents, *lengths, *windows
        )
        at = ctypes.addressof(numbers)
        parts = [at + 8 * len(ids), at + 16 * len(ids), at + 8 * (2 * len(ids) + len(lengths))]
        data = tree_pass.cache.data
        out = torch.empty((len(ids), self.width), dtype=self._dtype)
        request = structures.Request(
            at, parts[1], parts[0], parts[2], len(lengths), width, self._num_steps,
            data.data_ptr(), data.shape[2], tree_pass.rows.start, data.shape[3], data.shape[4],
            data.shape[5], out.data_ptr(), self.width,
        )  # fmt: skip
        outcome = library().run_program(self._program, ctypes.byref(request))
        if outcome == _NO_TREE:
            raise ValueError("a tree has a node before its parent")
        if outcome == _OUTSIDE:
            raise IndexError("a token or a position has no row in an embedding of the model")
        return out

    def _steps(self, plan: Schedule, pack: Pack) -> list[structures.Step]:
        return [
            self._tokens(step)
            if isinstance(step, TokensStep)
            else self._linear(step, pack)
            if isinstance(step, Linear)
            else self._attend(step)
            for step in plan.steps
        ]

    def _of_buffer(self, view: View) -> structures.Place:
        return self._buffer(view.storage, view.first)

    def _buffer(self, storage: Storage, first: int = 0) -> structures.Place:
        is_output = storage is self._result
        offset = 0 if is_output else self._offsets[storage]
        return structures.Place(offset, storage.size, first, is_output)

    def _linear(self, step: Linear, pack: Pack) -> structures.Step:
        packed = pack(step.weights, step.biases, self._dtype)
        self._kept.append(packed)
        return structures.Step(
            kind=structures.LINEAR, x=self._of_buffer(step.x), out=self._buffer(step.out),
            in_=packed.num_inputs, width=packed.width, weight=packed.data.data_ptr(),
            bias=None if packed.bias is None else packed.bias.data_ptr(),
        )  # fmt: skip

    def _attend(self, step: Attend) -> structures.Step:
        return structures.Step(
            kind=structures.ATTEND, x=self._of_buffer(step.query), key=self._of_buffer(step.key),
            value=self._of_buffer(step.value), out=self._buffer(step.out), **step.place,
        )  # fmt: skip

    def _tokens(self, step: TokensStep) -> structures.Step:
        instructions = [
            *(self._load(step, storage) for storage in step.loads),
            *(self._instruction(step, node) for node in step.instructions),
            *(self._moved("store", step, storage) for storage in step.stores),
        ]
        array = (structures.Instruction * len(instructions))(*instructions)
        self._kept.append(array)
        return structures.Step(
            kind=structures.TOKENS, instructions=array, count=len(array), room=step.room
        )

    def _load(self, step: TokensStep, storage: Storage) -> structures.Instruction:
        if storage not in self._inputs:
            return self._moved("load", step, storage)
        name = "token_id" if storage is self._inputs[0] else "position"
        op = structures.OPS.index(name)
        return structures.Instruction(op=op, out=structures.Operand(step.places[storage]))

    def _moved(self, op: str, step: TokensStep, storage: Storage) -> structures.Instruction:
        place = self._buffer(storage)
        half = storage.dtype == torch.bfloat16
        operand = structures.Operand(step.places[storage])
        return structures.Instruction(
            op=structures.OPS.index(op), sizes=(1, 1, storage.size), out=operand, a=operand,
            offset=place.offset, stride=storage.size * (2 if half else 4), dtype=int(half),
            is_output=place.is_output,
        )  # fmt: skip

    def _instruction(self, step: TokensStep, node: Instruct) -> structures.Instruction:
        made = structures.Instruction(
            op=structures.OPS.index(node.op), is_rounded=node.is_rounded, sizes=node.sizes,
            out=self._operand(step, node.out), a=self._operand(step, node.a or node.out),
            b=self._operand(step, node.b or node.a or node.out), number=node.number,
        )  # fmt: skip
        if node.table is not None:
            self._kept.append(node.table)
            table = node.table
            made.b = structures.Operand(table.data_ptr())
            made.stride, made.dtype = table.stride(0) * table.itemsize, DTYPES[table.dtype]
            made.number = len(table)
        return made

    def _operand(self, step: TokensStep, placed: Placed) -> structures.Operand:
        base = base_of(step, placed)
        if isinstance(base, torch.Tensor):
            self._kept.append(base)
            return structures.Operand(base.data_ptr() + 4 * placed.first, placed.strides, 1)
        return structures.Operand(base, placed.strides, 0)
