"""Answers of one model to all records, scored; a killed evaluation goes on where it was."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from draftless.bench.quality.loss import clean_loss
from draftless.bench.quality.records import QualityRecord
from draftless.bench.quality.sandbox import namespaces
from draftless.bench.quality.scoring import Numerals, score_output
from draftless.errors import ArtifactError, ConfigError, DraftlessError, InputError
from draftless.jsonl import append_lines, read_lines
from draftless.loops import looping_tokens
from draftless.model import Draftless
from draftless.params import SamplingParams
from draftless.prompts import PromptFormat

FORMAT = 1  # of rows; a new one lets old rows be measured again
_CODE_TASK = "Complete the following Python function.\n\n"
_SAMPLED_WEIGHTS = 256  # values per parameter that tell two checkpoints apart

OnProgress = Callable[[str, int, int], None]
"""Called with the model's name, and how many of how many records are done."""


@dataclass(frozen=True, slots=True)
class QualityOptions:
    """How quality is measured.

    Attributes:
        limit: the first so many records of every domain; None takes all.
        max_new_tokens: longest answer.
        batch_size: records that are answered together.
        runs_code: HumanEval and MBPP, whose answers are executed (see `sandbox`).
    """

    limit: int | None = None
    max_new_tokens: int = 256
    batch_size: int = 8
    runs_code: bool = False

    def __post_init__(self) -> None:
        for name in ("limit", "max_new_tokens", "batch_size"):
            value = getattr(self, name)
            if value is not None and value < 1:
                raise ConfigError(f"{name}={value} is below 1")


@dataclass(slots=True)
class QualityRow:
    """One record, answered and scored.

    Attributes:
        model: its name.
        key: digest of all that the row depends on: weights, format, options, record.
        record_id, domain: of the record.
        text: the answer.
        num_tokens: of the answer, EOS included.
        finish_reason: why it ended.
        scores: what it brings to each metric (`scoring`).
        error: what went wrong; then there are no scores.
    """

    model: str
    key: str
    record_id: str
    domain: str
    text: str = ""
    num_tokens: int = 0
    finish_reason: str = ""
    scores: dict[str, Numerals] = field(default_factory=dict)
    error: str | None = None


@dataclass(slots=True)
class QualityReport:
    """All rows of one model, in the order of the records, and what the model was."""

    name: str
    facts: dict[str, Any]
    rows: list[QualityRow]


def evaluate_quality(
    model: Draftless,
    records: Sequence[QualityRecord],
    *,
    name: str = "model",
    options: QualityOptions | None = None,
    prompt_format: PromptFormat | None = None,
    rows_file: Path | None = None,
    on_progress: OnProgress | None = None,
) -> QualityReport:
    """Answer and score all records, greedily.

    Which drafter the model carries changes how long this takes, not what comes out.

    Args:
        model: with a tokenizer.
        records: of `read_quality_records`.
        name: of the model, in rows and tables.
        options: how.
        prompt_format: how prompts are written; None is `prompt_format_of(model)`.
        rows_file: JSONL that every row is added to at once; rows in it that fit this model, these
            options and a record are taken as they are (failed ones are tried again).
        on_progress: called after every batch.

    Raises:
        ConfigError: a library is missing, or programs cannot be run here.
        ArtifactError: `rows_file` holds something else.
    """
    options = options or QualityOptions()
    if options.runs_code:
        namespaces()  # fails before the work, not after it
    prompt_format = prompt_format or prompt_format_of(model)
    facts = {
        "drafter": type(model.drafter).__name__,
        "dtype": str(next(model.target.model.parameters()).dtype).removeprefix("torch."),
        "weights": weights_digest(model.target.model),
        "prompt_format": prompt_format.to_dict(),
    }
    work = _Work(model, name, options, prompt_format, _base_key(facts, options))
    done = _read_done(rows_file)
    keys = {record.record_id: work.key(record) for record in records}
    rows = {i: replace(done[key], model=name) for i, key in keys.items() if key in done}
    left = [record for record in records if record.record_id not in rows]
    if on_progress:
        on_progress(name, len(rows), len(records))
    for start in range(0, len(left), options.batch_size):
        for row in work.answer(left[start : start + options.batch_size]):
            rows[row.record_id] = row
            if rows_file:
                append_lines(rows_file, [asdict(row)])
        if on_progress:
            on_progress(name, len(rows), len(records))
    return QualityReport(name, facts, [rows[record.record_id] for record in records])


