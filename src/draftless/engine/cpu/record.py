"""One pass of a stock model, operator by operator: what is computed from tokens and positions."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils._python_dispatch import TorchDispatchMode

from draftless.engine.attention import attention_replaced_by
from draftless.engine.cache import PassThroughCache, cache_keyword
from draftless.engine.cpu.values import NotLowered
from draftless.engine.no_products import NoProducts

NUM_TOKENS = 13
"""Of the recorded pass. A prime that no model has as a size."""


@dataclass(frozen=True, slots=True)
class Call:
    """One operator.

    Attributes:
        name: such as `aten.mul.Tensor`; `attention` for the attention of a layer.
        args, kwargs: tensors among them are the objects that earlier calls returned.
        results: tensors.
        is_mutable: whether it writes to an argument.
    """

    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    results: tuple[torch.Tensor, ...]
    is_mutable: bool = False


@dataclass(frozen=True, slots=True)
class Recording:
    """What a model did.

    Attributes:
        calls: in order.
        token_ids, positions: `[1, NUM_TOKENS]` int64, what it was given.
        states: `[1, NUM_TOKENS, hidden]`, what comes before the head of the language model.
        logits: `[1, NUM_TOKENS, V]`.
    """

    calls: Sequence[Call]
    token_ids: torch.Tensor
    positions: torch.Tensor
    states: torch.Tensor
    logits: torch.Tensor


class _Recorder(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.calls: list[Call] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        found = func(*args, **kwargs)
        results = found if isinstance(found, tuple | list) else (found,)
        tensors = tuple(one for one in results if isinstance(one, torch.Tensor))
        is_mutable = func._schema.is_mutable
        self.calls.append(Call(str(func), tuple(args), kwargs, tensors, is_mutable))
        return found

    def attention(
        self,
        module: Any,
        query: torch.Tensor,  # [1, Hq, M, D]
        key: torch.Tensor,  # [1, Hkv, M, D]
        value: torch.Tensor,  # [1, Hkv, M, Dv]
        mask: torch.Tensor,
        scaling: float | None,
        softcap: float | None,
    ) -> torch.Tensor:  # [1, M, Hq, Dv]
        """Stands in for the attention of a layer."""
        shape = (1, query.shape[2], query.shape[1], value.shape[3])
        out = torch.zeros(shape, dtype=query.dtype)
        place = {
            "layer": module.layer_idx,
            "layer_type": mask.shape[-1] - 1,
            "scaling": query.shape[3] ** -0.5 if scaling is None else scaling,
            "softcap": softcap or 0.0,
        }
        self.calls.append(Call("attention", (query, key, value), place, (out,)))
        return out


def record(model: Any, kinds: Sequence[str], num_layers: int, dtype: torch.dtype) -> Recording:
    """Run `NUM_TOKENS` tokens through a model, with stand-ins for its attention and its products.

    Args:
        model: a `transformers` model (or a view of one) with our attention, on the CPU.
        kinds: types of its layers.
        num_layers: of the whole model.
        dtype: of its weights.

    Raises:
        NotLowered: what comes before the head cannot be seen.
    """
    recorder = _Recorder()
    token_ids = torch.zeros((1, NUM_TOKENS), dtype=torch.long)
    positions = torch.arange(NUM_TOKENS)[None]
    # The number of columns names a layer's type: nothing else survives the way to the attention.
    masks = {
        kind: torch.zeros((1, 1, NUM_TOKENS, 1 + index), dtype=dtype)
        for index, kind in enumerate(kinds)
    }
    states: list[torch.Tensor] = []

    def note(_: Any, __: Any, found: Any) -> None:
        if isinstance(one := getattr(found, "last_hidden_state", None), torch.Tensor):
            states.append(one)

    # Some heads (OPT) read the decoder and pass its owner by; where both are called, the owner is the last.
    hooks = [one.register_forward_hook(note) for one in (model.base_model, model.get_decoder())]
    with (
        hooks[0],
        hooks[1],
        torch.inference_mode(),
        attention_replaced_by(recorder.attention),
        NoProducts(NUM_TOKENS),
        recorder,
    ):
        logits = model(
            input_ids=token_ids,
            position_ids=positions,
            attention_mask=masks if len(masks) > 1 else next(iter(masks.values())),
            use_cache=True,
            **{cache_keyword(model): PassThroughCache(num_layers)},
        ).logits
    if not states:
        raise NotLowered("a head that does not read what the decoder returns")
    return Recording(recorder.calls, token_ids, positions, states[-1], logits)
