"""Search of the skip set that drafts fastest, and what it is worth against chance.

Source: Self-SD (arXiv 2309.08168), section 3.2: Bayesian optimisation over all sub-layers. Differs: the
objective is noise-free by default (`rounds.py`), warm starts reach large shares, the threshold and the
longest draft are found with the set, and what was found is compared with random sets of equal size on
texts that the search did not see.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal, Protocol, get_args

import numpy as np

from draftless.calibration.costs import CostTable, measure_costs
from draftless.calibration.margins import Comparison, compare, random_sets
from draftless.calibration.measured import MeasuredObjective
from draftless.calibration.proposals import Proposer, eligible_sublayers
from draftless.calibration.rounds import (
    MAX_SIBLINGS,
    SIBLINGS,
    THRESHOLDS,
    Evaluation,
    RoundsObjective,
)
from draftless.calibration.study import Study, Trial
from draftless.calibration.texts import OwnText, digest_texts, split_texts
from draftless.drafters.layer_skip import SKIP_FILE_VERSION
from draftless.errors import ConfigError
from draftless.jsonl import write_json
from draftless.model import Draftless
from draftless.provenance import collect_provenance
from draftless.skip_set import SkipSet, SkipSetting

SKIP_FILE_NAME = "skip.json"

ObjectiveName = Literal["rounds", "measured"]


class Objective(Protocol):
    """What a search maximises."""

    def evaluate(self, skip_set: SkipSet) -> Evaluation:
        """The value of a set on the texts to search on."""

    def totals(self, setting: SkipSetting) -> tuple[np.ndarray, np.ndarray]:
        """Tokens and seconds `[T]` on every held-out text."""


@dataclass(frozen=True)
class SearchOptions:
    """How a skip set is searched.

    Attributes:
        trials: most sets to try, those of earlier sessions included.
        minutes: of all sessions; whichever ends first ends the search.
        seed: of everything random.
        objective: `rounds` is free of noise, `measured` times real generation as the paper does.
        depth: longest draft that is considered.
        windows_per_text: places of a text where rounds are simulated.
        protect_ends: never skip a sub-layer of the first and the last layer.
        num_random: random sets to compare with.

    Raises:
        ConfigError: an option is out of bounds.
    """

    trials: int = 150
    minutes: float | None = None
    seed: int = 0
    objective: ObjectiveName = "rounds"
    depth: int = 12
    windows_per_text: int = 4
    protect_ends: bool = True
    num_random: int = 20

    def __post_init__(self) -> None:
        for name in ("trials", "depth", "windows_per_text", "num_random"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is below 1")
        if self.minutes is not None and self.minutes <= 0:
            raise ConfigError(f"minutes={self.minutes} must be above 0")
        if self.objective not in get_args(ObjectiveName):
            raise ConfigError(f"objective {self.objective!r} is unknown; use rounds or measured")


@dataclass(frozen=True)
class SkipResult:
    """What a search found.

    Attributes:
        best: the set, its threshold and depth, and what the objective says about it.
        speed_up: modelled, over plain decoding by the cost table.
        share: `f`, seconds of a draft pass over those of the target's pass over one token.
        comparison: with random sets of equal size, on held-out texts.
        trials: all that was tried.
        costs: the cost table.
        facts: model, texts and options.
    """

    best: Evaluation
    speed_up: float
    share: float
    comparison: Comparison
    trials: Sequence[Trial]
    costs: CostTable
    facts: Mapping[str, Any]

    @property
    def setting(self) -> SkipSetting:
        return self.best.setting

    def to_dict(self) -> dict[str, Any]:
        """The content of `skip.json`."""
        values = [trial.evaluation.value for trial in self.trials]
        compared = self.comparison
        return {
            "format_version": SKIP_FILE_VERSION,
            "setting": self.setting.to_dict(),
            "model_fingerprint": self.facts["model_fingerprint"],
            "found": {
                "tokens_per_second": self.best.value,
                "tokens_per_round": self.best.tokens_per_round,
                "drafts_per_round": self.best.drafts_per_round,
                "draft_pass_s": self.best.draft_pass_s,
                "draft_cost_share": self.share,
                "modelled_speed_up": self.speed_up,
            },
            "random_sets": {
                **asdict(compared),
                "is_clear_of_chance": compared.over_mean.is_clear,
                "num_skipped": self.setting.skip_set.num_skipped,
            },
            "tried": {
                "num_trials": len(values),
                "seconds": round(sum(trial.seconds for trial in self.trials), 1),
                "best_so_far": [float(value) for value in np.maximum.accumulate(values)],
            },
            "options": dict(self.facts),
            "costs": self.costs.to_dict(),
            "provenance": collect_provenance(),
        }


def search_skip_setting(
    model: Draftless,
    texts: Sequence[OwnText],
    options: SearchOptions,
    folder: Path,
    *,
    costs: CostTable | None = None,
    is_resumed: bool = False,
    on_trial: Callable[[int, float], None] | None = None,
) -> SkipResult:
    """Search on half of the texts, and compare with random sets on the other half.

    Args:
        model: its drafter does not matter.
        texts: of its own; of each domain every second one is held out.
        options: how long, and what for.
        folder: for `study.jsonl` and `skip.json`.
        costs: to weigh with, if it was measured before and the study is new.
        is_resumed: go on with the study that is there, if any.
        on_trial: called with the number of trials so far and the best modelled speed-up.

    Raises:
        ConfigError: the folder holds a study and `is_resumed` is not set, or one made with another
            model, other texts or options; or nothing can be skipped.
        ArtifactError: the study is damaged, or cannot be written.
        InputError: there are too few texts.
    """
    halves = split_texts(texts)
    eligible = eligible_sublayers(model.target.num_layers, protect_ends=options.protect_ends)
    facts = _facts(model, texts, options)
    study = Study(folder, facts, is_resumed=is_resumed)
    if study.costs is None:
        most = options.depth + MAX_SIBLINGS
        costs = costs or measure_costs(model.target, _typical(halves[0]), most)
        study.begin(costs.to_dict())
    costs = CostTable.from_dict(study.costs)
    objective: Objective = (
        MeasuredObjective(model, halves, options.depth)
        if options.objective == "measured"
        else RoundsObjective(
            model.target, halves, costs, options.depth, options.windows_per_text, options.seed
        )
    )
    proposer = Proposer(eligible, options.seed, has_noise=options.objective == "measured")
    _search(objective, proposer, study, options, costs, on_trial)
    best = max(study.trials, key=lambda trial: trial.evaluation.value).evaluation
    num_skipped = best.setting.skip_set.num_skipped
    others = random_sets(eligible, num_skipped, options.num_random, options.seed)
    result = SkipResult(
        best,
        best.value * costs.width_s[0],
        best.draft_pass_s / costs.width_s[0],
        _compare(objective, best, others, options.seed),
        study.trials,
        costs,
        facts,
    )
    write_json(folder / SKIP_FILE_NAME, result.to_dict())
    return result


def _search(
    objective: Objective,
    proposer: Proposer,
    study: Study,
    options: SearchOptions,
    costs: CostTable,
    on_trial: Callable[[int, float], None] | None,
) -> None:
    """Try sets until the budget is spent."""
    best = 0.0
    for trial in study.trials:
        proposer.tell(trial.skip_set, trial.evaluation.value)
        best = max(best, trial.evaluation.value)
    spent = sum(trial.seconds for trial in study.trials)
    limit = float("inf") if options.minutes is None else 60 * options.minutes
    while not study.trials or (
        len(study.trials) < options.trials and spent < limit and not proposer.is_exhausted
    ):
        started = time.perf_counter()
        skip_set, origin = proposer.propose()
        evaluation = objective.evaluate(skip_set)
        trial = Trial(evaluation, origin, time.perf_counter() - started)
        study.add(trial)
        proposer.tell(skip_set, evaluation.value)
        spent += trial.seconds
        best = max(best, evaluation.value)
        if on_trial is not None:
            on_trial(len(study.trials), best * costs.width_s[0])


def _compare(
    objective: Objective, best: Evaluation, others: Sequence[SkipSet], seed: int
) -> Comparison:
    """Random sets get their threshold and depth as the found set did: on the texts to search on."""
    settings = [best.setting, *(objective.evaluate(skip_set).setting for skip_set in others)]
    totals = [objective.totals(setting) for setting in settings]
    tokens, seconds = (np.stack(column) for column in zip(*totals, strict=True))
    return compare(tokens, seconds, seed)


def _typical(texts: Sequence[OwnText]) -> list[int]:
    """The ids of the text of median length."""
    ordered = sorted(texts, key=lambda text: len(text.prompt_ids) + len(text.own_ids))
    text = ordered[len(ordered) // 2]
    return [*text.prompt_ids, *text.own_ids]


def _facts(model: Draftless, texts: Sequence[OwnText], options: SearchOptions) -> dict[str, Any]:
    """What the trials depend on; budgets may be raised, and the comparison is made anew."""
    fixed = {
        name: value
        for name, value in asdict(options).items()
        if name not in ("trials", "minutes", "num_random")
    }
    return {
        **fixed,
        "thresholds": list(THRESHOLDS),
        "siblings": list(SIBLINGS),
        "model_fingerprint": model.target.fingerprint(),
        "dtype": str(model.target.model.dtype).removeprefix("torch."),
        "device": model.target.device.type,
        "domains": sorted({text.domain for text in texts}),
        "num_texts": len(texts),
        "texts": f"{digest_texts(texts):016x}",
    }
