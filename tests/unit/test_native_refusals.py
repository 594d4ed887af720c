"""What the lowering refuses: other results than torch's are never an answer."""

from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from draftless.engine.cpu.lengths import refuse_other_passes
from draftless.engine.cpu.lower import Lowering
from draftless.engine.cpu.record import NUM_TOKENS, OTHER_NUM_TOKENS, Call, Recording
from draftless.engine.cpu.values import NotLowered
from support.native_forward import F, Function, Native, recorded, stock, table_of

BOTH = ("fp32", "bf16")

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
    "bias of a sequence": lambda x, _: torch.addmm(torch.ones(NUM_TOKENS, 24), x[0], torch.eye(24))[None],
    "linear with a bias of tokens": lambda x, _: functional.linear(x, torch.ones(NUM_TOKENS, 24), x[0, :, 0]),
    "product over single tokens": lambda x, _: functional.linear(x[..., :1].transpose(1, 2), SQUARE).transpose(1, 2),
    "product of single numbers": lambda x, _: functional.linear(x[..., None], torch.ones(3, 1)).flatten(2),
    "linear of heads": lambda x, _: functional.linear(x.view(1, -1, 4, 6), torch.ones(3, 6)).flatten(2),
    "factor of a number": lambda x, _: torch.ops.aten.add.Scalar(x, 1, 2),
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


def test_results_of_another_dtype_are_refused() -> None:
    """Whoever reads the result of a pass reads it in the dtype of the model."""
    for dtype, of in (
        ("fp32", lambda x, _: x.bfloat16().float()),
        ("fp32", lambda x, _: x.bfloat16()),
        ("bf16", lambda x, _: x.float()),
        ("fp32", lambda _, p: p[..., None].float()),
        ("fp32", lambda _, p: p[..., None]),
    ):
        with pytest.raises(NotLowered, match="a result of another form"):
            Function(of, table_of(24, dtype))


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


TABLE = torch.randn(40, 24)
FOLLOWS: dict[str, F] = {
    "a factor": lambda x, _: x * math.log(x.shape[1]),
    "a tensor": lambda x, _: x + torch.full((), float(x.shape[1])),
    "a power": lambda x, _: x.pow(x.shape[1] / 10),
    "a weight": lambda x, _: functional.linear(x, TABLE[: x.shape[1]]),
    "other operators": lambda x, _: x * 2 if x.shape[1] > 15 else x + x,
    "rows of a table": lambda x, p: x + functional.embedding(p, TABLE[-x.shape[1] :]),
    "a slice": lambda x, _: x[..., x.shape[1] - 8 :][..., :4],
}
SAME: dict[str, F] = {
    "shapes": lambda x, _: x.view(1, x.shape[1], 4, 6).transpose(1, 2).reshape(1, 4, -1, 6),
    "an even number": lambda x, _: x * (x.shape[1] % 2),
    "a weight made anew": lambda x, _: functional.linear(x, TABLE * 2, TABLE[:, 0] + 1),
    "a sum over rows": lambda x, p: x * p[..., None].float().cos() + TABLE[3],
}


def lowered(function: F, num_tokens: int) -> Lowering:
    return Lowering(recorded(function, table_of(24, "fp32"), num_tokens), torch.float32)


@pytest.mark.parametrize("name", FOLLOWS)
def test_numbers_that_follow_the_number_of_tokens_are_refused(name: str) -> None:
    passes = [lowered(FOLLOWS[name], n) for n in (NUM_TOKENS, OTHER_NUM_TOKENS)]
    with pytest.raises(NotLowered, match="depends on the number of tokens"):
        refuse_other_passes(*passes)


@pytest.mark.parametrize("name", SAME)
def test_passes_that_do_not_follow_it_are_one(name: str) -> None:
    refuse_other_passes(*(lowered(SAME[name], n) for n in (NUM_TOKENS, OTHER_NUM_TOKENS)))


def test_a_model_that_follows_the_number_of_tokens() -> None:
    """As one that makes its attention sharper where the context is longer."""
    model = stock("llama", "fp32")
    norm = model.model.norm
    hook = norm.register_forward_hook(lambda _, __, found: found * math.log(found.shape[1]))
    try:
        with pytest.raises(NotLowered, match="depends on the number of tokens"):
            Native("llama", "fp32")
    finally:
        hook.remove()
    Native("llama", "fp32")


def test_operators_of_higher_order_are_refused() -> None:
    """They have no schema. They are recorded, and not known."""

    class Operator:
        def __call__(self, x: torch.Tensor) -> torch.Tensor:
            return x * 2

        def __str__(self) -> str:
            return "a_higher_order_operator"

    def function(x: torch.Tensor, _: torch.Tensor) -> torch.Tensor:
        mode = torch.utils._python_dispatch._get_current_dispatch_mode()
        found: torch.Tensor = mode.__torch_dispatch__(Operator(), (), (x,))  # type: ignore[union-attr]
        return found

    with pytest.raises(NotLowered, match="a_higher_order_operator"):
        Function(function, table_of(24, "fp32"))
