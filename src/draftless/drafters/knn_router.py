"""KNN-SSD: the skip set that drafts a request is that of the nearest anchors of its prompt.

Source: KNN-SSD (Findings of EACL 2026), section 3.2. The vector of a prompt is the mean of the target's
final-norm hidden states over it but its last token; prefill computes them anyway.

Differs from the released code: the anchors' vectors come from the same prefill as the requests', a
prompt far from every anchor goes to a general set (theirs always gets some label), neighbours may
vote, rows of a batch have sets of their own, and it samples. The rest is `LayerSkipDrafter`.
"""

from __future__ import annotations

from collections import Counter
from pathlib import Path
from weakref import WeakKeyDictionary

import torch

from draftless.drafters.anchor_store import GENERAL, Anchors, AnchorStore
from draftless.drafters.common import check_least
from draftless.drafters.layer_skip import SKIP, LayerSkipDrafter, override
from draftless.errors import ConfigError
from draftless.skip_set import SkipSet, SkipSetting
from draftless.types import Row


class KNNSSDDrafter(LayerSkipDrafter):
    """Drafts each request with the skip set of its domain.

    Args:
        store: an `AnchorStore`, or the folder of one.
        neighbours: nearest anchors that vote.
        threshold: least probability with which drafting goes on; None is each setting's own.
        depth: longest draft; None is each setting's own.
        siblings: most further candidates beside the chain; None is each setting's own.
        adaptive: as in `LayerSkipDrafter`.
        couple: as in `LayerSkipDrafter`.
        num_layers: of the model, for checking the skip sets.
        model_fingerprint: of the model, for checking that the store was made for it.
    """

    def __init__(  # noqa: PLR0913 - options by name, from the registry
        self,
        store: AnchorStore | str | Path | None = None,
        neighbours: int = 1,
        threshold: float | None = None,
        depth: int | None = None,
        siblings: int | None = None,
        adaptive: bool = False,
        couple: bool = True,
        num_layers: int | None = None,
        model_fingerprint: str | None = None,
    ) -> None:
        if store is None:
            raise ConfigError(
                "knn-ssd needs an anchor store, and this model's folder has none: build one with "
                "`draftless calibrate anchors`, and give its folder as store"
            )
        check_least("knn-ssd", neighbours=(neighbours, 1))
        self.store = store if isinstance(store, AnchorStore) else AnchorStore.load(store)
        if neighbours > len(self.store.labels):
            raise ConfigError(
                f"neighbours={neighbours} of knn-ssd is above {len(self.store.labels)}, the number "
                "of anchors in the store"
            )
        if model_fingerprint is not None:
            self.store.check_model(model_fingerprint)
        if num_layers is not None:
            self.store.check_layers(num_layers)
        general = override("knn-ssd", self.store.general, threshold, depth, siblings)
        super().__init__(
            general.skip_set,
            general.threshold,
            general.depth,
            general.siblings,
            adaptive,
            couple,
        )
        self._settings = {
            label: override("knn-ssd", setting, threshold, depth, siblings)
            for label, setting in self.store.settings.items()
        }
        self._neighbours = neighbours
        self._chosen: WeakKeyDictionary[Row, tuple[SkipSetting, str]] = WeakKeyDictionary()

    @property
    def skip_sets(self) -> tuple[SkipSet, ...]:
        settings = (self.setting, *self._settings.values())
        return tuple(dict.fromkeys(setting.skip_set for setting in settings))

    def setting_of(self, row: Row) -> tuple[SkipSetting, str]:
        return self._chosen[row]

    def reset(self, row: Row) -> None:
        vector = row.prompt_vector
        label = None if vector is None else route(self.store, vector, self._neighbours)
        setting = self.setting if label is None else self._settings[label]
        self._chosen[row] = setting, f"{SKIP} {label or GENERAL}"
        super().reset(row)


def cosine_distances(
    vectors: torch.Tensor,  # [n, H] float32, unit length
    anchors: torch.Tensor,  # [A, H] float32, unit length
) -> torch.Tensor:  # [n, A] float32
    """1 - cosine of every pair: 0 for the same direction, 2 for the opposite one."""
    return 1.0 - vectors @ anchors.T


def route(
    anchors: Anchors,
    vector: torch.Tensor,  # [H] float32, of any length
    neighbours: int,
) -> str | None:
    """The label of a prompt, or None if it is far from every anchor.

    Args:
        anchors: `A` of them.
        vector: of the prompt (`Row.prompt_vector`).
        neighbours: nearest anchors that vote; of labels with equally many votes the one with the
            nearest anchor wins.
    """
    unit = torch.nn.functional.normalize(vector.cpu(), dim=0)
    distances = cosine_distances(unit[None], anchors.vectors)[0]
    near = distances.sort(stable=True).indices[:neighbours].tolist()
    if not float(distances[near[0]]) <= anchors.max_distance:  # so that NaN is far, too
        return None
    votes: Counter[str] = Counter(anchors.labels[anchor] for anchor in near)
    return votes.most_common(1)[0][0]  # of equals the one that was counted first
