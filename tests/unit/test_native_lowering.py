"""Each instruction against torch, and what the lowering refuses, on functions of embedded tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from draftless.engine.cpu.lower import Lowering
from draftless.engine.cpu.record import NUM_TOKENS, Call, Recording
from draftless.engine.cpu.structures import OPS
from draftless.engine.cpu.values import NotLowered
from support.native_forward import DTYPES, Function

BOTH = ("fp32", "bf16")
SIZES = (1, 3, 16, 17, 33, 50)  # of a token; vectors hold 4, 8 or 16 numbers
ROWS = 30

F = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]


def table_of(size: int, dtype: str, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return (scale * torch.randn(ROWS, size, generator=generator)).to(DTYPES[dtype])


def flat(x: torch.Tensor) -> torch.Tensor:
    """`[1, M, N]` by an operator of its own that changes nothing."""
    return x.reshape(1, x.shape[1], -1) * 1.0


def check(function: F, table: torch.Tensor, *, exact: bool = False, steps: float = 1.01) -> None:
    """As torch's, to some units in the last place; NaN and infinities where torch has them."""
    ids = [3, 0, 7, 7, ROWS - 1, *range(8, 16)]
    made = Function(lambda x, positions: flat(function(x, positions)), table)
    found, expected = made(ids), made.by_torch(ids)
    assert found.shape == expected.shape
    assert torch.equal(made(ids[2:3])[0].view(torch.uint8), made(ids[3:4])[0].view(torch.uint8))
    assert torch.equal(found.isnan(), expected.isnan())
    found, expected = found.nan_to_num(0.0).float(), expected.nan_to_num(0.0).float()
    if exact:
        assert torch.equal(found, expected)
        return
    unit = 2**-8 if table.dtype == torch.bfloat16 else 4 * 2**-24
    assert ((found - expected).abs() <= steps * unit * expected.abs() + 1e-36).all()


UNARY: dict[str, F] = {
    "neg": lambda x, _: -x,
    "rsqrt": lambda x, _: x.rsqrt(),
    "sqrt": lambda x, _: x.sqrt(),
    "exp": lambda x, _: x.exp(),
    "silu": lambda x, _: functional.silu(x),
    "tanh": lambda x, _: x.tanh(),
    "sigmoid": lambda x, _: x.sigmoid(),
    "relu": lambda x, _: x.relu(),
    "abs": lambda x, _: x.abs(),
    "erf": lambda x, _: x.erf(),
    "cos": lambda x, _: x.cos(),
    "sin": lambda x, _: x.sin(),
    "square": lambda x, _: x.pow(2),
    "pow 0.5": lambda x, _: x.pow(0.5),
    "pow -1.5": lambda x, _: x.abs().pow(-1.5),
    "copy": lambda x, _: x.clone() + 0,
}
EXACT = ("neg", "relu", "abs", "square", "copy")
BINARY: dict[str, Callable[[torch.Tensor, torch.Tensor], torch.Tensor]] = {
    "add": torch.add, "sub": torch.sub, "mul": torch.mul, "div": torch.div,
    "maximum": torch.maximum, "minimum": torch.minimum,
}  # fmt: skip


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("name", UNARY)
def test_functions_of_one_number(name: str, size: int, dtype: str) -> None:
    # Torch's own bfloat16 kernels of some round twice; tanh of small numbers loses some bits.
    steps = 2.01 if dtype == "bf16" else 4.0
    check(UNARY[name], table_of(size, dtype), exact=name in EXACT, steps=steps)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("kind", ["none", "tanh"])
