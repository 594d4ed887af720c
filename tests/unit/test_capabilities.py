"""Models that cannot work are refused before any work, with a reason."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers as hf

from draftless.drafters.registry import make_drafter
from draftless.engine.capabilities import check_config, check_model, context_limit, parse_dtype
from draftless.engine.target import TargetModel
from draftless.errors import CapabilityError
from draftless.params import SamplingParams
from support.driving import Job, run
from support.models import FAMILIES, build_model, prompt_ids, stock_model
from support.replay import ReplayDrafter

SMALL = {
    "vocab_size": 61,
    "hidden_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "intermediate_size": 48,
}

REFUSED: dict[str, tuple[hf.PreTrainedConfig, str]] = {
    "encoder-decoder": (hf.T5Config(), "encoder-decoder"),
    "mamba": (hf.MambaConfig(), "cannot be rolled back"),
    "hybrid": (hf.JambaConfig(), r"recurrent state|state cannot be rolled back"),
    "quantised": (
        hf.LlamaConfig(**SMALL, quantization_config={"quant_method": "bitsandbytes"}),
        "quantised",
    ),
    "other layers": (
        hf.LlamaConfig(**SMALL, layer_types=["full_attention", "linear_attention"]),
        "linear_attention",
    ),
    "chunked": (
        hf.LlamaConfig(**SMALL, layer_types=["chunked_attention"] * 2),
        "chunked_attention",
    ),
}


@pytest.mark.parametrize("name", REFUSED)
def test_refused_by_configuration(name: str) -> None:
    config, reason = REFUSED[name]
    with pytest.raises(CapabilityError, match=reason):
        check_config(config)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_supported_families_pass(family: str) -> None:
    check_config(FAMILIES[family].config())
    check_model(stock_model(family))


def test_refused_before_weights_are_loaded(tmp_path: Path) -> None:
    hf.T5Config().save_pretrained(tmp_path)  # there are no weights at all
    with pytest.raises(CapabilityError, match="encoder-decoder"):
        TargetModel.from_pretrained(tmp_path)


def test_mamba_is_refused_as_a_model_too() -> None:
    config = hf.MambaConfig(vocab_size=61, hidden_size=32, num_hidden_layers=1, state_size=4)
    model = hf.MambaForCausalLM(config)
    with pytest.raises(CapabilityError, match="cannot be rolled back"):
        TargetModel(model)


def test_alibi_is_found_out_by_trying() -> None:
    """Bloom's biases follow the slot, not the position."""
    config = hf.BloomConfig(vocab_size=61, hidden_size=32, n_layer=2, n_head=4)
    with pytest.raises(CapabilityError):
        TargetModel(hf.BloomForCausalLM(config).double())


def test_attention_with_extras_is_found_out_by_trying() -> None:
    """GPT-OSS adds a learned sink to every softmax; its own eager attention does so too."""
    config = hf.GptOssConfig(
        **SMALL, num_key_value_heads=2, head_dim=8, num_local_experts=2, num_experts_per_tok=1,
        sliding_window=8, max_position_embeddings=64, initializer_range=0.3,
        rope_parameters={"rope_type": "default", "rope_theta": 10_000.0},
    )  # fmt: skip
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    for layer in model.model.layers:
        torch.nn.init.constant_(layer.self_attn.sinks, 2.0)
    with pytest.raises(CapabilityError, match="try attention='eager'"):
        TargetModel(copy.deepcopy(model))
    assert TargetModel(model, "eager").max_positions == 64


def test_a_model_without_a_language_head() -> None:
    model = hf.LlamaModel(hf.LlamaConfig(**SMALL))
    with pytest.raises(CapabilityError, match="no language-model head"):
        check_model(model)


def test_remote_code() -> None:
    class RemoteForCausalLM(hf.LlamaForCausalLM):
        """Lives in this module, not in transformers."""

    with pytest.raises(CapabilityError, match="not from transformers"):
        check_model(RemoteForCausalLM(hf.LlamaConfig(**SMALL)))


def test_something_else() -> None:
    with pytest.raises(CapabilityError, match="not a transformers model"):
        check_model(torch.nn.Linear(2, 2))  # type: ignore[arg-type]


def test_a_model_on_several_devices() -> None:
    model = copy.deepcopy(stock_model("llama"))
    model.hf_device_map = {"model.layers.0": 0, "model.layers.1": "cpu"}
    with pytest.raises(CapabilityError, match="several devices"):
        check_model(model)


LONG_FACTORS = {"short_factor": [1.0] * 4, "long_factor": [2.0] * 4}
ROPES: dict[str, tuple[dict[str, Any], int]] = {
    "longrope": (
        {"rope_type": "longrope", "original_max_position_embeddings": 64, **LONG_FACTORS},
        64,
    ),
    "dynamic": ({"rope_type": "dynamic", "factor": 4.0}, 512),
    "linear": ({"rope_type": "linear", "factor": 4.0}, 4 * 512),
    "yarn": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 512},
        4 * 512,
    ),
    "yarn, and the context is the scaled one": (
        {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 128},
        512,
    ),
    "default": ({"rope_type": "default"}, 512),
}


@pytest.mark.parametrize("name", ROPES)
def test_rope_that_looks_at_the_whole_batch_is_honoured_inside_its_window(name: str) -> None:
    """Past it, one tree node would change every logit."""
    rope, limit = ROPES[name]
    config = hf.LlamaConfig(
        **SMALL, max_position_embeddings=512, rope_parameters={"rope_theta": 10000.0, **rope}
    )
    assert context_limit(config) == limit


@pytest.mark.parametrize("name", ["longrope", "dynamic"])
def test_such_a_rope_writes_plain_text_up_to_its_limit(name: str) -> None:
    rope, limit = ROPES[name]
    config = hf.LlamaConfig(
        **SMALL,
        initializer_range=0.3,
        max_position_embeddings=max(64, limit // 8),
        rope_parameters={"rope_theta": 10000.0, **rope},
    )
    model = TargetModel(build_model(config))
    assert model.max_positions == 64
    job = Job(prompt_ids(40), SamplingParams(max_new_tokens=100))
    plain = run(model, make_drafter("none"), [job])[0]
    assert (len(plain.token_ids), plain.finish_reason) == (24, "length")
    drafted = run(model, ReplayDrafter([plain.token_ids], [24]), [job])[0]
    assert drafted.token_ids == plain.token_ids


@pytest.mark.parametrize(
    ("name", "dtype"),
    [("bf16", torch.bfloat16), ("float64", torch.float64), (torch.float16, torch.float16)],
)
def test_dtypes_by_name(name: str, dtype: torch.dtype) -> None:
    assert parse_dtype(name) is dtype
    assert parse_dtype(None) is None


@pytest.mark.parametrize("name", ["float7", "int32", "nn", ""])
def test_other_dtypes_are_refused(name: str) -> None:
    with pytest.raises(CapabilityError, match="unknown; use"):
        parse_dtype(name)
