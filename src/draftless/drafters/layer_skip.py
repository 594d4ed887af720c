"""Layer skipping: the target without some of its sub-layers drafts for itself.

Source: Self-SD (arXiv 2309.08168). Draft passes leave out a *skip set* of attention and MLP sub-layers.
They start from the verified cache, write behind it, and are forgotten; the verification pass feeds
every draft again. Drafting goes on until the draft is less sure of a token than a threshold (this
token is still drafted, as in the paper), or the draft is as long as it may be. The threshold is fixed,
or moves so that a target share of the drafts is accepted (section 3.4 of the paper), per request.

Differs from the reference implementation: sampling draws the draft under the noise of the target's own
draws and is verified exactly; rows of a batch are drafted together, those with one skip set in one
pass; nothing is global. Siblings at uncertain places are SWIFT's idea (arXiv 2410.06916); here the
likeliest paths get them, whatever their place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any
from weakref import WeakKeyDictionary

import torch

from draftless.drafters.common import best_ids, check_least, competing
from draftless.errors import ArtifactError, ConfigError
from draftless.skip_set import SkipSet, SkipSetting
from draftless.types import DraftPasses, DraftTree, Row, StepRecord

SKIP = "skip"  # the name of this source in `DraftTree.sources`
SKIP_FILE_VERSION = 1
_THRESHOLD, _DEPTH = 0.6, 12  # the paper's start and its longest draft
_SIBLINGS = 4

# The controller of the threshold, with the paper's values (section 3.4 and appendix).
_TARGET_ACCEPTANCE, _STEP = 0.9, 0.01
_KEEP_ACCEPTANCE, _KEEP_THRESHOLD = 0.5, 0.9


class LayerSkipDrafter:
    """Drafts with passes through part of the target.

    Args:
        skip_set: sub-layers to leave out: a `SkipSet`, its dict, or the path of a skip file.
        threshold: least probability with which drafting goes on; None is the skip file's, else 0.6.
        depth: longest draft; None is the skip file's, else 12.
        siblings: most further candidates beside the chain; None is the skip file's, else 4.
        adaptive: move the threshold so that 90 % of the chain's drafts are accepted.
        couple: draft under the keyed noise of the positions when sampling.
        num_layers: of the model, for checking the skip set.
    """

    def __init__(
        self,
        skip_set: SkipSet | Mapping[str, Any] | str | Path | None = None,
        threshold: float | None = None,
        depth: int | None = None,
        siblings: int | None = None,
        adaptive: bool = False,
        couple: bool = True,
        num_layers: int | None = None,
    ) -> None:
        if skip_set is None:
            raise ConfigError(
                "layer-skip needs a skip set, and this model's folder has none: find one with "
                "`draftless calibrate skip`, or give skip_set={'attention': [...], 'mlp': [...]}"
            )
        if isinstance(skip_set, str | Path):
            setting = read_skip_file(skip_set)
        else:
            setting = SkipSetting(SkipSet.from_dict(skip_set), _THRESHOLD, _DEPTH, _SIBLINGS)
        self.setting = override("layer-skip", setting, threshold, depth, siblings)
        if num_layers is not None:
            self.setting.skip_set.check(num_layers)
        self._adaptive = adaptive
        self._couple = couple
        self._controllers: WeakKeyDictionary[Row, _Controller] = WeakKeyDictionary()

    @property
    def skip_sets(self) -> tuple[SkipSet, ...]:
        """All that its draft passes may leave out."""
        return (self.setting.skip_set,)

    def setting_of(self, row: Row) -> tuple[SkipSetting, str]:  # noqa: ARG002 - others choose by it
        """How a request is drafted, and what its drafts are called."""
        return self.setting, SKIP

    def reset(self, row: Row) -> None:
        self._controllers[row] = _Controller(self.setting_of(row)[0].threshold)

    def propose(self, rows: Sequence[Row], passes: DraftPasses) -> list[DraftTree]:
        drafts = [self._draft(row) for row in rows]
        groups: dict[SkipSet, dict[int, _Draft]] = {}
        for index, draft in enumerate(drafts):
            if draft.is_open:
                groups.setdefault(draft.setting.skip_set, {})[index] = draft
        for skip_set, members in groups.items():
            while members:
                last = {index: draft.token_ids[-1:] for index, draft in members.items()}
                for index, logits in passes.feed(last, skip_set).items():
                    self._extend(members[index], logits)
                members = {index: draft for index, draft in members.items() if draft.is_open}
        return [draft.tree() for draft in drafts]

    def _draft(self, row: Row) -> _Draft:
        setting, source = self.setting_of(row)
        setting = replace(setting, depth=min(setting.depth, row.max_depth))
        if self._adaptive:
            setting = replace(setting, threshold=self._controllers[row].threshold)
        return _Draft(row, setting, source, row.token_ids[-1:])

    def _extend(self, draft: _Draft, logits: torch.Tensor) -> None:
        """Take the best token of `logits [1, V]`."""
        count, ahead = 1 + draft.setting.siblings, len(draft.candidates)
        scores, ids = competing(draft.row, logits, count, couple=self._couple, ahead=ahead)
        scores = scores.float()
        values, best = best_ids(scores, ids, count)
        shares = (values - scores.logsumexp(1, keepdim=True)).exp()
        draft.take(list(zip(best[0].tolist(), shares[0].tolist(), strict=True)))

    def observe(self, records: Sequence[StepRecord]) -> None:
        if not self._adaptive:
            return
        for record in records:
            depth = self.setting_of(record.row)[0].depth
            self._controllers[record.row].learn(record, depth)


def override(
    drafter: str,
    setting: SkipSetting,
    threshold: float | None,
    depth: int | None,
    siblings: int | None,
) -> SkipSetting:
    """The setting with what is given to a drafter in its place.

    Raises:
        ConfigError: a value is out of bounds.
    """
    setting = SkipSetting(
        setting.skip_set,
        setting.threshold if threshold is None else threshold,
        setting.depth if depth is None else depth,
        setting.siblings if siblings is None else siblings,
    )
    check_least(drafter, depth=(setting.depth, 1), siblings=(setting.siblings, 0))
    if not isinstance(setting.threshold, int | float) or not 0.0 <= setting.threshold <= 1.0:
        raise ConfigError(f"threshold={setting.threshold} of {drafter} is not between 0 and 1")
    return setting


def read_skip_file(path: str | Path) -> SkipSetting:
    """The setting in a skip file that `draftless calibrate skip` wrote.

    Raises:
        ArtifactError: it is missing, damaged, or of a newer format.
    """
    try:
        data = json.loads(Path(path).read_text(encoding="utf-8-sig"))
        version, setting = data["format_version"], data["setting"]
        if version != SKIP_FILE_VERSION:
            raise ArtifactError(
                f"{path} has format version {version}, this Draftless reads {SKIP_FILE_VERSION}; "
                "update Draftless or calibrate again"
            )
        return SkipSetting.from_dict(setting)
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ArtifactError(f"{path} is not a valid skip file: {error}") from error


@dataclass(slots=True)
class _Draft:
    """The draft of one row while it grows.

    Attributes:
        row: whose draft it is.
        setting: its skip set, threshold and longest draft in this step.
        source: name of its nodes.
        token_ids: the root and the chain.
        candidates: per place of the chain tokens and their shares, the drafted one first.
    """

    row: Row
    setting: SkipSetting
    source: str
    token_ids: list[int]
    candidates: list[list[tuple[int, float]]] = field(default_factory=list)

    @property
    def is_open(self) -> bool:
        """Whether one more token shall be drafted."""
        if len(self.candidates) >= self.setting.depth:
            return False
        return not self.candidates or self.candidates[-1][0][1] >= self.setting.threshold

    def take(self, candidates: list[tuple[int, float]]) -> None:
        self.candidates.append(candidates)
        self.token_ids.append(candidates[0][0])

    def tree(self) -> DraftTree:
        """The chain, and the siblings whose paths are likeliest."""
        siblings: list[tuple[float, int, int]] = []  # share of the path, parent, token
        share = 1.0
        for parent, (drafted, *others) in enumerate(self.candidates):
            siblings += [(share * chance, parent, token_id) for token_id, chance in others]
            share *= drafted[1]
        best = sorted(siblings, reverse=True)[: self.setting.siblings]
        chain = len(self.token_ids)
        return DraftTree(
            (*self.token_ids, *(token_id for _, _, token_id in best)),
            (*range(-1, chain - 1), *(parent for _, parent, _ in best)),
            sources=("", *[self.source] * (chain - 1 + len(best))),
        )


class _Controller:
    """The threshold of one request: up while too little is accepted, else down."""

    def __init__(self, threshold: float) -> None:
        self.threshold = threshold
        self._acceptance = 0.0

    def learn(self, record: StepRecord, depth: int) -> None:
        drafted = max(record.tree.layout.depths)
        if not drafted:
            return
        # Siblings stand behind the chain; the threshold decides on the chain alone.
        accepted = sum(0 < node <= drafted for node in record.verdict.path)
        self._acceptance += (1 - _KEEP_ACCEPTANCE) * (accepted / drafted - self._acceptance)
        if self._acceptance < _TARGET_ACCEPTANCE:
            wanted = self.threshold + _STEP
        elif drafted >= depth:  # the reference code's rule: a full draft says nothing against it
            wanted = self.threshold
        else:
            wanted = self.threshold - _STEP
        moved = self.threshold + (1 - _KEEP_THRESHOLD) * (wanted - self.threshold)
        self.threshold = min(1.0, max(0.0, moved))
