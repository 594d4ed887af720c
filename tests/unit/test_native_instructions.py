"""Each instruction against torch, on functions of embedded tokens."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch.nn import functional

from draftless.engine.cpu.structures import OPS
from support.native_forward import DTYPES, ROWS, F, Function, check, table_of

BOTH = ("fp32", "bf16")

SIZES = (1, 3, 16, 17, 33, 50)  # of a token; vectors hold 4, 8 or 16 numbers

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
    "cube": lambda x, _: x.pow(3),
    "pow 1.1": lambda x, _: x.abs().pow(1.1),
    "pow -2": lambda x, _: x.pow(-2),
    "pow -0.5": lambda x, _: x.pow(-0.5),
    "pow -1.5": lambda x, _: x.abs().pow(-1.5),
    "copy": lambda x, _: x.clone() + 0,
}
EXACT = ("neg", "relu", "abs", "square", "cube", "pow -2", "copy")
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


ROWS_OF_ALL = 64
EVERY_BF16 = torch.arange(65536, dtype=torch.int32).to(torch.int16).view(torch.bfloat16)
NUMBERS: dict[str, float | torch.Tensor] = {
    "a number": 0.1, "a whole number": 257, "a large number": 1e30, "float32": torch.tensor(1.3), "int64": torch.tensor(257),
    "float64": torch.tensor(-1.7, dtype=torch.float64), "bfloat16": torch.tensor(-1.7, dtype=torch.bfloat16),
}  # fmt: skip


@pytest.mark.parametrize("number", NUMBERS)
@pytest.mark.parametrize("name", BINARY)
def test_a_number_beside_bf16_is_rounded_where_torch_rounds_it(name: str, number: str) -> None:
    """Before a sum, and as the first factor; not as the second. On all numbers of bf16."""
    of, beside = BINARY[name], NUMBERS[number]
    table = EVERY_BF16.view(ROWS_OF_ALL, -1)
    orders: list[F] = []
    if isinstance(beside, torch.Tensor):
        orders.append(lambda x, _: of(beside, x))
    if isinstance(beside, torch.Tensor) or name not in ("maximum", "minimum"):
        orders.append(lambda x, _: of(x, beside))
    for order in orders:
        made = Function(order, table)
        ids = list(range(ROWS_OF_ALL))
        found, expected = made(ids).float(), made.by_torch(ids).float()
        assert torch.equal(found.nan_to_num(0.125), expected.nan_to_num(0.125))


@pytest.mark.parametrize("exponent", [3, 0.5, 0.3, -0.5, -1, -2, 1.1])
def test_powers_of_bf16_are_those_of_torch(exponent: float) -> None:
    """The exponent is rounded, and the square in a cube."""
    table = EVERY_BF16.view(ROWS_OF_ALL, -1)
    made = Function(lambda x, _: x.pow(exponent), table)
    ids = list(range(ROWS_OF_ALL))
    found, expected = made(ids), made.by_torch(ids)
    assert torch.equal(found.isnan(), expected.isnan())
    steps = found.view(torch.int16).int() - expected.view(torch.int16).int()
    assert (steps[~found.isnan()].abs() <= (exponent in (0.3, 1.1))).all()


def test_positions_beside_bf16_are_rounded() -> None:
    table, ids = table_of(6, "bf16"), [1] * 300
    column = torch.tensor([257, 300, 301, 2, 1, 0])
    for name in ("add", "sub", "mul", "div"):
        made = Function(lambda x, p, of=BINARY[name]: of(x, p[..., None] + 1), table)  # type: ignore[misc]
        assert torch.equal(made(ids), made.by_torch(ids))
        made = Function(lambda x, _, of=BINARY[name]: of(x, column + 1), table)  # type: ignore[misc]
        assert torch.equal(made(ids), made.by_torch(ids))


def test_every_op_has_a_test() -> None:
    """`Op` in the order of `OPS`, and none that no test of this file runs."""
    from pathlib import Path

    import draftless.engine.native as native

    text = Path(native.__file__).with_name("elementwise.h").read_text()
    names = text.split("enum Op : int64_t {")[1].split("}")[0].replace("\n", " ").split(",")
    assert [name.strip().removeprefix("k").lower() for name in names if name.strip()] == [
        name.replace("_", "") for name in OPS
    ]
