"""`TrainConfig`: every option of a training run, from a YAML file and flags; presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any, Literal, get_type_hints

import yaml

from draftless.errors import ConfigError
from draftless.noise import NoiseSource
from draftless.training.adaptive import AdaptiveSettings
from draftless.training.noise_runs import NoiseMode, NoiseSettings

Dtype = Literal["bfloat16", "float32"]
Format = Literal["auto", "plain", "chat"]
BlockTargets = Literal["labels", "model"]
TrainAttention = Literal["sdpa", "eager"]


@dataclass(frozen=True)
class TrainConfig:
    """One run of `draftless train`. Lengths are tokens; "blocks" are noise or adaptive tokens.

    Attributes:
        model: checkpoint folder or hub id to start from.
        data: JSONL file, folder of such, or Hugging Face dataset name.
        output: folder that the trained model is written to.
        eval_data: data to evaluate on; None holds `eval_share` of `data` back.
        eval_share: share of the records held back where there is no `eval_data`.
        split: split of a dataset, and name of the files in a folder that has several.
        format: how prompt and response are joined; `auto` takes what the checkpoint was trained with,
            else the chat template for messages and for a model that has one, else `plain`.
        suffix: stands between prompt and response (`plain`); None is a newline, or nothing where
            `frozen` keeps a model's own format.
        noise: teach denoising (MSN).
        adaptive: teach adaptive tokens (SDSAT).
        mode: `branch` hangs noise beside the clean sequence; `inline` is the paper's.
        noise_length: noise tokens in a run.
        max_noise_length: None, or lengths are drawn between `noise_length` and this.
        noise_source: draw noise from the `prefix` or from the whole `vocabulary`.
        clean_share: share of documents without noise; 1 is plain supervised fine-tuning.
        spacing: `branch`: one block for this many response tokens.
        noise_weight: `branch`: weight of a noise target in the loss; a clean one has 1.
        block_length: adaptive tokens in a block.
        adaptive_ids: None adds new ids to the vocabulary; otherwise ids that the tokenizer does not use.
        distinct: a distinct adaptive id for every slot instead of one that all share.
        adaptive_spacing: one adaptive block for this many response tokens.
        adaptive_weight: weight of an adaptive target in the loss.
        adaptive_first: share of the steps, at the beginning, in which blocks alone count (the paper's
            first stage).
        frozen: train nothing but the rows of the adaptive tokens, so that the model's own output stays
            exactly what it was.
        kl_weight: weight of the divergence from the original model, per clean target.
        block_targets: blocks beside the sequence learn the `labels` (the papers), or what the `model`
            itself says there on clean input.
        layer_dropout: probability that a step leaves the last layer's attention out, and likewise its
            MLP; it grows with depth from 0 at the first layer (LayerSkip). What the model itself says
            (`block_targets`) is then said without them, too.
        max_length: longest document; longer ones are cut.
        row_length: documents are packed into rows of this length; 0 pads instead.
        epochs: passes over the data; `max_steps` stops earlier.
        max_steps: optimizer steps, or None.
        batch_size: rows per step and process, before `accumulate`.
        accumulate: batches per optimizer step.
        lr: peak learning rate.
        warmup_share: share of the steps that warm up; a cosine to zero follows.
        weight_decay: of AdamW.
        attention: `sdpa`, or `eager` for families that sdpa does not serve.
        dtype: `bfloat16` computes in bf16 on fp32 weights; `float32` repeats bit for bit.
        eval_every: steps between evaluations.
        save_every: steps between checkpoints; None saves every ten minutes.
        log_every: steps between lines of the log.
        eval_records: most records that an evaluation reads.
        seed: of everything random.
        lora: train low-rank adapters and merge them at the end.
        lora_rank: their rank.
        from_scratch: None, or changes to the model's configuration; then its weights are random.
    """

    model: str
    data: str
    output: str
    eval_data: str | None = None
    eval_share: float = 0.02
    split: str = "train"
    format: Format = "auto"
    suffix: str | None = None
    noise: bool = True
    adaptive: bool = False
    mode: NoiseMode = "branch"
    noise_length: int = 5
    max_noise_length: int | None = None
    noise_source: NoiseSource = "prefix"
    clean_share: float = 0.0
    spacing: int = 6
    noise_weight: float = 1.0
    block_length: int = 5
    adaptive_ids: tuple[int, ...] | None = None
    distinct: bool = False
    adaptive_spacing: int = 6
    adaptive_weight: float = 1.0
    adaptive_first: float = 0.0
    frozen: bool = False
    kl_weight: float = 0.0
    block_targets: BlockTargets = "labels"
    layer_dropout: float = 0.0
    max_length: int = 2048
    row_length: int = 2048
    epochs: float = 1.0
    max_steps: int | None = None
    batch_size: int = 4
    accumulate: int = 1
    lr: float = 2e-5
    warmup_share: float = 0.03
    weight_decay: float = 0.0
    attention: TrainAttention = "sdpa"
    dtype: Dtype = "bfloat16"
    eval_every: int = 200
    save_every: int | None = None
    log_every: int = 10
    eval_records: int = 200
    seed: int = 0
    lora: bool = False
    lora_rank: int = 16
    from_scratch: Mapping[str, Any] | None = None

    def __post_init__(self) -> None:
        least: dict[str, float] = {
            "noise_length": 1, "spacing": 1, "max_length": 8, "row_length": 0, "batch_size": 1,
            "accumulate": 1, "eval_every": 1, "log_every": 1, "eval_records": 1,
            "lora_rank": 1, "noise_weight": 0, "weight_decay": 0, "block_length": 1,
            "adaptive_spacing": 1, "adaptive_weight": 0, "kl_weight": 0,
        }  # fmt: skip
        for name, low in least.items():
            if not getattr(self, name) >= low:
                raise ConfigError(f"{name}={getattr(self, name)} is below {low:g}")
        if self.row_length and self.row_length < self.max_length:
            raise ConfigError(
                f"row_length={self.row_length} is below max_length={self.max_length}; "
                "documents are not split over rows"
            )
        if not self.lr > 0 or not self.epochs > 0:
            raise ConfigError(f"lr={self.lr} and epochs={self.epochs} must be above 0")
        for name in ("eval_share", "warmup_share", "adaptive_first", "layer_dropout"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} lies outside [0, 1)")
        for name, known in (
            ("dtype", ("bfloat16", "float32")),
            ("format", ("auto", "plain", "chat")),
            ("block_targets", ("labels", "model")),
            ("attention", ("sdpa", "eager")),
        ):
            if getattr(self, name) not in known:
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is unknown; use {', '.join(known)}"
                )
        self._check_steps()
        self._check_contradictions()
        self.noise_settings()

    def _check_steps(self) -> None:
        for name, other in (("max_steps", "whole epochs"), ("save_every", "ten minutes")):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} is below 1; leave it out for {other}")

    def _check_contradictions(self) -> None:
        is_inline = self.noise and self.mode == "inline"
        if is_inline and self.block_targets == "model":
            raise ConfigError(
                "block_targets='model' needs mode='branch': inline there is no clean prediction"
            )
        if is_inline and self.adaptive:
            raise ConfigError(
                "adaptive blocks beside inline noise would see it as context; use mode='branch'"
            )
        is_plain = not self.adaptive and (not self.noise or is_inline or self.clean_share == 1)
        if self.kl_weight and is_plain:
            raise ConfigError(
                "kl_weight needs blocks: adaptive tokens, or noise with mode='branch'"
            )
        if self.from_scratch is not None and (self.frozen or self.kl_weight):
            raise ConfigError(
                "from_scratch has no original weights to keep to; leave frozen and kl_weight out"
            )
        if self.frozen and self.layer_dropout:
            raise ConfigError(
                "layer_dropout teaches the layers to do without each other, and frozen trains none; "
                "leave one of them out"
            )
        self._check_adaptive()

    def _check_adaptive(self) -> None:
        if not self.adaptive:
            for name in ("frozen", "adaptive_first", "distinct", "adaptive_ids"):
                if getattr(self, name):
                    raise ConfigError(f"{name} needs adaptive tokens; use draftless train sdsat")
        if self.frozen and (self.noise or self.lora or self.kl_weight):
            raise ConfigError(
                "frozen trains the adaptive rows alone; leave noise, lora and kl_weight out"
            )
        if self.adaptive_ids is not None:
            wanted = self.block_length if self.distinct else 1
            if len(self.adaptive_ids) != wanted or len(set(self.adaptive_ids)) != wanted:
                raise ConfigError(
                    f"adaptive_ids={list(self.adaptive_ids)}: give {wanted} distinct "
                    f"id{'s' * (wanted > 1)} (distinct={self.distinct}, block_length={self.block_length})"
                )

    @property
    def has_blocks(self) -> bool:
        """Whether anything hangs beside the sequences."""
        return self.adaptive or (self.noise and self.mode == "branch")

    def noise_settings(self) -> NoiseSettings | None:
        """What the collator needs for noise; validates it."""
        if not self.noise:
            return None
        return NoiseSettings(
            mode=self.mode,
            length=self.noise_length,
            max_length=self.max_noise_length,
            source=self.noise_source,
            clean_share=self.clean_share,
            spacing=self.spacing,
            seed=self.seed,
        )

    def adaptive_settings(self, adaptive_ids: tuple[int, ...]) -> AdaptiveSettings | None:
        """What the collator needs for adaptive blocks, once their ids are known."""
        if not self.adaptive:
            return None
        return AdaptiveSettings(adaptive_ids, self.block_length, self.adaptive_spacing, self.seed)

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)


SAMPLES = Path(__file__).parent.parent / "assets" / "samples"
EMBEDDED = Path(__file__).parent.parent / "assets" / "tiny"

PRESETS: dict[str, dict[str, Any]] = {
    # From nothing to a checkpoint that drafts for itself, in about two minutes on two CPU cores.
    "tiny-sample": {
        "model": str(EMBEDDED),
        "data": str(SAMPLES),
        "format": "plain",
        "max_length": 256,
        "row_length": 512,
        "batch_size": 8,
        "epochs": 3.0,
        "lr": 4e-3,
        "eval_records": 80,
        "eval_every": 100,
        "from_scratch": {
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_hidden_layers": 4,
            "num_attention_heads": 4,
            "num_key_value_heads": 2,
        },
    },
}


def build_config(
    preset: str | None,
    file: Path | None,
    flags: Mapping[str, Any],
    defaults: Mapping[str, Any] | None = None,
) -> TrainConfig:
    """Defaults of a command, then preset, YAML file and flags: the later one wins.

    Raises:
        ConfigError: for an unknown preset or key, a value of the wrong type, or a missing one.
    """
    if preset is not None and preset not in PRESETS:
        raise ConfigError(f"preset {preset!r} is unknown; known are {', '.join(PRESETS)}")
    values: dict[str, Any] = {**(defaults or {}), **(PRESETS[preset] if preset else {})}
    if file is not None:
        values.update(_read_yaml(file))
    values.update({key: value for key, value in flags.items() if value is not None})
    known = {field.name for field in fields(TrainConfig)}
    unknown = sorted(set(values) - known)
    if unknown:
        raise ConfigError(
            f"unknown option {', '.join(unknown)}; known are {', '.join(sorted(known))}"
        )
    missing = [name for name in ("model", "data", "output") if name not in values]
    if missing:
        raise ConfigError(
            f"missing {', '.join('--' + name for name in missing)} (or a preset, or --config)"
        )
    return TrainConfig(**{key: _cast(key, value) for key, value in values.items()})


def _read_yaml(file: Path) -> dict[str, Any]:
    try:
        values = yaml.safe_load(file.read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigError(f"cannot read {file}: {error}") from error
    if not isinstance(values, dict):
        raise ConfigError(f"{file} must hold a mapping of options to values")
    return values


def _cast(name: str, value: Any) -> Any:
    """YAML reads `1e-3` as a string and `1` as an int; anything else must have its type already."""
    hint = str(get_type_hints(TrainConfig)[name])
    if name == "adaptive_ids" and value is not None:
        return _cast_ids(value)
    wants_float = hint == "<class 'float'>"
    if wants_float and isinstance(value, str | int) and not isinstance(value, bool):
        try:
            return float(value)
        except ValueError as error:
            raise ConfigError(f"{name}={value!r} is not a number") from error
    wants_int = hint in ("<class 'int'>", "int | None", "typing.Optional[int]")
    if wants_int and value is not None and (not isinstance(value, int) or isinstance(value, bool)):
        raise ConfigError(f"{name}={value!r} is not a whole number")
    if hint == "<class 'bool'>" and not isinstance(value, bool):
        raise ConfigError(f"{name}={value!r} is neither true nor false")
    if name == "from_scratch" and value is not None and not isinstance(value, Mapping):
        raise ConfigError(f"from_scratch={value!r} is no mapping of sizes such as hidden_size: 256")
    return value


def _cast_ids(value: Any) -> tuple[int, ...]:
    """Ids from a YAML list, or from a flag's `7,8`."""
    items = value.split(",") if isinstance(value, str) else value
    try:
        return tuple(int(item) for item in items)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"adaptive_ids={value!r} is not a list of ids such as 7,8") from error
