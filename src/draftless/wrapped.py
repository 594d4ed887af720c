"""Models as others wrap them: adapters of peft, `torch.compile`, weights rounded in memory."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from transformers import PreTrainedModel
from transformers.utils import find_adapter_config_file

from draftless.checkpoint.gguf import is_gguf
from draftless.errors import ArtifactError, CapabilityError

# Adapters that live inside the layers of the base model, which so computes what the adapter computes.
_INJECTED = frozenset({"LORA", "ADALORA", "IA3", "LOHA", "LOKR", "OFT", "BOFT", "VERA"})
_QUANTISERS = (
    "torch.ao.",
    "torchao.",
    "bitsandbytes.",
    "quanto.",
    "optimum.",
    "hqq.",
    "gptqmodel.",
)
_MERGE = "merge it: give peft_model.merge_and_unload()"
_UNQUANTISED = "load it unquantised (int8=True rounds the weights in an exact way)"


def unwrap(model: Any) -> PreTrainedModel:
    """The `transformers` model inside a `PeftModel` or a `torch.compile`d module.

    An adapter's layers stay where peft put them, so the outputs are the adapter's.

    Raises:
        CapabilityError: it is wrapped in something else, or the model inside alone would compute
            something else than the whole.
    """
    while not isinstance(model, PreTrainedModel):
        name = type(model).__name__
        if isinstance(getattr(model, "_orig_mod", None), torch.nn.Module):
            model = model._orig_mod  # an OptimizedModule
        elif hasattr(model, "peft_config") and hasattr(model, "get_base_model"):
            _check_adapters(model)
            model = model.get_base_model()
        elif isinstance(getattr(model, "module", None), torch.nn.Module):
            raise CapabilityError(f"{name} wraps a model for training; give its .module")
        elif isinstance(getattr(model, "model", None), PreTrainedModel):
            raise CapabilityError(f"{name} is not a transformers model; give its .model")
        else:
            raise CapabilityError(
                f"{name} is not a transformers model; give a folder, a name on the hub, or a model "
                "of AutoModelForCausalLM"
            )
    if getattr(model, "_compiled_call_impl", None) is not None:
        raise CapabilityError(
            f"{type(model).__name__} was compiled in place by model.compile(); load it without, and "
            "use compile=True here"
        )
    _check_weights(model)
    return model


def _check_adapters(model: Any) -> None:
    for name, config in model.peft_config.items():
        kind = str(getattr(config.peft_type, "value", config.peft_type))
        if kind not in _INJECTED:
            raise CapabilityError(
                f"adapter {name!r} is of type {kind}, which works outside the layers of the model and "
                "cannot be verified in trees; use a LoRA adapter"
            )
        if getattr(config, "alora_invocation_tokens", None):
            raise CapabilityError(
                f"adapter {name!r} is an activated LoRA, which reads the prompt to switch itself on; "
                "use an ordinary LoRA"
            )


def _check_weights(model: PreTrainedModel) -> None:
    """Refuse weights that were quantised or distributed after loading.

    Raises:
        CapabilityError: names the part.
    """
    for name, module in model.named_modules():
        kind = type(module)
        if kind.__module__.startswith(_QUANTISERS):
            raise CapabilityError(
                f"{name} is a quantised {kind.__module__}.{kind.__name__}; exactness is not tested "
                f"there, {_UNQUANTISED}"
            )
    for name, parameter in model.named_parameters():
        kind = type(parameter.data)
        if kind is not torch.Tensor or not parameter.is_floating_point():
            what = (
                f"{kind.__module__}.{kind.__name__}"
                if kind is not torch.Tensor
                else str(parameter.dtype)
            )
            raise CapabilityError(
                f"{name} is quantised or distributed ({what}); exactness is not tested there, "
                f"{_UNQUANTISED}"
            )


def adapter_base(path: str | Path, options: Mapping[str, Any]) -> str | None:
    """The base model of a peft adapter's folder or hub repository; None where there is no adapter.

    Args:
        path: folder, name on the hub, or GGUF file.
        options: `revision`, `token`, `cache_dir`, `local_files_only`.

    Raises:
        ArtifactError: its `adapter_config.json` does not name a base model.
    """
    if is_gguf(path):
        return None
    asked = {name: value for name, value in options.items() if name != "trust_remote_code"}
    try:
        file = find_adapter_config_file(str(path), **asked)
    except OSError:
        return None  # no such model: whoever loads it says so better
    if file is None:
        return None
    try:
        base = json.loads(Path(file).read_text(encoding="utf-8")).get("base_model_name_or_path")
    except (OSError, ValueError, AttributeError) as error:
        raise ArtifactError(f"{file} is not a valid adapter config: {error!r}") from error
    if not isinstance(base, str) or not base:
        raise ArtifactError(f"{file} names no base model (base_model_name_or_path)")
    return base


def load_adapter(
    path: str | Path, dtype: torch.dtype | None, options: Mapping[str, Any]
) -> PreTrainedModel:
    """The base model of an adapter with the adapter merged into its weights.

    Merging rounds the sum to the weights' dtype: in half precision the outputs may differ from those of
    the unmerged adapter, which `unwrap` keeps.

    Raises:
        CapabilityError: peft is missing, or the adapter cannot be merged.
        ArtifactError: base or adapter cannot be loaded.
    """
    try:
        from peft import AutoPeftModelForCausalLM
    except ImportError as error:
        raise CapabilityError(
            f"{str(path)!r} is an adapter, which needs peft: pip install peft; or give the folder of a "
            "merged model"
        ) from error
    try:
        whole = AutoPeftModelForCausalLM.from_pretrained(
            str(path), dtype=dtype or "auto", **options
        )
    except Exception as error:
        reason = " ".join(str(error).split())
        raise ArtifactError(f"cannot load the adapter {str(path)!r}: {reason}") from error
    _check_adapters(whole)
    return unwrap(whole.merge_and_unload())
