"""`TrainConfig`: every option of a training run, from a YAML file and flags; presets."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from functools import partial
from pathlib import Path
from typing import (
    TYPE_CHECKING,
    Annotated,
    Any,
    Literal,
    NamedTuple,
    get_args,
    get_origin,
    get_type_hints,
)

from draftless.errors import ConfigError

if TYPE_CHECKING:
    from draftless.training.adaptive import AdaptiveSettings
    from draftless.training.noise_runs import NoiseSettings

MSN = ("msn",)
SDSAT = ("sdsat",)

BlockTargets = Literal["labels", "model"]


class Option(NamedTuple):
    """What a field means, and where it is a flag of `draftless train`.

    Attributes:
        help: shown by `--help`.
        panel: of the help page; None for an option of the YAML file alone.
        commands: that have the flag.
        least: smallest value, or None.
    """

    help: str
    panel: str | None = None
    commands: tuple[str, ...] = MSN + SDSAT
    least: float | None = None


_run = partial(Option, panel="Run")
_noise = partial(Option, panel="Noise")
_adaptive = partial(Option, panel="Adaptive tokens", commands=SDSAT)


@dataclass(frozen=True)
class TrainConfig:
    """One run of `draftless train`. Lengths are tokens; "blocks" are noise or adaptive tokens."""

    model: Annotated[str, _run("Folder or name on the Hugging Face Hub to start from.")]
    data: Annotated[
        str, _run("JSONL file (prompt/response or messages), folder of such, or dataset.")
    ]
    output: Annotated[str, _run("Folder for the trained model.")]
    eval_data: Annotated[
        str | None, Option("Evaluation data; None holds `eval_share` of `data` back.")
    ] = None
    eval_share: Annotated[float, Option("Share of the records for evaluation.")] = 0.02
    split: Annotated[str, Option("Split of a dataset, or name of the files in a folder.")] = "train"
    format: Annotated[
        Literal["auto", "plain", "chat"],
        _run(
            "plain, chat, or auto: the trained format, else the chat template if there is one, "
            "else plain."
        ),
    ] = "auto"
    suffix: Annotated[
        str | None,
        Option(
            "Text between prompt and response (plain); None is a newline, or nothing where `frozen` "
            "keeps a model's own format."
        ),
    ] = None
    noise: Annotated[
        bool, _noise("Train denoising (MSN), too, for the drafter tr-jacobi.", commands=SDSAT)
    ] = True
    adaptive: Annotated[bool, Option("Train adaptive tokens (SDSAT).")] = False
    mode: Annotated[
        Literal["branch", "inline"],
        _noise(
            "branch: noise beside the clean text; inline: noise in it (the paper).", commands=MSN
        ),
    ] = "branch"
    noise_length: Annotated[int, _noise("Number of noise tokens in a run.", least=1)] = 5
    max_noise_length: Annotated[
        int | None, Option("Draw the length of each run from `noise_length` to this.")
    ] = None
    noise_source: Annotated[
        Literal["prefix", "vocabulary"],
        _noise("Where noise is drawn from: prefix or vocabulary.", commands=MSN),
    ] = "prefix"
    clean_share: Annotated[
        float, _noise("Share of documents without noise; 1 is plain SFT.", commands=MSN)
    ] = 0.0
    spacing: Annotated[int, Option("branch: response tokens per noise block.", least=1)] = 6
    noise_weight: Annotated[
        float, Option("branch: loss weight of a noise target; a clean target has 1.", least=0)
    ] = 1.0
    block_length: Annotated[int, _adaptive("Number of adaptive tokens in a block.", least=1)] = 5
    adaptive_ids: Annotated[
        tuple[int, ...] | None,
        _adaptive(
            "Comma-separated ids that the tokenizer does not use. Default: new ids are added."
        ),
    ] = None
    distinct: Annotated[bool, _adaptive("Use one adaptive id per slot, not a shared one.")] = False
    adaptive_spacing: Annotated[int, _adaptive("Response tokens per adaptive block.", least=1)] = 6
    adaptive_weight: Annotated[
        float, _adaptive("Loss weight of an adaptive target; a clean target has 1.", least=0)
    ] = 1.0
    adaptive_first: Annotated[
        float,
        _adaptive(
            "Share of the steps, at the start, that train on blocks alone (the paper's first stage)."
        ),
    ] = 0.0
    frozen: Annotated[
        bool,
        _adaptive(
            "Train the rows of the adaptive tokens alone; the model's own output does not change."
        ),
    ] = False
    kl_weight: Annotated[
        float, _adaptive("Loss weight of the KL divergence from the original model.", least=0)
    ] = 0.0
    block_targets: Annotated[
        BlockTargets, _noise("labels (the papers), or model: its own prediction on clean input.")
    ] = "labels"
    layer_dropout: Annotated[
        float,
        _run(
            "Probability that a step skips the attention, and likewise the MLP, of the last layer; "
            "it grows with depth from 0 (LayerSkip). The model's own `block_targets` skip them, too."
        ),
    ] = 0.0
    max_length: Annotated[int, _run("Maximum document length; the rest is cut.", least=8)] = 2048
    row_length: Annotated[
        int, Option("Documents are packed into rows of this length; 0 pads instead.", least=0)
    ] = 2048
    epochs: Annotated[float, _run("Number of passes over the data.")] = 1.0
    max_steps: Annotated[int | None, _run("Maximum number of optimizer steps.")] = None
    batch_size: Annotated[int, _run("Rows per step and process.", least=1)] = 4
    accumulate: Annotated[int, Option("Batches per optimizer step.", least=1)] = 1
    lr: Annotated[float, _run("Peak learning rate.")] = 2e-5
    warmup_share: Annotated[
        float, Option("Share of the steps for warmup; a cosine to 0 follows.")
    ] = 0.03
    weight_decay: Annotated[float, Option("Weight decay of AdamW.", least=0)] = 0.0
    attention: Annotated[
        Literal["sdpa", "eager"], _run("sdpa, or eager for models without sdpa.", commands=SDSAT)
    ] = "sdpa"
    dtype: Annotated[
        Literal["bfloat16", "float32"],
        _run("bfloat16 (on fp32 weights), or float32, which repeats bit for bit."),
    ] = "bfloat16"
    eval_every: Annotated[int, Option("Steps between evaluations.", least=1)] = 200
    save_every: Annotated[
        int | None, _run("Steps between checkpoints. Default: one every ten minutes.")
    ] = None
    log_every: Annotated[int, Option("Steps between log lines.", least=1)] = 10
    eval_records: Annotated[int, Option("Maximum number of records per evaluation.", least=1)] = 200
    seed: Annotated[int, _run("Random seed.")] = 0
    lora: Annotated[bool, _run("Train LoRA adapters and merge them at the end.")] = False
    lora_rank: Annotated[int, Option("Rank of the LoRA adapters.", least=1)] = 16
    from_scratch: Annotated[
        Mapping[str, Any] | None,
        Option("Changes to the model's configuration; the weights are then random."),
    ] = None

    def __post_init__(self) -> None:
        for name, hint in get_type_hints(TrainConfig, include_extras=True).items():
            least = hint.__metadata__[0].least
            if least is not None and not getattr(self, name) >= least:
                raise ConfigError(f"{name}={getattr(self, name)} is below {least:g}")
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
        self.noise_settings()
        for name, hint in get_type_hints(TrainConfig).items():
            if get_origin(hint) is Literal and getattr(self, name) not in (known := get_args(hint)):
                raise ConfigError(
                    f"{name}={getattr(self, name)!r} is unknown; use {', '.join(known)}"
                )
        self._check_steps()
        self._check_contradictions()

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
        from draftless.training.noise_runs import NoiseSettings

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
        from draftless.training.adaptive import AdaptiveSettings

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


def flags_of(command: str) -> dict[str, tuple[type, Option]]:
    """The type and description of every flag that a command of `draftless train` has."""
    flags = {}
    for name, hint in get_type_hints(TrainConfig, include_extras=True).items():
        kind, option = get_args(hint)
        if option.panel is not None and command in option.commands:
            kinds = {int, float, bool} & {kind, *get_args(kind)}
            flags[name] = (kinds.pop() if kinds else str, option)  # a word is checked later
    return flags


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
    import yaml

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
