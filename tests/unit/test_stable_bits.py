"""What is tried at load of the bits of passes, also where the context is short."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GPT2Config

from draftless.engine.build import compiler
from draftless.engine.target import TargetModel
from support.models import build_model

pytestmark = pytest.mark.skipif(compiler() is None, reason="there is no C++ compiler")


def short(num_positions: int) -> Any:
    config = GPT2Config(
        vocab_size=61, n_positions=num_positions, n_embd=32, n_layer=2, n_head=4,
        initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    return build_model(config, "bf16")


@pytest.mark.parametrize("num_positions", [25, 64, 310, 320])
def test_a_table_of_positions_of_any_size(num_positions: int) -> None:
    target = TargetModel(short(num_positions), compile=True)
    assert target.is_compiled
    assert target.is_reproducible


@pytest.mark.parametrize("num_positions", [25, 320])
def test_bits_that_depend_on_the_width_are_seen(
    num_positions: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    forward = TargetModel.forward

    def spoiled(self: TargetModel, cache: Any, token_ids: Any, *args: Any, **kwargs: Any) -> Any:
        found = forward(self, cache, token_ids, *args, **kwargs)
        if len(token_ids[0]) > 6:
            found[0][-1] = torch.nextafter(found[0][-1], torch.zeros((), dtype=found[0].dtype))
        return found

    monkeypatch.setattr(TargetModel, "forward", spoiled)
    assert not TargetModel(short(num_positions), compile=True).is_reproducible
