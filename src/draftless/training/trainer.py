"""A training run: glue between documents, the collator and `transformers.Trainer`."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoTokenizer,
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainingArguments,
)

from draftless.errors import ConfigError, InputError
from draftless.manifest import Manifest, write_manifest
from draftless.prompts import PromptFormat, Record
from draftless.provenance import collect_provenance
from draftless.sublayers import decoder_layers
from draftless.training.adaptive_tokens import suppress_in_generation
from draftless.training.checkpoint import prepare_folder, step_of
from draftless.training.config import TrainConfig
from draftless.training.data import encode_records, hold_back, read_records
from draftless.training.draft_collator import CollatorEpochs, DraftCollator
from draftless.training.draft_trainer import DraftTrainer, LossSettings
from draftless.training.layer_dropout import LayerDropout
from draftless.training.packing import pack_documents
from draftless.training.saving import SAVE_SECONDS, SaveWhenDue, TrainingInterrupted
from draftless.training.sessions import (
    begin_session,
    check_facts,
    hash_documents,
    hash_model,
    read_run,
    run_facts,
)
from draftless.training.start_model import (
    choose_adaptive_ids,
    frozen_copy,
    load,
    make_model,
    save_tokenizer,
    start_manifest,
    with_adapters,
)

LOG_NAME = "training_log.json"
_EVAL_BATCH = 4
_NEVER = 10**9


@dataclass
class Run:
    """Everything that a run needs, prepared and checked before any training.

    Attributes:
        config: the options.
        model: in fp32, with adapters if asked for.
        original: the model before training, where the loss needs it and no adapter can be switched
            off instead.
        dropout: of layers, where asked for.
        tokenizer: of the model.
        prompt_format: how prompts are joined; goes into the checkpoint.
        train: training documents; rows if they are packed.
        held: documents held back for evaluation.
        num_records, num_documents: records read, and documents they gave.
        collator: adds noise and adaptive blocks.
        adaptive_ids: of the adaptive tokens; empty without them.
        fingerprints: of the `model` that the run starts from, and of the `data`.
        left_out: numbers of records that cannot be taught, by reason.
        dtype: of the checkpoint that the run starts from.
    """

    config: TrainConfig
    model: PreTrainedModel
    original: PreTrainedModel | None
    dropout: LayerDropout | None
    tokenizer: Any
    prompt_format: PromptFormat
    fingerprints: Mapping[str, str]
    left_out: Counter[str]
    train: list[dict[str, list[int]]]
    held: list[dict[str, list[int]]]
    num_records: int
    num_documents: int
    collator: DraftCollator
    adaptive_ids: tuple[int, ...]
    dtype: torch.dtype


def prepare(config: TrainConfig) -> Run:
    """Load data and model.

    Raises:
        InputError: the data cannot be used.
        ArtifactError: the model cannot be loaded.
        CapabilityError: branch mode or layer dropout cannot work with this model.
        ConfigError: options contradict each other.
    """
    records = read_records(config.data, config.split)
    tokenizer = load(AutoTokenizer, config.model)
    prompt_format = choose_format(config, tokenizer, records)
    left_out: Counter[str] = Counter()
    encoding = (tokenizer, prompt_format, config.max_length, left_out)
    documents = encode_records(records, *encoding)
    if config.eval_data is not None:
        other = read_records(config.eval_data, config.split)
        records = [*records, *other]
        train, held = documents, encode_records(other, *encoding)
    else:
        train, held = hold_back(documents, config.eval_share, config.seed)
    if not train:
        raise ConfigError(f"eval_share={config.eval_share} holds all documents back")
    rows = pack_documents(train, config.row_length) if config.row_length else train
    model, dtype = make_model(config, tokenizer)
    num_rows = model.get_input_embeddings().weight.shape[0]
    fingerprints = {"model": hash_model(model), "data": hash_documents(documents)}
    adaptive_ids = choose_adaptive_ids(config, model, tokenizer)
    has_adapters = config.lora or config.frozen
    # With its adapters switched off, a model that drops layers is not the original.
    has_original = config.kl_weight and (config.layer_dropout or not has_adapters)
    original = frozen_copy(model) if has_original else None
    return Run(
        config=config,
        model=with_adapters(model, config, adaptive_ids) if has_adapters else model,
        original=original,
        dropout=_make_dropout(config, model) if config.layer_dropout else None,
        tokenizer=tokenizer,
        prompt_format=prompt_format,
        fingerprints=fingerprints,
        left_out=left_out,
        train=rows,
        held=held[: config.eval_records],
        num_records=len(records),
        num_documents=len(records) - sum(left_out.values()),
        collator=_make_collator(config, tokenizer, adaptive_ids, num_rows),
        adaptive_ids=adaptive_ids,
        dtype=dtype,
    )


def _make_dropout(config: TrainConfig, model: PreTrainedModel) -> LayerDropout:
    _, layers = decoder_layers(model)
    return LayerDropout(layers, config.layer_dropout, config.seed)


def _make_collator(
    config: TrainConfig, tokenizer: Any, adaptive_ids: tuple[int, ...], num_rows: int
) -> DraftCollator:
    collator = DraftCollator.from_tokenizer(
        tokenizer,
        config.noise_settings(),
        adaptive=config.adaptive_settings(adaptive_ids),
        num_rows=num_rows,
    )
    collator.adds_places = True
    collator.mask_dtype = torch.float32 if config.attention == "eager" else None
    return collator


def choose_format(config: TrainConfig, tokenizer: Any, records: Sequence[Record]) -> PromptFormat:
    """`auto`: what the checkpoint was trained with; else the chat template where there is one."""
    kind, before = config.format, start_manifest(config)
    if before is not None and before.prompt_format is not None:
        is_fixed = config.frozen or kind == "auto"
        if config.frozen and kind not in ("auto", before.prompt_format.kind):
            raise ConfigError(
                f"frozen keeps the model's prompt format, {before.prompt_format.kind}; "
                f"leave --format {kind} out"
            )
        if is_fixed:
            return before.prompt_format
    if kind == "auto":
        needs_chat = any("messages" in record for record in records)
        kind = "chat" if needs_chat or tokenizer.chat_template else "plain"
    if kind == "chat":
        if not tokenizer.chat_template:
            raise InputError("--format chat (or records with 'messages') needs a chat template, "
                             "and the tokenizer has none")  # fmt: skip
        return PromptFormat(kind="chat")
    if tokenizer.eos_token_id is None:
        raise ConfigError("the tokenizer has no EOS token, so responses would never end")
    if config.frozen:  # the model goes on reading prompts as its tokenizer encodes them
        adds_bos = tokenizer.bos_token_id in tokenizer("a").input_ids[:1]
        return PromptFormat(suffix=config.suffix or "", bos=adds_bos)
    suffix = "\n" if config.suffix is None else config.suffix
    return PromptFormat(suffix=suffix, bos=tokenizer.bos_token_id is not None)


def train(
    run: Run,
    *,
    resume: bool = False,
    callbacks: Sequence[Any] = (),
    on_interrupt: Callable[[], None] | None = None,
) -> dict[str, float]:
    """Train, evaluate and save.

    Args:
        run: from `prepare`.
        resume: go on from the newest complete checkpoint in the output folder, if there is one.
        callbacks: further `TrainerCallback`s (a progress bar).
        on_interrupt: called at Ctrl-C, before the step in progress is finished and saved.

    Returns:
        The last evaluation's metrics; none where nothing is held back.

    Raises:
        ConfigError: the output folder holds another run's checkpoints, or `resume` is off.
        TrainingInterrupted: Ctrl-C; a checkpoint is complete.
    """
    config = run.config
    arguments = _arguments(config)
    folder = Path(arguments.output_dir)
    facts = run_facts(config.to_dict(), processes=arguments.world_size, **run.fingerprints)
    with arguments.main_process_first(desc="checkpoints"):
        checkpoint = prepare_folder(folder, resume=resume)
        if checkpoint is not None:
            check_facts(folder, facts)
        step = step_of(checkpoint) if checkpoint else 0
        if arguments.should_save:
            begin_session(folder, facts, config.to_dict(), step)
    saving = SaveWhenDue(None if config.save_every else SAVE_SECONDS, on_interrupt)
    trainer = _make_trainer(run, arguments, [*callbacks, saving])
    with saving:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    if saving.is_interrupted:
        raise TrainingInterrupted(trainer.state.global_step)
    metrics = _last_evaluation(trainer)  # made at the last step
    if arguments.should_save:
        save(run, trainer, metrics)
    return metrics


def _make_trainer(run: Run, arguments: TrainingArguments, callbacks: Sequence[Any]) -> DraftTrainer:
    config = run.config
    trainer = DraftTrainer(
        model=run.model,
        args=arguments,
        train_dataset=run.train,
        data_collator=run.collator,
        callbacks=[CollatorEpochs(run.collator), *callbacks],
        eval_dataset=_eval_batches(run),
        settings=LossSettings(
            noise_weight=config.noise_weight,
            adaptive_weight=config.adaptive_weight,
            block_targets=config.block_targets,
            adaptive_first=config.adaptive_first,
            kl_weight=config.kl_weight,
            adaptive_ids=run.adaptive_ids,
        ),
        original=run.original,
        dropout=run.dropout,
    )
    trainer.remove_callback(PrinterCallback)  # whoever calls shows progress
    return trainer


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
        save_steps=config.save_every or _NEVER,  # the last step is saved in any case
        save_total_limit=2,  # the one before must outlive a kill inside a save
        logging_steps=config.log_every,
        seed=config.seed,
        data_seed=config.seed,
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )


def _eval_batches(run: Run) -> list[dict[str, torch.Tensor]]:
    """Noise and blocks of epoch 0 beside the held-back documents, the same in every evaluation."""
    noise = run.collator.noise
    if noise is not None:
        noise = replace(noise, settings=replace(noise.settings, mode="branch", clean_share=0.0))
    collator = replace(run.collator, noise=noise)
    starts = range(0, len(run.held), _EVAL_BATCH)
    return [dict(collator.in_branches(run.held[start : start + _EVAL_BATCH])) for start in starts]


def save(run: Run, trainer: DraftTrainer, metrics: Mapping[str, float]) -> None:
    """Write a plain `save_pretrained` folder, `draftless.json` and the log."""
    config, output = run.config, Path(run.config.output)
    model = trainer.accelerator.unwrap_model(trainer.model)
    if config.lora or config.frozen:
        model = model.merge_and_unload()
    if config.frozen:
        model = model.to(run.dtype)  # fp32 and back is exact, so all other rows are what they were
    elif config.dtype == "bfloat16":
        model = model.to(torch.bfloat16)
    if run.adaptive_ids:
        suppress_in_generation(model, run.adaptive_ids)
    model.save_pretrained(output)
    save_tokenizer(run.tokenizer, config, output)
    methods = _methods(run)
    session = read_run(Path(trainer.args.output_dir))
    provenance = {
        **collect_provenance(),
        "config": _portable(config),
        "sessions": session["sessions"] if session else [],
        "metrics": dict(metrics),
    }
    before = start_manifest(config)
    kept_format = before.prompt_format if before else None
    write_manifest(
        output,
        Manifest(
            methods=methods,
            default_drafter=None,
            prompt_format=kept_format if config.frozen else run.prompt_format,
            provenance=provenance,
        ),
    )
    log = json.dumps(trainer.state.log_history, indent=1)
    (output / LOG_NAME).write_text(log + "\n", encoding="utf-8")


def _methods(run: Run) -> dict[str, dict[str, Any]]:
    """What the checkpoint was trained for; what the model could do before is kept."""
    config = run.config
    before = start_manifest(config)
    methods = {name: dict(method) for name, method in (before.methods if before else {}).items()}
    if config.from_scratch is not None:
        methods = {}
    elif config.frozen:
        # The store lies in the other folder, and knows its model by a vocabulary without new rows.
        methods.pop("knn-ssd", None)
    else:
        # Other weights: what was taught before may be lost. Adaptive ids stay what they are: input
        # only, so the manifest must go on naming them.
        methods = {name: methods[name] for name in ("sdsat",) if name in methods}
    if config.adaptive:
        methods["sdsat"] = {
            "adaptive_ids": list(run.adaptive_ids),
            "block_length": config.block_length,
            "mode": "frozen" if config.frozen else "joint",
            "block_targets": config.block_targets,
        }
    if config.noise and config.clean_share < 1.0:
        methods["tr-jacobi"] = {
            "mode": config.mode,
            "noise_length": config.noise_length,
            "noise_source": config.noise_source,
            "block_targets": config.block_targets,
        }
    # The first is the default: what was trained here, not a skip set that was found before.
    return dict(sorted(methods.items(), key=lambda method: method[0] == "layer-skip"))


def _portable(config: TrainConfig) -> dict[str, Any]:
    """The options without this machine's folders."""
    values = config.to_dict()
    for name in ("model", "data", "output", "eval_data"):
        if values[name] is not None:
            values[name] = Path(values[name]).name
    return values
