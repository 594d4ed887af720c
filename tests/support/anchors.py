"""A small anchor store."""

from __future__ import annotations

import torch

from draftless.drafters.anchor_store import AnchorStore
from draftless.skip_set import SkipSet, SkipSetting


def small_store(seed: int = 0) -> AnchorStore:
    """Five anchors of two labels in four dimensions."""
    vectors = torch.randn((5, 4), generator=torch.Generator().manual_seed(seed))
    return AnchorStore(
        vectors=torch.nn.functional.normalize(vectors),
        labels=("math", "math", "sql", "sql", "sql"),
        settings={
            "math": SkipSetting(SkipSet((1, 2), (2,)), 0.6, 5),
            "sql": SkipSetting(SkipSet((4,), (1, 3)), 0.4, 8, 3),
        },
        general=SkipSetting(SkipSet((1,), (1,)), 0.5, 4),
        max_distance=0.25,
        kind="samples",
        model_fingerprint="tiny",
        facts={"num_samples": 9},
        provenance={"commit": "abc"},
    )
