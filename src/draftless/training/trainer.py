"""MSN training: glue between documents, the noise collator and `transformers.Trainer`."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F  # noqa: N812 - torch's own convention
from transformers import (
    AutoConfig,
    AutoModelForCausalLM,
    AutoTokenizer,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR

from draftless.errors import ArtifactError, CapabilityError, ConfigError
from draftless.manifest import Manifest, write_manifest
from draftless.prompts import IGNORED_LABEL, PromptFormat, Record
from draftless.provenance import collect_provenance
from draftless.training.checkpoint import mark_complete, prepare_folder
from draftless.training.config import NoiseTargets, TrainConfig
from draftless.training.data import encode_records, hold_back, read_records
from draftless.training.evaluate import evaluate_model
from draftless.training.noise_collator import NoiseCollator, NoiseEpochs
from draftless.training.packing import pack_documents

LOG_NAME = "training_log.json"
_EVAL_BATCH = 4


class MSNTrainer(Trainer):
    """`Trainer` that weighs noise targets, reports denoising, and marks complete checkpoints."""

    def __init__(
        self, *args: Any, noise_weight: float, noise_targets: NoiseTargets = "labels", **more: Any
    ) -> None:
        super().__init__(*args, **more)
        self._noise_weight = noise_weight
        self._noise_targets = noise_targets

    def compute_loss(
        self,
        model: Any,
        inputs: dict[str, Any],
        return_outputs: bool = False,
        num_items_in_batch: torch.Tensor | int | None = None,
    ) -> Any:
        """Cross-entropy per target of the global batch; noise targets count `noise_weight`."""
        depths, twins = inputs.pop("noise_depths", None), inputs.pop("clean_twins", None)
        if depths is None or num_items_in_batch is None:
            return super().compute_loss(model, inputs, return_outputs, num_items_in_batch)
        targets = inputs.pop("shift_labels")
        inputs.pop("labels")
        outputs = model(**inputs)
        logits = outputs.logits.float()
        losses = F.cross_entropy(logits.flatten(0, 1), targets.flatten(), reduction="none")
        if self._noise_targets == "model":
            losses = losses.index_copy(0, *own_losses(logits, targets, twins))
        weights = torch.where(depths.flatten() > 0, self._noise_weight, 1.0)
        loss = (losses * weights).sum() / num_items_in_batch
        if self.args.average_tokens_across_devices:
            loss = loss * self.accelerator.num_processes  # DDP takes the mean over processes
        return (loss, outputs) if return_outputs else loss

    def evaluate(self, *_: Any, metric_key_prefix: str = "eval", **__: Any) -> dict[str, float]:
        """Clean loss and denoising accuracy per depth, on the held-back documents."""
        scores = evaluate_model(self.accelerator.unwrap_model(self.model), self.eval_dataset)
        metrics = {f"{metric_key_prefix}_{name}": value for name, value in scores.items()}
        self.log(metrics)
        return metrics

    def _save_checkpoint(self, model: Any, trial: Any) -> None:
        super()._save_checkpoint(model, trial)
        self.accelerator.wait_for_everyone()  # every rank saves its random state
        if self.args.should_save:
            name = f"{PREFIX_CHECKPOINT_DIR}-{self.state.global_step}"
            mark_complete(Path(self.args.output_dir) / name)


def own_losses(
    logits: torch.Tensor,  # [B, N, V] fp32
    targets: torch.Tensor,  # [B, N] int64
    twins: torch.Tensor,  # [B, N] int64, of `branches.clean_twins`
) -> tuple[torch.Tensor, torch.Tensor]:  # [M] int64 places in the flattened batch, [M] fp32
    """Cross-entropy of noise tokens against what the model itself says at their clean twins.

    A draft has to hit the model's own next token, and a whole distribution teaches more than one
    token that was drawn from the data. No gradient flows into the clean side.
    """
    rows, places = ((twins >= 0) & (targets != IGNORED_LABEL)).nonzero(as_tuple=True)
    teacher = logits.detach()[rows, twins[rows, places]].softmax(-1)
    losses = F.cross_entropy(logits[rows, places], teacher, reduction="none")
    return rows * logits.shape[1] + places, losses


@dataclass
class Run:
    """Everything that a run needs, prepared and checked before any training.

    Attributes:
        config: the options.
        model: in fp32, with adapters if asked for.
        tokenizer: of the model.
        prompt_format: how prompts are joined; goes into the checkpoint.
        train: training documents; rows if they are packed.
        held: documents held back for evaluation.
        num_records, num_documents: records read, and documents they gave.
        collator: adds the noise.
    """

    config: TrainConfig
    model: PreTrainedModel
    tokenizer: Any
    prompt_format: PromptFormat
    train: list[dict[str, list[int]]]
    held: list[dict[str, list[int]]]
    num_records: int
    num_documents: int
    collator: NoiseCollator


def prepare(config: TrainConfig) -> Run:
    """Load data and model.

    Raises:
        InputError: the data cannot be used.
        ArtifactError: the model cannot be loaded.
        CapabilityError: branch mode cannot work with this model.
        ConfigError: options contradict each other.
    """
    records = read_records(config.data, config.split)
    tokenizer = _load(AutoTokenizer, config.model)
    prompt_format = choose_format(config, tokenizer, records)
    documents = encode_records(records, tokenizer, prompt_format, config.max_length)
    if config.eval_data is not None:
        other = read_records(config.eval_data, config.split)
        train, held = documents, encode_records(other, tokenizer, prompt_format, config.max_length)
    else:
        train, held = hold_back(documents, config.eval_share, config.seed)
    if not train:
        raise ConfigError(f"eval_share={config.eval_share} holds all documents back")
    collator = NoiseCollator.from_tokenizer(tokenizer, config.noise_settings())
    collator.adds_places = config.mode == "branch"
    rows = pack_documents(train, config.row_length) if config.row_length else train
    return Run(
        config=config,
        model=_make_model(config),
        tokenizer=tokenizer,
        prompt_format=prompt_format,
        train=rows,
        held=held[: config.eval_records],
        num_records=len(records),
        num_documents=len(documents),
        collator=collator,
    )


def choose_format(config: TrainConfig, tokenizer: Any, records: Sequence[Record]) -> PromptFormat:
    """`auto`: the chat template for messages, strings joined otherwise."""
    kind = config.format
    if kind == "auto":
        kind = "chat" if "messages" in records[0] else "plain"
    if kind == "chat":
        return PromptFormat(kind="chat")
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no EOS token, so responses would never end")
    return PromptFormat(suffix=config.suffix, bos=tokenizer.bos_token_id is not None)


def _load(kind: Any, name: str, **options: Any) -> Any:
    try:
        return kind.from_pretrained(name, **options)
    except Exception as error:
        raise ArtifactError(f"cannot load {name!r}: {error}") from error


def _make_model(config: TrainConfig) -> PreTrainedModel:
    torch.manual_seed(config.seed)  # random weights and adapters
    shape = _load(AutoConfig, config.model)
    text = shape.get_text_config()
    windowed = "sliding_attention" in (getattr(text, "layer_types", None) or ())
    if config.mode == "branch" and (windowed or getattr(text, "attn_logit_softcapping", None)):
        raise CapabilityError(
            f"branch mode needs one mask for all layers and sdpa, which {shape.model_type} does "
            "not offer; use --mode inline"
        )
    if config.from_scratch is not None:
        # What follows from the sizes is dropped with them, or a stale value would contradict.
        known = shape.to_dict()
        known.update({name: None for name in ("head_dim", "layer_types") if name in known})
        shape = type(shape).from_dict({**known, **config.from_scratch})
        model = AutoModelForCausalLM.from_config(shape, attn_implementation="sdpa")
    else:
        model = _load(AutoModelForCausalLM, config.model, dtype=torch.float32)
        if config.mode == "branch":
            model.set_attn_implementation("sdpa")
    return _with_lora(model, config) if config.lora else model


def _with_lora(model: PreTrainedModel, config: TrainConfig) -> Any:
    import peft

    lora = peft.LoraConfig(
        r=config.lora_rank,
        lora_alpha=2 * config.lora_rank,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
    )
    return peft.get_peft_model(model, lora)


def train(run: Run, *, resume: bool = False, callbacks: Sequence[Any] = ()) -> dict[str, float]:
    """Train, evaluate and save.

    Args:
        run: from `prepare`.
        resume: go on from the newest complete checkpoint in the output folder.
        callbacks: further `TrainerCallback`s (a progress bar).

    Returns:
        The last evaluation's metrics; none where nothing is held back.

    Raises:
        ConfigError: the output folder holds another run's checkpoints and `resume` is off.
    """
    config = run.config
    arguments = _arguments(config)
    folder = Path(arguments.output_dir)
    with arguments.main_process_first(desc="checkpoints"):
        checkpoint = prepare_folder(folder, resume=resume)
    trainer = MSNTrainer(
        model=run.model,
        args=arguments,
        train_dataset=run.train,
        data_collator=run.collator,
        callbacks=[NoiseEpochs(run.collator), *callbacks],
        eval_dataset=_eval_batches(run),
        noise_weight=config.noise_weight,
        noise_targets=config.noise_targets,
    )
    trainer.remove_callback(PrinterCallback)  # whoever calls shows progress
    trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    metrics = _last_evaluation(trainer)  # made at the last step
    if arguments.should_save:
        save(run, trainer, metrics)
    return metrics


def _last_evaluation(trainer: Trainer) -> dict[str, float]:
    logs = (log for log in reversed(trainer.state.log_history) if "eval_clean_loss" in log)
    return {name: value for name, value in next(logs, {}).items() if name.startswith("eval_")}


def _arguments(config: TrainConfig) -> TrainingArguments:
    return TrainingArguments(
        output_dir=str(Path(config.output) / "checkpoints"),
        num_train_epochs=config.epochs,
        max_steps=config.max_steps or -1,
        per_device_train_batch_size=config.batch_size,
        gradient_accumulation_steps=config.accumulate,
        learning_rate=config.lr,
        lr_scheduler_type="cosine",
        warmup_steps=config.warmup_share,
        weight_decay=config.weight_decay,
        bf16=config.dtype == "bfloat16",
        use_cpu=not torch.cuda.is_available(),
        eval_strategy="steps" if config.eval_data or config.eval_share else "no",
        eval_steps=config.eval_every,
        save_strategy="steps",
        save_steps=config.save_every,
        save_total_limit=2,  # the one before must outlive a kill inside a save
        logging_steps=config.log_every,
        seed=config.seed,
        data_seed=config.seed,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )


def _eval_batches(run: Run) -> list[dict[str, torch.Tensor]]:
    """Noise of epoch 0 beside the held-back documents, the same in every evaluation."""
    settings = replace(run.collator.planner.settings, mode="branch", clean_share=0.0)
    collator = NoiseCollator.from_tokenizer(run.tokenizer, settings)
    collator.adds_places = True
    starts = range(0, len(run.held), _EVAL_BATCH)
    return [dict(collator(run.held[start : start + _EVAL_BATCH])) for start in starts]


def save(run: Run, trainer: MSNTrainer, metrics: Mapping[str, float]) -> None:
    """Write a plain `save_pretrained` folder, `draftless.json` and the log."""
    config, output = run.config, Path(run.config.output)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if config.lora:
        model = model.merge_and_unload()
    if config.dtype == "bfloat16":
        model = model.to(torch.bfloat16)
    model.save_pretrained(output)
    run.tokenizer.save_pretrained(output)
    is_plain = config.clean_share == 1.0
    noise = {
        "mode": config.mode,
        "noise_length": config.noise_length,
        "noise_source": config.noise_source,
        "noise_targets": config.noise_targets,
    }
    provenance = {**collect_provenance(), "config": _portable(config), "metrics": dict(metrics)}
    write_manifest(
        output,
        Manifest(
            methods={} if is_plain else {"tr-jacobi": noise},
            default_drafter=None if is_plain else "tr-jacobi",
            prompt_format=run.prompt_format,
            provenance=provenance,
        ),
    )
    log = json.dumps(trainer.state.log_history, indent=1)
    (output / LOG_NAME).write_text(log + "\n", encoding="utf-8")


def _portable(config: TrainConfig) -> dict[str, Any]:
    """The options without this machine's folders."""
    values = config.to_dict()
    for name in ("model", "data", "output", "eval_data"):
        if values[name] is not None:
            values[name] = Path(values[name]).name
    return values
