"""One skip setting per domain, where it is clearly better than the general one on held-out texts.

The published sets of KNN-SSD overlap about as much as random ones, so a domain gets its own set only if
the interval of its gain lies above 0; else the general set ships for it, and that is said.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np

from draftless.calibration.costs import CostTable
from draftless.calibration.margins import Margin, compare
from draftless.calibration.rounds import RoundsObjective
from draftless.calibration.skip_search import (
    SKIP_FILE_NAME,
    SearchOptions,
    SkipResult,
    search_skip_setting,
)
from draftless.calibration.texts import OwnText, split_texts
from draftless.drafters.anchor_store import GENERAL
from draftless.drafters.layer_skip import read_skip_file
from draftless.errors import ArtifactError
from draftless.model import Draftless
from draftless.skip_set import SkipSetting

Ships = Literal["own", "general", "given", "untried"]
OnTrial = Callable[[str, int, float], None]
"""Gets the domain, the number of its trials so far and its best modelled speed-up."""


@dataclass(frozen=True)
class DomainSetting:
    """What a domain is drafted with, and why.

    Attributes:
        setting: what ships.
        ships: `own` (clearly better), `general` (not so), `given` (ready, not compared), or
            `untried` (too few texts to search on: the general one).
        gain: of the domain's own setting over the general one, in tokens/s on held-out texts,
            modelled; None if they were not compared.
    """

    setting: SkipSetting
    ships: Ships
    gain: Margin | None = None

    def to_dict(self) -> dict[str, Any]:
        return {"ships": self.ships, "gain": self.gain and asdict(self.gain)}


def find_settings(
    model: Draftless,
    texts: Mapping[str, Sequence[OwnText]],
    options: SearchOptions,
    folder: Path,
    *,
    given: Mapping[str, SkipSetting],
    is_resumed: bool = False,
    on_trial: OnTrial = lambda domain, num_trials, speed_up: None,  # noqa: ARG005
) -> tuple[SkipSetting, dict[str, DomainSetting]]:
    """The general setting, and one for every domain.

    Args:
        model: its drafter does not matter.
        texts: of every domain; one that is given needs none.
        options: of every search.
        folder: each search keeps its study in a subfolder named after the domain.
        given: settings that are not searched, by domain or `general`.
        is_resumed: go on with the studies that are there.
        on_trial: called after every trial.

    Raises:
        ConfigError, ArtifactError, InputError: as `search_skip_setting`.
    """

    costs: CostTable | None = None  # one for all, or settings could not be compared

    def search(name: str, chosen: Sequence[OwnText]) -> SkipResult:
        nonlocal costs
        found = search_skip_setting(
            model,
            chosen,
            options,
            folder / name,
            costs=costs,
            is_resumed=is_resumed,
            on_trial=lambda count, speed_up: on_trial(name, count, speed_up),
        )
        costs = costs or found.costs
        return found

    general = given.get(GENERAL) or search(GENERAL, mixed_texts(texts)).setting
    settings = {}
    for name, own in texts.items():
        if name in given:
            settings[name] = DomainSetting(given[name], "given")
        elif len(own) < 2:
            settings[name] = DomainSetting(general, "untried")
        else:
            found = search(name, own)
            gain = _gain(model, own, options, found, general)
            ships: Ships = "own" if gain.is_clear else "general"
            setting = found.setting if gain.is_clear else general
            settings[name] = DomainSetting(setting, ships, gain)
    return general, settings


def mixed_texts(texts: Mapping[str, Sequence[OwnText]]) -> list[OwnText]:
    """Half of every domain's texts, such that what its own search holds out is held out here, too."""
    mixed: list[OwnText] = []
    for own in texts.values():
        mixed += sorted(own, key=lambda text: text.key)[: max(2, len(own) // 2)]
    return mixed


def _gain(
    model: Draftless,
    texts: Sequence[OwnText],
    options: SearchOptions,
    found: SkipResult,
    general: SkipSetting,
) -> Margin:
    """What a domain's own setting gains over the general one on its held-out texts."""
    objective = RoundsObjective(
        model.target,
        split_texts(texts),
        found.costs,
        options.depth,
        options.windows_per_text,
        options.seed,
    )
    totals = [objective.totals(setting) for setting in (found.setting, general)]
    tokens, seconds = (np.stack(column) for column in zip(*totals, strict=True))
    return compare(tokens, seconds, options.seed).over_best


def read_given(folder: Path, labels: Sequence[str], fingerprint: str) -> dict[str, SkipSetting]:
    """The skip files `LABEL/skip.json` of a folder, for those labels and `general` that have one.

    Raises:
        ArtifactError: there is none, one is damaged, or one was found for another model.
    """
    given = {}
    for label in (*labels, GENERAL):
        file = folder / label / SKIP_FILE_NAME
        if not file.exists():
            continue
        given[label] = read_skip_file(file)
        found_for = json.loads(file.read_text(encoding="utf-8")).get("model_fingerprint")
        if found_for != fingerprint:
            raise ArtifactError(
                f"{file} was found for the model {found_for}, this one is {fingerprint}; "
                "search again with draftless calibrate"
            )
    if not given:
        raise ArtifactError(
            f"{folder} has no DOMAIN/{SKIP_FILE_NAME} for any of {', '.join((*labels, GENERAL))}"
        )
    return given
