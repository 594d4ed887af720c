"""Drafters as tests need them: every registered one, its variants, and SDSAT that was trained."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from functools import cache
from itertools import product
from typing import Any

import torch

from draftless.drafters.anchor_store import AnchorStore
from draftless.drafters.layer_skip import LayerSkipDrafter
from draftless.drafters.native_guesses import is_native
from draftless.drafters.registry import default_options, make_drafter
from draftless.drafters.sdsat import SDSATDrafter
from draftless.engine import native
from draftless.prices import PriceList
from draftless.skip_set import SkipSet, SkipSetting
from draftless.types import Drafter, DraftPasses, DraftTree, Row, StepRecord
from support.models import HIDDEN_SIZE, VOCAB_SIZE, target

ADAPTIVE_ID = VOCAB_SIZE - 1  # losslessness does not depend on which id is fed as a probe

EVERYTHING = SkipSet((0, 1), (0, 1))  # most families have two layers
HALF = SkipSet((1,), (0,))
STOPPED = 0.02  # random models are sure of nothing; this lets some drafts go on and ends others

FREE = PriceList.from_points({(1, 0, 1): 1.0, (2, 0, 1): 1.0})
"""Nodes cost nothing, so that `auto` always drafts."""

STEEP = PriceList.from_points({(1, 0, 1): 1.0, (2, 0, 1): 1.2, (3, 0, 1): 1.4})
"""Nodes are dear: it stops and starts."""

VARIANTS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("recycling", {"keep_table": True}),
    ("recycling", {"couple": False}),
    ("tr-jacobi", {"couple": False}),
    ("sdsat", {"couple": False}),
    ("sdsat", {"retrieval_len": 0}),
    ("sdsat", {"steps": 2}),
    ("sdsat", {"adaptive_ids": [ADAPTIVE_ID, 3, 11], "top_k": 1}),
    ("layer-skip", {"skip_set": EVERYTHING, "siblings": 3}),
    ("layer-skip", {"skip_set": SkipSet(), "threshold": 0.0, "depth": 4, "siblings": 0}),
    ("layer-skip", {"adaptive": True, "couple": False, "depth": 3}),
    ("recycling", {"template": [[0], [1], [0, 2], [0, 2, 0]]}),
    ("tr-jacobi", {"template": [[0], [2], [0, 1], [0, 1, 0]]}),
    ("auto", {"prices": STEEP, "adaptive_ids": []}),
    ("auto", {"prices": STEEP, "max_width": 3, "keep_table": False}),
    ("auto", {"in_python": True}),
    ("knn-ssd", {"neighbours": 3, "siblings": 2, "adaptive": True}),
)
"""Options that change what is proposed; they take turns in the cells of the matrix."""

PLANTED = tuple({"steps": steps, "k": k} for steps, k in product((1, 2), (1, 3, 5, 8)))
"""What SDSAT must be exact with (issue 4)."""


def registered(name: str, **options: Any) -> Drafter:
    """A drafter of the registry, as on a CPU with any of our tiny models."""
    given = default_options(name, target("llama"), ["prices"])
    given.pop("model_fingerprint", None)  # one store serves all tiny models
    if name == "sdsat":
        given["adaptive_ids"] = [ADAPTIVE_ID]
    elif name == "auto":  # measured prices would make other trees in each run
        given |= {"prices": FREE, "adaptive_ids": [ADAPTIVE_ID]}
        in_python = options.pop("in_python", False)
        drafter = make_drafter(name, {**given, **options})
        drafter._is_native = not in_python and has_native_guesses()  # type: ignore[attr-defined]
        return drafter
    elif name == "layer-skip":
        given |= {"skip_set": HALF, "threshold": STOPPED}
    elif name == "knn-ssd":
        given["store"] = anchors_everywhere()
    return make_drafter(name, {**given, **options})


def has_native_guesses() -> bool:
    """Whether `auto` can guess in C++, as beside a compiled target; that is compiled here."""
    return native.load("draws") and is_native()


@cache
def anchors_everywhere(hidden_size: int = HIDDEN_SIZE) -> AnchorStore:
    """Anchors that send prompts of tiny models to skip sets of none, half and all sub-layers."""
    generator = torch.Generator().manual_seed(0)
    vectors = torch.randn(12, hidden_size, generator=generator)
    sets = {"none": SkipSet(), "half": HALF, "all": EVERYTHING}
    return AnchorStore(
        vectors=torch.nn.functional.normalize(vectors),
        labels=tuple(sets) * 4,
        max_distance=0.8,
        settings={name: SkipSetting(skip_set, STOPPED, 4, 1) for name, skip_set in sets.items()},
        general=SkipSetting(SkipSet((0,), (1,)), STOPPED, 3),
        kind="samples",
        model_fingerprint="any tiny model",
    )


class SkipSetPerRow(LayerSkipDrafter):
    """Layer skipping with sets of none, half and all sub-layers, row by row, from `turn` on."""

    def __init__(self, turn: int) -> None:
        super().__init__(SkipSet())
        self._turn = turn

    def skip_set_of(self, row: Row) -> SkipSet:
        return (SkipSet(), HALF, EVERYTHING)[(row.request_id + self._turn) % 3]

    def setting_of(self, row: Row) -> tuple[SkipSetting, str]:
        return SkipSetting(self.skip_set_of(row), STOPPED, 4, 0), "skip"


class PlantedSDSAT:
    """SDSAT on a model that might have been trained: probes predict the true text.

    A random model accepts nothing, so that a wrong slot or a wrong path would go unseen. Here the
    logits of probes are replaced before the drafter sees them. A probe that predicts the `i`-th new
    token puts it first, second (behind a wrong token), or nowhere, by a fixed rhythm of `i`; so
    accepted paths are long, leave the best branch, and end everywhere.

    Args:
        texts: per request id, the plain new ids, going on beyond the stop.
        **options: of the drafter.
    """

    def __init__(self, texts: Sequence[Sequence[int]], **options: Any) -> None:
        # Without retrieval, or a text that repeats itself would hide a wrong slot.
        drafter = registered("sdsat", **{"retrieval_len": 0, **options})
        assert isinstance(drafter, SDSATDrafter)
        self.inner = drafter
        self._texts = texts

    def reset(self, row: Row) -> None:
        self.inner.reset(row)

    def propose(self, rows: Sequence[Row], passes: DraftPasses) -> list[DraftTree]:
        return self.inner.propose(rows, passes)

    def observe(self, records: Sequence[StepRecord]) -> None:
        self.inner.observe([self._planted(record) for record in records])

    def _planted(self, record: StepRecord) -> StepRecord:
        assert record.logits is not None
        tree, row = record.tree, record.row
        logits = record.logits.clone()
        before = len(row.token_ids) - len(record.verdict.token_ids) - row.prompt_len
        for node, depth in enumerate(tree.layout.depths):
            if tree.is_probe and tree.is_probe[node]:
                plant(logits[node], self._texts[row.request_id], before + depth)
        return replace(record, logits=logits)


def plant(logits: torch.Tensor, text: Sequence[int], place: int) -> None:
    """Make `logits [V]` predict the token at `place` of the text, or not, by the place's turn."""
    token_id = text[place] if place < len(text) else 0
    wrong, other = ((token_id + offset) % len(logits) for offset in (1, 2))
    turn = place % 7
    logits.fill_(-60.0)  # against any noise
    first, second = (wrong, token_id) if turn == 2 else (token_id, wrong)
    logits[first], logits[second], logits[other] = 60.0, 58.0, 57.0
    if turn == 5:
        logits[token_id] = -60.0
