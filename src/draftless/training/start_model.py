"""The model that a run starts from: its weights, its adaptive ids, its adapters."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from fnmatch import fnmatch
from functools import partial
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from transformers import AutoConfig, AutoModelForCausalLM, PreTrainedModel

from draftless.checkpoint.weights import load_weights
from draftless.errors import ArtifactError, CapabilityError, ConfigError
from draftless.manifest import Manifest, read_manifest
from draftless.training.adaptive_tokens import (
    add_adaptive_tokens,
    highest_id,
    take_unassigned,
)
from draftless.training.config import TrainConfig


def start_manifest(config: TrainConfig) -> Manifest | None:
    """Of the checkpoint that the run starts from."""
    return read_manifest(config.model) if Path(config.model).is_dir() else None


@contextmanager
def reading(name: str) -> Iterator[None]:
    """What cannot be read ends in an ArtifactError that names it."""
    try:
        yield
    except ArtifactError:
        raise
    except Exception as error:
        raise ArtifactError(f"cannot load {name!r}: {error}") from error


def load(kind: Any, name: str, **options: Any) -> Any:
    """One of `transformers`' Auto classes from a folder or hub id."""
    with reading(name):
        return kind.from_pretrained(name, **options)


def save_tokenizer(tokenizer: Any, config: TrainConfig, output: Path) -> None:
    """Write the tokenizer of a trained model; `frozen` keeps its files byte for byte."""
    if not config.frozen:
        tokenizer.save_pretrained(output)
        return
    names = {*_TOKENIZER_FILES, *tokenizer.vocab_files_names.values()}
    source = Path(config.model)
    if not source.is_dir():
        source = Path(snapshot_download(config.model, allow_patterns=sorted(names)))
    for file in sorted(source.rglob("*")):
        name = file.relative_to(source)
        if any(fnmatch(name.as_posix(), pattern) for pattern in names):
            (output / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, output / name)


_TOKENIZER_FILES = (
    "tokenizer.json", "tokenizer.model", "tokenizer_config.json", "special_tokens_map.json",
    "added_tokens.json", "chat_template.jinja", "chat_template.json", "additional_chat_templates/*.jinja",
)  # fmt: skip


def make_model(config: TrainConfig, tokenizer: Any) -> tuple[PreTrainedModel, torch.dtype]:
    """The model in fp32, and the dtype of its checkpoint."""
    torch.manual_seed(config.seed)  # random weights and adapters
    shape = load(AutoConfig, config.model)
    text = shape.get_text_config()
    if config.has_blocks:
        _check_masks(config, shape.model_type, text)
    dtype = shape.dtype or torch.float32
    attention = config.attention if config.has_blocks else None
    if config.from_scratch is not None:
        # What follows from the sizes is dropped with them, or a stale value would contradict.
        known = shape.to_dict()
        known.update({name: None for name in ("head_dim", "layer_types") if name in known})
        # Adaptive ids of the model that it is shaped after are not its own.
        known["vocab_size"] = highest_id(tokenizer) + 1
        shape = type(shape).from_dict({**known, **config.from_scratch})
        return AutoModelForCausalLM.from_config(shape, attn_implementation=attention), dtype
    with reading(config.model):
        where = {"pretrained_model_name_or_path": config.model}
        model = load_weights(**where, dtype=torch.float32)
    if attention is not None:
        model.set_attn_implementation(attention)
    return model, dtype


def _check_masks(config: TrainConfig, family: str, text: Any) -> None:
    """Refuse families whose layers would not all honour the blocks' mask."""
    remedy = "" if config.adaptive else "; use --mode inline"
    kinds, window = getattr(text, "layer_types", None), getattr(text, "sliding_window", None)
    if "sliding_attention" in (kinds or ()):
        raise CapabilityError(
            f"blocks need one mask for all layers; {family} has layers with a sliding window{remedy}"
        )
    if kinds is None and window is not None and window < config.max_length:
        raise CapabilityError(  # a 4-D mask switches such a window off
            f"{family} has a window of {window} tokens, which documents of {config.max_length} "
            f"outgrow; use --max-length {window}{remedy}"
        )
    if getattr(text, "attn_logit_softcapping", None) and config.attention == "sdpa":
        raise CapabilityError(
            f"{family} caps its attention scores, which sdpa cannot; use --attention eager{remedy}"
        )


def choose_adaptive_ids(
    config: TrainConfig, model: PreTrainedModel, tokenizer: Any
) -> tuple[int, ...]:
    """The ids of the adaptive tokens: those that the checkpoint has, those asked for, or new ones."""
    if not config.adaptive:
        return ()
    manifest = None if config.from_scratch else start_manifest(config)
    known = tuple(manifest.methods.get("sdsat", {}).get("adaptive_ids", ())) if manifest else ()
    wanted = config.block_length if config.distinct else 1
    if known:  # trained before: goes on from there
        if len(known) != wanted or config.adaptive_ids not in (None, known):
            raise ConfigError(
                f"{config.model} has the adaptive ids {', '.join(map(str, known))}: leave "
                f"--adaptive-ids out and {_id_options(len(known))}"
            )
        return known
    if config.adaptive_ids is not None:
        return take_unassigned(model, tokenizer, config.adaptive_ids)
    return add_adaptive_tokens(model, wanted, tokenizer)


def _id_options(count: int) -> str:
    return "do not use --distinct" if count == 1 else f"use --distinct --block-length {count}"


def frozen_copy(model: PreTrainedModel) -> PreTrainedModel:
    return copy.deepcopy(model).requires_grad_(False).eval()


def with_adapters(
    model: PreTrainedModel, config: TrainConfig, adaptive_ids: tuple[int, ...]
) -> Any:
    """Low-rank adapters (`lora`), rows of adaptive tokens that train alone (`frozen`), or both."""
    try:
        import peft
    except ImportError as error:
        raise ConfigError("lora and frozen need peft: pip install 'draftless[train]'") from error
    embedding = next(
        name for name, module in model.named_modules() if module is model.get_input_embeddings()
    )
    if config.frozen:
        # As a target, the full name matches this module alone.
        adapters: Any = peft.TrainableTokensConfig(
            token_indices=list(adaptive_ids), target_modules=[embedding], task_type="CAUSAL_LM"
        )
    else:
        adapters = peft.LoraConfig(
            r=config.lora_rank,
            lora_alpha=2 * config.lora_rank,
            target_modules="all-linear",
            trainable_token_indices={embedding: list(adaptive_ids)} if adaptive_ids else None,
            task_type="CAUSAL_LM",
        )
    adapted: Any = peft.get_peft_model(model, adapters)
    # A checkpoint needs what is trained alone: the rest is made again from the model and the seed.
    # Left to itself, peft saves all of an embedding that has grown.
    adapted.save_pretrained = partial(adapted.save_pretrained, save_embedding_layers=False)
    return adapted