def test_gelu(kind: str, dtype: str) -> None:
    """Where x is far below zero, torch's sum of one and almost minus one keeps no digits: near is enough."""
    table = table_of(50, dtype, 2.0)
    made = Function(lambda x, _: functional.gelu(x, approximate=kind), table)
    ids = list(range(ROWS))
    found, expected = made(ids).float(), functional.gelu(table.double(), approximate=kind).float()
    unit = 2**-8 if dtype == "bf16" else 2**-21
    assert ((found - expected).abs() <= unit * expected.abs() + 4e-7 * table.float().abs()).all()


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("name", [*UNARY, "gelu", "gelu_tanh"])
def test_large_and_strange_numbers(name: str, dtype: str) -> None:
    """No NaN where torch has none, and the limits that torch has."""
    of = {
        **UNARY,
        "gelu": lambda x, _: functional.gelu(x),
        "gelu_tanh": lambda x, _: functional.gelu(x, approximate="tanh"),
    }[name]
    inf, nan = float("inf"), float("nan")
    sizes = [
        0.0,
        1e-38,
        1e-20,
        1e-3,
        9.0,
        20.0,
        60.0,
        88.0,
        100.0,
        1e3,
        1e10,
        1e13,
        1e20,
        3e38,
        inf,
    ]
    if name in ("cos", "sin"):
        sizes = [size for size in sizes if size < 1e4 or size == inf]
    values = torch.tensor([*sizes, *(-size for size in sizes), nan])
    check_limits(of, values.to(DTYPES[dtype]).repeat(ROWS, 1), name)


def check_limits(of: F, table: torch.Tensor, name: str) -> None:
    made = Function(lambda x, positions: of(x, positions) * 1.0, table)
    found, expected = made([0])[0].float(), made.by_torch([0])[0].float()
    if name.startswith("gelu"):  # of infinities torch's kernels make NaN, of 3e38 infinity
        assert not (found.isnan() & ~expected.isnan()).any(), (found, expected)
        found, expected = found[expected.isfinite()], expected[expected.isfinite()]
    assert torch.equal(found.isnan(), expected.isnan()), (found, expected)
    assert torch.equal(found.isinf(), expected.isinf()), (found, expected)
    rest = expected.isfinite()
    difference = (found[rest] - expected[rest]).abs()
    assert (difference <= 2**-7 * expected[rest].abs() + 1e-6).all(), (found, expected)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("name", BINARY)
@pytest.mark.parametrize("size", [6, 17, 48])
def test_functions_of_two_numbers(name: str, size: int, dtype: str) -> None:
    of = BINARY[name]
    table = table_of(2 * size, dtype)
    check(
        lambda x, _: of(x[..., :size], x[..., size:]), table, exact=True
    )  # strided, from the middle
    check(lambda x, _: of(x, x[..., 1:2]), table, exact=True)  # one number of each token
    constant = table_of(2 * size, dtype)[3]
    check(lambda x, _: of(x, constant), table, exact=True)
    check(lambda x, _: of(constant, x), table, exact=True)
    column = table_of(size, dtype)[3][:, None]
    check(lambda x, _: of(x.view(1, -1, size, 2), column), table, exact=True)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("name", ["maximum", "minimum"])
def test_nan_wins(name: str, dtype: str) -> None:
    table = torch.tensor([[1.0, float("nan"), 2.0], [float("nan"), 1.0, 3.0]]).repeat(15, 1)
    check(lambda x, _: BINARY[name](x[..., :2], x[..., 1:]), table.to(DTYPES[dtype]), exact=True)


@pytest.mark.parametrize("dtype", BOTH)
@pytest.mark.parametrize("number", [3, 0.1, -1.7])
def test_python_numbers(number: float, dtype: str) -> None:
    table = table_of(17, dtype)
    for of in (lambda x, _: x * number, lambda x, _: x + number, lambda x, _: x / number):
        check(of, table, exact=dtype == "fp32")


def test_results_of_bf16_are_rounded_each() -> None:
    """A sum of two roundings is not the rounding of a sum."""
    check(lambda x, _: (x * 1.1 + 1.3) * 0.7 - 0.9, table_of(50, "bf16"), exact=True)
    check(lambda x, _: (x.float() * 1.1 + 1.3).bfloat16() * 0.7, table_of(50, "bf16"), exact=True)
    check(lambda x, _: (x.bfloat16().float() - 1.0) * 3.3, table_of(50, "fp32"), exact=True)


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
    packed = [forward._pack([one], [None], torch.float32) for one in (square, square.t(), square[:5], square)]
    assert packed[0] is packed[3]
    assert len({id(one) for one in packed}) == 3


