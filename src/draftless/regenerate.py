"""The target writes its own responses to given prompts: training data from its own distribution.

Users of a released model do not have what it was trained on, and drafts must hit what the model
says itself, not what a data set says. Medusa (2401.10774, 2.3.2) calls this self-distillation.

A response depends on the prompt, the options and the seed, and on nothing else: not on the order of
the records, the size of a batch, or where a killed run went on (in half precision up to near-ties).
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from draftless.chat_examples import encode_question
from draftless.dialogue import Dialogue, parts_of
from draftless.errors import ConfigError, InputError
from draftless.jsonl import append_lines, cut_half_line, read_lines, unwritable, write_json
from draftless.model import Draftless
from draftless.noise import hash_ids
from draftless.params import SamplingParams
from draftless.prompts import Record
from draftless.provenance import collect_provenance

_WINDOW = 4  # batches that are sorted by length and written together: most that a kill loses


@dataclass(frozen=True)
class RegenerateOptions:
    """How responses are written.

    Attributes:
        max_new_tokens: of one response; a longer one is kept and marked `finish_reason: length`.
        temperature, top_k, top_p: of the sampling; 0 is greedy.
        seed: mixed with each record's prompt.
        batch_size: records that are generated together.
        drop_loops: leave out responses that mostly repeat themselves.
        format: how prompts are given: `plain` is the text itself, `chat` the tokenizer's chat template,
            `auto` what the checkpoint was trained with, else the template where there is one.
    """

    max_new_tokens: int = 256
    temperature: float = 0.0
    top_k: int = 0
    top_p: float = 1.0
    seed: int = 0
    batch_size: int = 32
    drop_loops: bool = True
    format: Literal["auto", "plain", "chat"] = "auto"

    def __post_init__(self) -> None:
        if self.batch_size < 1:
            raise ConfigError(f"batch_size={self.batch_size} is below 1")
        if self.format not in ("auto", "plain", "chat"):
            raise ConfigError(f"format={self.format!r} is unknown; use auto, plain or chat")
        self.params(self.seed)

    def params(self, seed: int) -> SamplingParams:
        return SamplingParams(
            max_new_tokens=self.max_new_tokens,
            temperature=self.temperature,
            top_k=self.top_k,
            top_p=self.top_p,
            seed=seed,
        )


class Regeneration:
    """Responses to all records, written to a JSONL file in the order of the records.

    Lines have `prompt` and `response` (or `messages`), `finish_reason`, `seed`, `index` of the record,
    and `dialogue.KEPT_FIELDS`. Beside the file stands `NAME.provenance.json`: options, model, counts.

    Attributes:
        num_records: all of them.
        refusal: why the template refused the first of `counts["refused"]`.
        format: how prompts are given: `chat`, `plain`, or `checkpoint` for what it was trained with.
        num_pending: records that a response is still to be written to.
        counts: `written`, `unfinished` and `empty` (of the written ones), `loops`, `too_long` and
            `refused` by the chat template (left out) and `tokens` (of this session).

    Raises:
        ConfigError: the output exists and `is_resumed` is not set, or was written from other
            prompts or with other options.
        InputError: a prompt cannot be encoded, or none leaves room for a response.
        ArtifactError: the output cannot be written.
    """

    def __init__(
        self,
        model: Draftless,
        records: Sequence[Record],
        output: Path,
        options: RegenerateOptions,
        *,
        is_resumed: bool = False,
    ) -> None:
        self.output = output
        self.counts: Counter[str] = Counter()
        self.num_records = len(records)
        self._model = model
        self._options = options
        self._sidecar = output.with_name(f"{output.name.removesuffix('.jsonl')}.provenance.json")
        self.format = choose_format(model, options.format)
        check_output(output, is_resumed=is_resumed)
        self._sessions = self._read_sessions()
        self.refusal = ""
        self._dialogues = self._open_all(records)
        self._num_done = self._go_on() if output.exists() else 0

    @property
    def num_pending(self) -> int:
        return sum(dialogue.index >= self._num_done for dialogue in self._dialogues)

    def batches(self) -> Iterator[int]:
        """Write what is missing; yields the number of records that were done since the last time."""
        self._sessions.append(collect_provenance())
        self._write_sidecar(is_complete=False)
        size = _WINDOW * self._options.batch_size
        # Windows begin at the same records in every session, so that even batches are the same.
        for begin in range(0, len(self._dialogues), size):
            window = self._dialogues[begin : begin + size]
            if window[-1].index >= self._num_done:
                yield from self._answer(window)
                self._append([one for one in window if one.index >= self._num_done])
                for dialogue in window:
                    dialogue.outputs.clear()
        self._write_sidecar(is_complete=True)

    def _open_all(self, records: Sequence[Record]) -> list[Dialogue]:
        """All records whose first prompt leaves room for a response."""
        found = []
        for index, record in enumerate(records):
            dialogue = Dialogue(index, record, parts_of(record))
            try:
                ids = self._encode(dialogue)
            except InputError as error:
                self.counts["refused"] += 1
                self.refusal = self.refusal or f"record {index + 1}: {error}"
                continue
            if self._has_room(ids):
                dialogue.prompt_len = len(ids)
                dialogue.seed = hash_ids(self._options.seed, ids=ids) >> 1  # JSON readers: int64
                found.append(dialogue)
            else:
                self.counts["too_long"] += 1
        if not found and self.refusal:
            raise InputError(f"none of {len(records)} prompts can be used; {self.refusal}")
        if not found:
            raise InputError(
                f"none of {len(records)} prompts leaves room for a response in the model's context "
                f"of {self._model.target.max_positions}; give shorter ones"
            )
        return found

    def _encode(self, dialogue: Dialogue) -> list[int]:
        """Ids of what the next response of a dialogue answers."""
        arguments = dialogue.template_arguments
        if self.format == "chat":
            tokenizer = self._model.tokenizer
            return encode_question(tokenizer, dialogue.messages, arguments)
        prompt = dialogue.prompt
        if self.format == "plain" and (arguments or not isinstance(prompt, str)):
            named = ", ".join(arguments) or "messages"
            raise InputError(f"{named} need --format chat, and a tokenizer with a chat template")
        if self.format == "plain":
            return list(self._model.tokenizer(prompt).input_ids)  # type: ignore[misc]
        if arguments:
            raise InputError(f"{', '.join(arguments)} need the prompt format 'chat'")
        return self._model.encode(prompt)

    def _has_room(self, prompt_ids: Sequence[int]) -> bool:
        limit = self._model.target.max_positions
        return limit is None or len(prompt_ids) < limit

    def _answer(self, window: Sequence[Dialogue]) -> Iterator[int]:
        """All responses of a window: first responses first, rows of one batch alike in length."""
        active = list(window)
        while active:
            active.sort(key=lambda dialogue: dialogue.prompt_len)
            unfinished: list[Dialogue] = []
            for begin in range(0, len(active), self._options.batch_size):
                batch = active[begin : begin + self._options.batch_size]
                prompts = [self._encode(dialogue) for dialogue in batch]
                params = [self._options.params(dialogue.seed) for dialogue in batch]
                for dialogue, output in zip(
                    batch, self._model.generate(prompts, params), strict=True
                ):
                    dialogue.outputs.append(output)
                    self.counts["tokens"] += len(output.token_ids)
                going_on = [dialogue for dialogue in batch if self._goes_on(dialogue)]
                unfinished += going_on
                yield len(batch) - len(going_on)
            active = unfinished

    def _goes_on(self, dialogue: Dialogue) -> bool:
        """Whether one more response is missing and has room; notes the length of its prompt."""
        if not dialogue.is_open:
            return False
        try:
            ids = self._encode(dialogue)
        except InputError:  # the template refuses a later turn: the record ends before it
            return False
        dialogue.prompt_len = len(ids)
        return self._has_room(ids)

    def _append(self, dialogues: Sequence[Dialogue]) -> None:
        loops = {one.index for one in dialogues if self._options.drop_loops and one.is_loop}
        lines = [one.line() for one in dialogues if one.index not in loops]
        self.counts["loops"] += len(loops)
        self._count(lines)
        try:
            append_lines(self.output, lines)
        except OSError as error:
            raise unwritable(self.output, error) from error

    def _count(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self.counts["written"] += len(lines)
        self.counts["unfinished"] += sum(line["finish_reason"] != "stop" for line in lines)
        self.counts["empty"] += sum(not _last_response(line).strip() for line in lines)

    def _facts(self) -> dict[str, Any]:
        """What must be the same when a run goes on; the batch size does not change responses."""
        model = self._model.target.model
        options = asdict(self._options)
        options.pop("batch_size")
        return {
            **options,
            "format": self.format,
            "num_parameters": sum(parameter.numel() for parameter in model.parameters()),
            "dtype": str(model.dtype).removeprefix("torch."),
        }

    def _read_sessions(self) -> list[dict[str, Any]]:
        """Sessions before this one.

        Raises:
            ConfigError: they had other options, or the output has no sidecar.
        """
        if not self.output.exists():
            return []
        try:
            before = json.loads(self._sidecar.read_text(encoding="utf-8"))
            facts, sessions = dict(before["options"]), list(before["sessions"])
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise ConfigError(
                f"{self.output} cannot go on: {self._sidecar} is missing or broken; "
                "choose another --output"
            ) from error
        for name, value in self._facts().items():
            if facts.get(name) != value:
                raise ConfigError(
                    f"{self.output} was written with {name}={facts.get(name)}, not {value}; "
                    "use the same options, or another --output"
                )
        return sessions

    def _go_on(self) -> int:
        """Repair the output and compare it with the records; the number of records done."""
        try:
            cut_half_line(self.output)
        except OSError as error:
            raise unwritable(self.output, error) from error
        lines = [line.value for line in read_lines(self.output)]
        known = {dialogue.index: dialogue for dialogue in self._dialogues}
        for line in lines:
            dialogue, parts = known.get(line.get("index", -1)), parts_of(line)
            if (
                dialogue is None
                or dialogue.parts[: len(parts)] != parts
                or dialogue.seed != line["seed"]
            ):
                raise ConfigError(
                    f"{self.output} was written from other prompts (index {line.get('index')}); "
                    "give the same --prompts, or another --output"
                )
        num_done = lines[-1]["index"] + 1 if lines else 0
        self._count(lines)
        self.counts["loops"] = sum(index < num_done for index in known) - len(lines)
        return num_done

    def _write_sidecar(self, *, is_complete: bool) -> None:
        facts = {
            "is_complete": is_complete,
            "num_records": self.num_records,
            "counts": {n: c for n, c in sorted(self.counts.items()) if n != "tokens"},
            "options": self._facts(),
            "sessions": self._sessions,
        }
        try:
            self._sidecar.parent.mkdir(parents=True, exist_ok=True)
            write_json(self._sidecar, facts)
        except OSError as error:
            raise unwritable(self._sidecar, error) from error


def choose_format(model: Draftless, kind: str) -> Literal["plain", "chat", "checkpoint"]:
    """How prompts are given to a model.

    Raises:
        ConfigError: `chat` without a chat template, or another format than the checkpoint's.
    """
    trained = model.manifest.prompt_format if model.manifest else None
    has_template = bool(getattr(model.tokenizer, "chat_template", None))
    if trained is not None and kind not in ("auto", trained.kind):
        raise ConfigError(f"the checkpoint was trained on {trained.kind} prompts, not {kind} ones")
    if trained is not None and not (trained.kind == "chat" and has_template):
        return "checkpoint"
    if kind == "chat" and not has_template:
        raise ConfigError("--format chat needs a chat template, and the tokenizer has none")
    return "chat" if has_template and kind != "plain" else "plain"


def _last_response(line: Mapping[str, Any]) -> str:
    text = line["messages"][-1]["content"] if "messages" in line else line["response"]
    return str(text)


def check_output(output: Path, *, is_resumed: bool) -> None:
    """Refuse an output that exists, unless it shall go on.

    Raises:
        ConfigError: it does, or it is a kind of file that cannot go on after a kill.
    """
    if not output.name.endswith(".jsonl"):
        raise ConfigError(
            f"--output {output} does not end in .jsonl; lines are added to a plain file, so that a "
            "killed run can go on (pack it with gzip when it is done)"
        )
    if output.exists() and not is_resumed:
        raise ConfigError(f"{output} exists; go on with --resume, or choose another --output")
