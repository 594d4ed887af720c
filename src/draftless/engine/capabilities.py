"""Refuses, before any work, the models with which exact tree decoding cannot work."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedConfig, PreTrainedModel

from draftless.checkpoint.gguf import is_gguf, source_keywords
from draftless.engine.attention import ATTENTION_NAME
from draftless.errors import ArtifactError, CapabilityError, ConfigError

_ATTENTION_LAYERS = {"full_attention", "sliding_attention"}
_SCALED_ROPE = {"linear", "yarn"}
_WINDOWED_ROPE = {"longrope", "dynamic"}


def check_config(config: PreTrainedConfig) -> None:
    """Refuse by configuration alone.

    Raises:
        CapabilityError: for an encoder-decoder, recurrent or other state than keys and values,
            an unknown kind of attention layer, or quantised weights.
    """
    name = config.model_type
    if getattr(config, "is_encoder_decoder", False):
        raise CapabilityError(
            f"{name} is an encoder-decoder; Draftless decodes decoder-only models"
        )
    if getattr(config, "quantization_config", None) is not None:
        raise CapabilityError(
            f"{name} is quantised; exactness is not tested there, load it unquantised"
        )
    text = config.get_text_config()
    other = set(getattr(text, "layer_types", None) or ()) - _ATTENTION_LAYERS
    if other:
        raise CapabilityError(
            f"{name} has layers of type {', '.join(sorted(other))}; their state cannot be rolled "
            f"back, supported are {', '.join(sorted(_ATTENTION_LAYERS))}"
        )
    # State-space and recurrent families keep their state outside keys and values.
    for field in ("ssm_cfg", "state_size", "mamba_d_state", "rwkv_version", "attn_layer_period"):
        if getattr(text, field, None) is not None:
            raise CapabilityError(
                f"{name} keeps recurrent state ({field}), which cannot be rolled back"
            )
    heads = getattr(text, "num_key_value_heads", None)
    if heads is not None and not isinstance(heads, int):
        raise CapabilityError(f"{name} has a number of KV heads per layer ({heads}); not supported")
    if getattr(text, "num_kv_shared_layers", 0):
        raise CapabilityError(f"{name} shares keys and values between layers; not supported")


def check_model(model: PreTrainedModel) -> None:
    """Refuse a loaded model.

    Raises:
        CapabilityError: as `check_config`, and for a model that is not a causal language model of
            `transformers` itself, is quantised, split over devices, or not ready for our masks.
    """
    if not isinstance(model, PreTrainedModel):
        raise CapabilityError(f"{type(model).__name__} is not a transformers model")
    check_config(model.config)
    name = type(model).__name__
    if not type(model).__module__.startswith("transformers."):
        raise CapabilityError(
            f"{name} comes from {type(model).__module__}, not from transformers; remote code may "
            "ignore 4-D masks and positions. Convert the checkpoint to a stock architecture"
        )
    if not model.can_generate() or model.get_output_embeddings() is None:
        raise CapabilityError(
            f"{name} has no language-model head; load it with AutoModelForCausalLM"
        )
    if getattr(model, "hf_quantizer", None) is not None:
        raise CapabilityError(f"{name} is quantised; exactness is not tested there")
    if getattr(model, "_is_stateful", False):
        raise CapabilityError(f"{name} keeps recurrent state, which cannot be rolled back")
    if not model._can_set_attn_implementation():
        raise CapabilityError(f"{name} does not use transformers' attention interface")
    devices = set(map(str, getattr(model, "hf_device_map", {}).values()))
    if len(devices) > 1 or len({p.device for p in model.parameters()}) > 1:
        raise CapabilityError(
            f"{name} is split over several devices {sorted(devices)}; load it onto one"
        )


def context_limit(config: PreTrainedConfig) -> int | None:
    """Positions that may be used, or None where the model sets no limit.

    `longrope` and `dynamic` RoPE choose their frequencies from the largest position in the batch,
    so a tree node past the original window would change every logit: their window is the limit.
    """
    text: Any = config.get_text_config()
    limit: int | None = getattr(text, "max_position_embeddings", None)
    rope = getattr(text, "rope_parameters", None) or {}
    kinds = [rope] if "rope_type" in rope else [r for r in rope.values() if isinstance(r, dict)]
    for kind in kinds:
        if kind.get("rope_type") in _WINDOWED_ROPE:
            window = kind.get("original_max_position_embeddings") or getattr(
                text, "original_max_position_embeddings", None
            )
            limit = min((w for w in (window, limit) if w is not None), default=None)
        elif kind.get("rope_type") in _SCALED_ROPE and limit is not None:
            # Checkpoints say the context before the scaling or after it.
            original = kind.get("original_max_position_embeddings") or limit
            limit = max(limit, int(original * kind.get("factor", 1.0)))
    return limit


def parse_dtype(name: str | torch.dtype | None) -> torch.dtype | None:
    """`float32`, `bfloat16`, ... as a torch dtype; None and dtypes pass through."""
    if name is None or isinstance(name, torch.dtype):
        return name
    short = {"bf16": "bfloat16", "fp16": "float16", "fp32": "float32", "fp64": "float64"}
    dtype = getattr(torch, short.get(name, name), None)
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise CapabilityError(
            f"dtype {name!r} is unknown; use bfloat16, float16, float32 or float64"
        )
    return dtype


def check_source(path: str | Path) -> None:
    """Refuse what is no folder, no GGUF file and could be no name on the hub.

    Raises:
        ArtifactError: there is no such folder or GGUF file.
    """
    if is_gguf(path):
        source_keywords(path)
        return
    could_be_name = re.fullmatch(r"\w[\w.-]*(/\w[\w.-]*)?", str(path))
    if not could_be_name and not Path(path).is_dir():
        raise ArtifactError(f"there is no folder {str(path)!r}")


def parse_device(name: str | torch.device | None) -> torch.device | None:
    """`cpu`, `cuda`, `cuda:1`, ... as a torch device that is there; None passes through.

    Raises:
        ConfigError: there is no such device.
    """
    if name is None:
        return None
    try:
        device = torch.device(name)
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError, NotImplementedError) as error:
        reason = str(error).partition("\n")[0]
        raise ConfigError(
            f"device {str(name)!r} is not there: {reason}; leave it out for the CPU"
        ) from error
    return device


def check_compile(attention: str, is_compiled: bool | str, is_strict: bool) -> None:
    if is_compiled is not False and is_compiled != "auto" and attention != ATTENTION_NAME:
        raise ConfigError(f"compile=True goes with attention='draftless', not {attention!r}")
    if is_strict and not is_compiled:
        raise ConfigError("strict=True needs compile=True")


def check_input_only(input_only_ids: Sequence[int], vocab_size: int) -> None:
    outside = [i for i in input_only_ids if not 0 <= i < vocab_size]
    if outside:
        raise ConfigError(
            f"input_only_ids {outside} lie outside the vocabulary 0..{vocab_size - 1}; "
            "give ids that the model's embedding has"
        )