SQUARE = torch.eye(NUM_TOKENS)
REFUSED: dict[str, F] = {
    "mean over tokens": lambda x, _: x + x.mean(1, keepdim=True),
    "mean over tokens that are last": lambda x, _: x + x.transpose(1, 2).mean(-1)[:, None],
    "sum over tokens that are last": lambda x, _: x.transpose(1, 2).sum(-1, keepdim=True).transpose(1, 2) + x,
    "norm over tokens": lambda x, _: functional.layer_norm(x.transpose(1, 2), (NUM_TOKENS,)).transpose(1, 2),
    "rms norm over tokens": lambda x, _: functional.rms_norm(x.transpose(1, 2), (NUM_TOKENS,)).transpose(1, 2),
    "product of tokens": lambda x, _: x @ x.transpose(1, 2),
    "product of tokens, mm": lambda x, _: x[0].mm(x[0].t()).mm(x[0])[None],
    "linear of tokens": lambda x, _: functional.linear(x[0], x[0])[None],
    "product with a batch": lambda x, _: x @ torch.zeros(1, 24, 5),
    "product over tokens": lambda x, _: functional.linear(x.transpose(1, 2), SQUARE).transpose(1, 2),
    "bias of tokens": lambda x, _: torch.addmm(x[0], x[0], torch.eye(24))[None],
    "bias with factors": lambda x, _: torch.addmm(torch.ones(24), x[0], torch.eye(24), beta=2)[None],
    "bias of another form": lambda x, _: torch.addmm(torch.ones(1), x[0], torch.eye(24))[None],
    "one of the tokens": lambda x, _: x + x[:, :1],
    "the tokens moved": lambda x, _: torch.cat((x[:, 1:], x[:, :1]), 1),
    "tokens doubled": lambda x, _: torch.cat((x, x), 1),
    "constants that differ by token": lambda x, _: x + torch.arange(float(NUM_TOKENS))[:, None],
    "tokens and tokens": lambda x, _: x[0, :, None, :1] + x[0, None, :, :1],
    "softmax": lambda x, _: x.softmax(-1),
    "comparison": lambda x, _: torch.where(x > 0, x, -x),
    "cumulated": lambda x, _: x.cumsum(1),
    "in place": lambda x, _: x.clone().add_(1),
    "dropout": lambda x, _: functional.dropout(x, 0.5, training=True),
    "bits": lambda x, _: x * x.view(torch.int32),
    "alpha": lambda x, _: torch.add(x, x, alpha=2),
    "rounded division": lambda x, _: torch.div(x, 2, rounding_mode="floor"),
    "double": lambda x, _: (x.double() * 2).float(),
    "half": lambda x, _: (x.half() * 2).float(),
    "whole numbers": lambda x, _: x * x.long(),
    "many axes": lambda x, _: x.view(1, -1, 2, 2, 2, 3).permute(0, 1, 5, 4, 3, 2) * x.view(1, -1, 3, 2, 2, 2),
    "no tokens": lambda _, __: torch.ones_like(SQUARE)[None],
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_is_refused(name: str) -> None:
    table = table_of(24, "fp32")
    with pytest.raises(NotLowered):
        Function(lambda x, p: REFUSED[name](x, p) * 1.0, table)


def test_operators_of_others_are_refused() -> None:
    ids, positions = torch.zeros(1, NUM_TOKENS, dtype=torch.long), torch.zeros(1, NUM_TOKENS)
    out = torch.zeros(1, NUM_TOKENS)
    for name in ("mine.add.default", "a_higher_order_operator"):
        call = Call(name, (ids, 1), {}, (out,))
        with pytest.raises(NotLowered, match=name):
            Lowering(Recording([call], ids, positions, out, out), torch.float32)


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


def test_every_op_has_a_test() -> None:
    """`Op` in the order of `OPS`, and none that no test of this file runs."""
    from pathlib import Path

    import draftless.engine.native as native

    text = Path(native.__file__).with_name("elementwise.h").read_text()
    names = text.split("enum Op : int64_t {")[1].split("}")[0].replace("\n", " ").split(",")
    assert [name.strip().removeprefix("k").lower() for name in names if name.strip()] == [
        name.replace("_", "") for name in OPS
    ]
