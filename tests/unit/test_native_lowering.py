"""What the lowering makes of views, sums, norms, tables and products, against torch."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from support.native_forward import ROWS, F, Function, check, flat, table_of

BOTH = ("fp32", "bf16")

SHAPES: dict[str, F] = {
    "cat": lambda x, _: torch.cat((-x[..., 12:], x[..., :12], x[..., 3:5]), dim=-1),
    "cat of heads": lambda x, _: torch.cat((x.view(1, -1, 4, 6), -x.view(1, -1, 4, 6)), 2),
    "stack": lambda x, _: torch.stack((-x[..., 1::2], x[..., ::2]), dim=-1),
    "stack first": lambda x, _: torch.stack((-x, x), 0).transpose(0, 2).transpose(0, 1).flatten(2),
    "stack before the tokens": lambda x, _: torch.stack((-x, x), 1).transpose(1, 2).flatten(2),
    "repeat_interleave": lambda x, _: x.repeat_interleave(3, dim=-1),
    "repeat_interleave of heads": lambda x, _: x.view(1, -1, 4, 6).repeat_interleave(2, dim=2),
    "slices": lambda x, _: x[..., 1:20:3] * x[..., 4:11],
    "transposed": lambda x, _: x.view(1, -1, 4, 6).transpose(2, 3),
    "heads first": lambda x, _: (x.view(1, -1, 4, 6).transpose(1, 2) * 2).transpose(1, 2),
    "permuted": lambda x, _: x.view(1, -1, 2, 3, 4).permute(0, 1, 4, 3, 2),
    "half rotated": lambda x, _: torch.cat((-x.view(1, -1, 2, 12)[..., 6:], x.view(1, -1, 2, 12)[..., :6]), -1),
    "expanded": lambda x, _: x.view(1, -1, 4, 1, 6).expand(1, -1, 4, 3, 6) * 3,
    "expanded and seen as one": lambda x, _: x.view(1, -1, 4, 1, 6).expand(1, -1, 4, 3, 6).reshape(1, -1, 12, 6),
    "split": lambda x, _: x.split([5, 12, 7], dim=-1)[1] * 2,
    "chunk": lambda x, _: x.chunk(3, dim=-1)[1] * x.chunk(3, dim=-1)[2],
    "select": lambda x, _: x.view(1, -1, 4, 6)[..., 3, :] + x.view(1, -1, 4, 6)[..., -1, :],
    "unsqueezed": lambda x, _: x[..., None, :] * x.view(1, -1, 2, 12)[..., :1],
    "squeezed": lambda x, _: x.view(1, -1, 24, 1).squeeze(-1) + x,
    "unflattened": lambda x, _: x.unflatten(-1, (3, 8))[..., 2:4, 1:5],
    "mean": lambda x, _: x.float().mean(-1, keepdim=True),
    "sum of heads": lambda x, _: x.view(1, -1, 4, 6).float().sum(-1),
    "mean of strides": lambda x, _: x.view(1, -1, 4, 6).transpose(2, 3).float().mean(-1),
    "mean of what is expanded": lambda x, _: x[..., :3, None].expand(1, -1, 3, 5).float().mean(-1),
    "zeros": lambda x, _: torch.zeros_like(x),
}  # fmt: skip


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("name", SHAPES)
def test_shapes(name: str, dtype: str) -> None:
    table = table_of(24, dtype)
    made = Function(lambda x, p: flat(SHAPES[name](x, p).to(x.dtype)), table)
    found, expected = made([5, 6, 0]), made.by_torch([5, 6, 0])
    torch.testing.assert_close(found, expected)
    if "mean" not in name and "sum" not in name:
        assert torch.equal(found, expected)


@pytest.mark.parametrize("size", [1, 5, 16, 31, 32, 33, 100])
def test_sums(size: int) -> None:
    table = table_of(size, "fp32")
    for of in (lambda x, _: x.sum(-1, keepdim=True), lambda x, _: x.mean(-1)):
        made = Function(lambda x, p, of=of: flat(of(x, p)), table)  # type: ignore[misc]
        torch.testing.assert_close(made([1, 2]), made.by_torch([1, 2]), atol=2e-6, rtol=1e-5)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("shape", [(24,), (4, 6)])
@pytest.mark.parametrize("has_weight", [False, True])
def test_norms(shape: tuple[int, ...], has_weight: bool, dtype: str) -> None:
    table, size = 3 + table_of(24, dtype), shape[-1]
    table[9] *= 0.01  # so small that the epsilon counts
    weight = table_of(size, dtype)[0] if has_weight else None
    bias = table_of(size, dtype)[1] if has_weight else None
    for of in (
        lambda x: functional.layer_norm(x, (size,), weight, bias, 1e-3),
        lambda x: functional.rms_norm(x, (size,), weight, 1e-3),
        lambda x: functional.rms_norm(x, (size,), weight),
    ):
        made = Function(lambda x, _, of=of: flat(of(x.view(1, -1, *shape))), table)  # type: ignore[misc]
        torch.testing.assert_close(made([4, 9]), made.by_torch([4, 9]))


@pytest.mark.parametrize("dtype", BOTH)
def test_positions(dtype: str) -> None:
    table = table_of(4, dtype)
    of_position = table_of(20, dtype)[:, :4].contiguous()

    def function(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        angles = positions[..., None].float() * 0.3 - (positions * 2 + 1)[..., None].float()
        return x * angles.cos().to(x.dtype) + functional.embedding(positions + 2, of_position)

    check(function, table)


@pytest.mark.parametrize("dtype", BOTH)
def test_tables_whose_rows_lie_apart(dtype: str) -> None:
    wide = table_of(24, dtype)
    for table in (wide[:, 4:14], wide[::2, 4:14], wide[:20].t()):
        made = Function(lambda x, _: x * 1.0, table)
        assert torch.equal(made([4, 9, 0]), made.by_torch([4, 9, 0]))


@pytest.mark.parametrize("dtype", BOTH)
def test_a_token_without_a_row(dtype: str) -> None:
    """Nothing outside the table is read, and the pass after it is as before."""
    made = Function(lambda x, _: x * 1.0, table_of(24, dtype))
    for token in (-1, ROWS, 2**24 + 1, 2**40, -(2**40), 2**62):
        with pytest.raises(IndexError, match="no row"):
            made([3, token, 4])
    assert torch.equal(made([3, ROWS - 1]), made.by_torch([3, ROWS - 1]))


@pytest.mark.parametrize("dtype", BOTH)
def test_a_position_without_a_row(dtype: str) -> None:
    places = table_of(24, dtype)[:20]
    made = Function(lambda x, p: x + functional.embedding(p, places), table_of(24, dtype))
    assert torch.equal(made([3] * 20), made.by_torch([3] * 20))
    with pytest.raises(IndexError, match="no row"):
        made([3] * 21)


@pytest.mark.parametrize("dtype", BOTH)
def test_products_that_share_their_input(dtype: str) -> None:
    table = table_of(24, dtype)
    weights = [table_of(24, dtype)[:count] for count in (5, 11, 3)]
    bias = table_of(11, dtype)[0]

    def function(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        first = functional.linear(x, weights[0])
        second = functional.linear(x, weights[1], bias)
        again = torch.addmm(bias, x[0], weights[1].t())[None] + x[0].mm(weights[1].t())[None]
        third = functional.linear(-x, weights[2])
        return torch.cat((first, second, again, third), -1)

    made = Function(lambda x, p: function(x, p) * 1.0, table)
    torch.testing.assert_close(
        made([4, 9]), made.by_torch([4, 9]), atol=0.1 if dtype == "bf16" else 1e-5, rtol=0.02
    )
    square = table_of(24, dtype)[:24]  # one memory, seen in two ways
    both = Function(lambda x, _: functional.linear(x, square) - x[0].mm(square), table)
    torch.testing.assert_close(
        both([4, 9]), both.by_torch([4, 9]), atol=0.2 if dtype == "bf16" else 1e-4, rtol=0.02
    )


def test_weights_of_one_memory_are_packed_apart() -> None:
    from draftless.engine.cpu.forward import NativeForward

    square = table_of(24, "fp32")[:24]
    forward = NativeForward(lambda _: None, ["full_attention"], 1, torch.float32)
    packed = [
        forward._pack([one], [None], torch.float32)
        for one in (square, square.t(), square[:5], square)
    ]
    assert packed[0] is packed[3]
    assert len({id(one) for one in packed}) == 3


def test_the_default_dtype_does_not_matter() -> None:
    torch.set_default_dtype(torch.float64)
    try:
        check(lambda x, _: x * 1.5, table_of(17, "fp32"), exact=True)
    finally:
        torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", BOTH)
def test_bf16_within_fp32_and_the_other_way(dtype: str) -> None:
    """A product reads its input in the model's dtype, whatever precision its numbers have."""
    table, weight = table_of(24, dtype), table_of(24, dtype)[:5]

    def function(x: torch.Tensor, positions: torch.Tensor) -> torch.Tensor:
        y = functional.linear(x.bfloat16().to(x.dtype), weight)
        return y + functional.linear(positions.to(x.dtype)[..., None], weight[:, :1]).to(x.dtype)

    made = Function(lambda x, p: function(x, p) * 1.0, table)
    torch.testing.assert_close(
        made([4, 9]), made.by_torch([4, 9]), atol=0.1 if dtype == "bf16" else 1e-5, rtol=0.02
    )
