"""The stand-in for pretrained models: right in float32, far from it in bfloat16."""

from __future__ import annotations

import copy

import pytest
import torch
from transformers import PreTrainedModel

from support.models import FAMILIES, build_model, prompt_ids
from support.outliers import plant_outliers

PROMPT = torch.tensor([prompt_ids(48)])


@torch.inference_mode()
def error(model: PreTrainedModel, dtype: torch.dtype, exact: torch.Tensor) -> float:
    """Largest error of a logit, in standard deviations of its position's logits."""
    logits = copy.deepcopy(model).to(dtype)(input_ids=PROMPT).logits.double()
    return float(((logits - exact) / exact.std(-1, keepdim=True)).abs().max())


@pytest.mark.parametrize("family", ["llama", "qwen2", "mistral", "phi3", "gemma2", "gemma3"])
def test_only_half_precision_suffers(family: str) -> None:
    model = plant_outliers(build_model(FAMILIES[family].config()))
    with torch.inference_mode():
        exact = model(input_ids=PROMPT).logits
        shifted = model(input_ids=PROMPT, position_ids=2 * torch.arange(48)[None]).logits
    assert error(model, torch.bfloat16, exact) > 0.3
    assert error(model, torch.float32, exact) < 0.005
    assert ((shifted - exact) / exact.std(-1, keepdim=True)).abs().max() > 0.3