def prompt_format_of(model: Draftless) -> PromptFormat:
    """The format of a model: as it was trained, else its chat template, else plain text.

    Raises:
        ConfigError: the model has no tokenizer.
    """
    if model.manifest is not None and model.manifest.prompt_format is not None:
        return model.manifest.prompt_format
    tokenizer = model.tokenizer
    if tokenizer is None:
        raise ConfigError("quality is measured on texts; load the model with its tokenizer")
    if getattr(tokenizer, "chat_template", None):
        return PromptFormat(kind="chat")
    first = list(tokenizer("a").input_ids)[:1]
    has_bos = tokenizer.bos_token_id is not None and first == [tokenizer.bos_token_id]
    return PromptFormat(bos=has_bos, eos=tokenizer.eos_token_id is not None)


def weights_digest(model: torch.nn.Module) -> str:
    """Tells checkpoints apart: shapes of all parameters and some values of each."""
    digest = hashlib.sha256()
    for name, parameter in model.named_parameters():
        digest.update(f"{name} {tuple(parameter.shape)} {parameter.dtype}".encode())
        flat = parameter.detach().flatten()
        step = max(1, flat.numel() // _SAMPLED_WEIGHTS)
        digest.update(flat[::step].double().cpu().numpy().tobytes())
    return digest.hexdigest()[:16]


@dataclass(frozen=True)
class _Work:
    """What answering needs."""

    model: Draftless
    name: str
    options: QualityOptions
    prompt_format: PromptFormat
    base_key: str

    def key(self, record: QualityRecord) -> str:
        return hashlib.sha256(f"{self.base_key} {record.digest}".encode()).hexdigest()[:16]

    def answer(self, records: Sequence[QualityRecord]) -> list[QualityRow]:
        """Rows of one batch. Where the batch fails, each record is tried alone."""
        try:
            prompts = [self._prompt_ids(record) for record in records]
            outputs = self.model.generate(prompts, self._params())
        except (DraftlessError, RuntimeError) as error:  # RuntimeError: out of memory, for one
            if len(records) > 1:
                return [row for record in records for row in self.answer([record])]
            message = f"{type(error).__name__}: {error}"
            return [self._row(record, error=message) for record in records]
        return [
            self._scored(record, prompt, output)
            for record, prompt, output in zip(records, prompts, outputs, strict=True)
        ]

    def _scored(self, record: QualityRecord, prompt: list[int], output: Any) -> QualityRow:
        scores = {
            "loop_share": [float(looping_tokens(output.token_ids)), float(len(output.token_ids))],
            **score_output(record, output.text, runs_code=self.options.runs_code),
        }
        try:
            loss, num_judged = clean_loss(
                self.model.target, prompt + self._response_ids(record), len(prompt)
            )
        except RuntimeError as error:  # out of memory: all tokens at once need more than one by one
            return self._row(record, error=f"clean loss: {type(error).__name__}: {error}")
        if num_judged:
            scores["clean_loss"] = [loss, float(num_judged)]
        return self._row(
            record,
            text=output.text,
            num_tokens=len(output.token_ids),
            finish_reason=output.finish_reason,
            scores=scores,
        )

    def _row(self, record: QualityRecord, **rest: Any) -> QualityRow:
        return QualityRow(self.name, self.key(record), record.record_id, record.domain, **rest)

    def _params(self) -> SamplingParams:
        return SamplingParams(max_new_tokens=self.options.max_new_tokens)

    def _prompt_ids(self, record: QualityRecord) -> list[int]:
        prompt = record.prompt
        if record.test and self.prompt_format.kind == "chat":
            prompt = _CODE_TASK + prompt
        ids = self.prompt_format.encode_prompt(self.model.tokenizer, prompt)
        if not ids:
            raise InputError(f"the prompt of {record.record_id} is empty")
        return ids

    def _response_ids(self, record: QualityRecord) -> list[int]:
        """The response, with the EOS that ends it in training."""
        tokenizer: Any = self.model.tokenizer
        ids = list(tokenizer.encode(record.response, add_special_tokens=False))
        ends = self.prompt_format.kind == "chat" or self.prompt_format.eos
        return ids + [tokenizer.eos_token_id] * (ends and tokenizer.eos_token_id is not None)


def _base_key(facts: dict[str, Any], options: QualityOptions) -> str:
    parts = {name: facts[name] for name in ("weights", "dtype", "prompt_format")}
    parts |= {
        "format": FORMAT, "max_new_tokens": options.max_new_tokens, "runs_code": options.runs_code
    }  # fmt: skip
    return json.dumps(parts, sort_keys=True)


def _read_done(file: Path | None) -> dict[str, QualityRow]:
    """Rows without error, by key."""
    rows = {}
    for line in read_lines(file, may_be_cut=True) if file else ():
        try:
            row = QualityRow(**line.value)
        except TypeError as error:
            raise ArtifactError(
                f"{line.place} is not a row of a quality evaluation: {error}; "
                "move the file away or name another output"
            ) from error
        if row.error is None:
            rows[row.key] = row
    return rows
