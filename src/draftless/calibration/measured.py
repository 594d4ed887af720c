"""The paper's objective: tokens per second of real generation, with all the noise of the machine."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from draftless.calibration.rounds import Evaluation
from draftless.calibration.texts import OwnText
from draftless.model import Draftless
from draftless.skip_set import SkipSet, SkipSetting
from draftless.types import Statistics

THRESHOLD = 0.8  # KNN-SSD's and Self-SD's function default
_NUM_TEXTS, _NUM_TOKENS = 8, 32  # the papers' evaluation point


class MeasuredObjective:
    """Drafts for real, one request at a time, with a fixed threshold.

    Self-SD and KNN-SSD time prefill, too; here it is left out: no set can change it.

    Args:
        model: any drafter.
        halves: texts to search on, of which 8 spread over the domains are used, and held-out ones.
        depth: longest draft.
    """

    def __init__(
        self, model: Draftless, halves: tuple[Sequence[OwnText], Sequence[OwnText]], depth: int
    ) -> None:
        self._model = model
        self._depth = depth
        searched, self._held = halves
        places = np.linspace(0, len(searched) - 1, min(_NUM_TEXTS, len(searched)))
        self._searched = [searched[round(place)] for place in places]

    def evaluate(self, skip_set: SkipSet) -> Evaluation:
        """Its speed on the texts to search on."""
        setting = SkipSetting(skip_set, THRESHOLD, self._depth)
        runs = self._run(setting, self._searched)
        passes = sum(run.num_draft_passes for run in runs)
        steps = sum(run.num_steps for run in runs)
        tokens = sum(run.num_committed_tokens for run in runs)
        return Evaluation(
            setting,
            tokens / sum(map(_decode_s, runs)),
            tokens / steps,
            passes / steps,
            sum(run.time_s["draft"] for run in runs) / max(1, passes),
        )

    def totals(self, setting: SkipSetting) -> tuple[np.ndarray, np.ndarray]:  # [T] float each
        """Tokens and seconds on every held-out text."""
        runs = self._run(setting, self._held)
        tokens = np.array([float(run.num_committed_tokens) for run in runs])
        return tokens, np.array([_decode_s(run) for run in runs])

    def _run(self, setting: SkipSetting, texts: Sequence[OwnText]) -> list[Statistics]:
        options = {
            "skip_set": setting.skip_set,
            "threshold": setting.threshold,
            "depth": setting.depth,
            "siblings": setting.siblings,
        }
        model = self._model.with_drafter("layer-skip", options)
        return [
            model.generate(list(text.prompt_ids), max_new_tokens=_NUM_TOKENS).stats
            for text in texts
        ]


def _decode_s(stats: Statistics) -> float:
    return sum(seconds for stage, seconds in stats.time_s.items() if stage != "prefill")
