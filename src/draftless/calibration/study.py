"""The study file: what a search has tried so far, one line per trial, so that it can go on.

Optuna's own `JournalStorage` keeps steps of its protocol: after a kill it holds a trial that never
ends, and a cut last line breaks it with the next one. This file holds results alone; Optuna's study is
filled from it in memory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from draftless.calibration.rounds import Evaluation
from draftless.errors import ArtifactError, ConfigError, InputError
from draftless.jsonl import Line, append_lines, cut_half_line, read_lines, unwritable
from draftless.skip_set import SkipSet, SkipSetting

STUDY_NAME = "study.jsonl"
FORMAT_VERSION = 1


@dataclass(frozen=True)
class Trial:
    """One set that was tried.

    Attributes:
        evaluation: what it is worth.
        origin: `warm`, `sampled`, or `changed` (sampled, but known already, and so changed).
        seconds: that proposing and evaluating took.
    """

    evaluation: Evaluation
    origin: str
    seconds: float

    @property
    def skip_set(self) -> SkipSet:
        return self.evaluation.setting.skip_set

    def to_dict(self) -> dict[str, Any]:
        told = {**asdict(self.evaluation), "setting": self.evaluation.setting.to_dict()}
        return {**told, "origin": self.origin, "seconds": self.seconds}

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> Trial:
        """Read what `to_dict` wrote; raises the usual errors of Python on other forms."""
        fields = dict(data)
        origin, seconds = str(fields.pop("origin")), float(fields.pop("seconds"))
        setting = SkipSetting.from_dict(fields.pop("setting"))
        numbers = {name: float(value) for name, value in fields.items()}
        return cls(Evaluation(setting=setting, **numbers), origin, seconds)


class Study:
    """The study of a folder.

    Args:
        folder: where `study.jsonl` is, or will be.
        facts: what the trials depend on; a study with other facts is refused.
        is_resumed: whether a study that is there may go on.

    Attributes:
        trials: so far.
        costs: dict of the cost table that the trials were weighed with, None before `begin`.

    Raises:
        ConfigError: the folder holds a study and `is_resumed` is not set, or one of other facts.
        ArtifactError: its file is damaged or of another format.
    """

    def __init__(self, folder: Path, facts: Mapping[str, Any], *, is_resumed: bool) -> None:
        self.file = folder / STUDY_NAME
        self.trials: list[Trial] = []
        self.costs: dict[str, Any] | None = None
        self._facts = dict(facts)
        if self.file.exists():
            if not is_resumed:
                raise ConfigError(
                    f"{folder} holds a search already; go on with --resume, or choose another "
                    "--output"
                )
            self._go_on()

    def begin(self, costs: Mapping[str, Any]) -> None:
        """Write the first line; without one the file holds nothing yet."""
        self._append({"format_version": FORMAT_VERSION, "facts": self._facts, "costs": costs})
        self.costs = dict(costs)

    def add(self, trial: Trial) -> None:
        """Keep a trial: on the disk before the next one begins."""
        self._append(trial.to_dict())
        self.trials.append(trial)

    def _append(self, line: Mapping[str, Any]) -> None:
        try:
            self.file.parent.mkdir(parents=True, exist_ok=True)
            append_lines(self.file, [line])
        except OSError as error:
            raise unwritable(self.file, error) from error

    def _go_on(self) -> None:
        try:
            cut_half_line(self.file)
            lines = list(read_lines(self.file))
        except (OSError, InputError) as error:
            raise ArtifactError(f"the study is damaged: {error}; {_WAY_OUT}") from error
        if not lines:
            return
        head = self._parse(lines[0], _read_head)
        if head["format_version"] != FORMAT_VERSION:
            raise ArtifactError(
                f"{self.file} has format version {head['format_version']}, this Draftless reads "
                f"{FORMAT_VERSION}; search in another --output"
            )
        for name, value in self._facts.items():
            if head["facts"].get(name) != value:
                raise ConfigError(
                    f"{self.file} was made with {name}={head['facts'].get(name)}, not {value}; "
                    "use the same model, data and options, or another --output"
                )
        self.costs = head["costs"]
        self.trials = [self._parse(line, Trial.from_dict) for line in lines[1:]]

    def _parse(self, line: Line, read: Any) -> Any:
        try:
            return read(line.value)
        except (KeyError, TypeError, ValueError, ConfigError) as error:
            raise ArtifactError(
                f"{line.place} is not what a study holds: {error!r}; {_WAY_OUT}"
            ) from error


_WAY_OUT = "mend the line from a copy, or search in another --output"


def _read_head(value: Mapping[str, Any]) -> dict[str, Any]:
    facts, costs = dict(value["facts"]), dict(value["costs"])
    return {"format_version": value["format_version"], "facts": facts, "costs": costs}
