"""Routing by the nearest anchors, and a batch in which every row is drafted with its own set."""

from __future__ import annotations

import gc
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from draftless.calibration.anchors import prompt_vectors
from draftless.drafters.anchor_store import AnchorStore
from draftless.drafters.knn_router import KNNSSDDrafter, route
from draftless.drafters.layer_skip import LayerSkipDrafter
from draftless.drafters.registry import make_drafter
from draftless.errors import ArtifactError, ConfigError
from draftless.params import SamplingParams
from draftless.skip_set import SkipSet, SkipSetting
from support.anchors import small_store
from support.driving import Job, run
from support.models import target


def compass() -> AnchorStore:
    """Anchors at -8, 10, 40, 50 and 60 degrees of a plane: two of math, then three of sql."""
    angles = torch.deg2rad(torch.tensor([-8.0, 10.0, 40.0, 50.0, 60.0]))
    vectors = torch.stack([angles.cos(), angles.sin()], dim=1)
    return replace(small_store(), vectors=vectors)


def at(degrees: float, length: float = 1.0) -> torch.Tensor:
    angle = torch.deg2rad(torch.tensor(degrees))
    return length * torch.stack([angle.cos(), angle.sin()])


@pytest.mark.parametrize("length", [1e-3, 1.0, 60.0])
@pytest.mark.parametrize(("degrees", "label"), [(-20, "math"), (24, "math"), (26, "sql")])
def test_the_nearest_anchor_decides_whatever_the_length(
    degrees: float, label: str, length: float
) -> None:
    assert route(compass(), at(degrees, length), 1) == label


@pytest.mark.parametrize("degrees", [-50, 103, 180])
def test_a_far_vector_has_no_label(degrees: float) -> None:
    """The limit 0.25 is an angle of 41.4 degrees."""
    assert route(compass(), at(degrees), 1) is None
    assert route(compass(), at(-49), 1) == "math"


def test_a_vector_of_nan_has_no_label() -> None:
    assert route(compass(), torch.full((2,), torch.nan), 1) is None


@pytest.mark.parametrize(
    ("neighbours", "label"),
    [
        (1, "math"),
        (2, "math"),  # one vote each: the nearer one
        (3, "sql"),  # 10, 40, 50 degrees
        (4, "math"),  # two votes each
        (5, "sql"),
    ],
)
def test_neighbours_vote_and_the_nearer_wins_a_tie(neighbours: int, label: str) -> None:
    assert route(compass(), at(24), neighbours) == label


# The rows of the batch: label and prompt. One token has no vector; the last row is like no anchor.
PROMPTS = {"math": [7, 8, 9, 10, 11], "sql": [40, 41, 40, 42] * 3, "one": [5], "far": [20, 3, 55]}
SETTINGS = {
    "math": SkipSetting(SkipSet((0, 1), (0, 1)), 0.0, 3, 2),
    "sql": SkipSetting(SkipSet((1,), ()), 0.0, 5),
    "general": SkipSetting(SkipSet(), 0.0, 4),
}


def routed_store() -> AnchorStore:
    """One anchor on the very vector of `math`'s prompt, one on that of `sql`'s."""
    model = target("llama")
    return AnchorStore(
        vectors=prompt_vectors(model, [PROMPTS["math"], PROMPTS["sql"]]),
        labels=("math", "sql"),
        max_distance=1e-5,
        settings={name: SETTINGS[name] for name in ("math", "sql")},
        general=SETTINGS["general"],
        kind="samples",
        model_fingerprint=model.fingerprint(),
    )


def jobs(**options: Any) -> list[Job]:
    return [
        Job(ids, SamplingParams(max_new_tokens=14, seed=3, **options)) for ids in PROMPTS.values()
    ]


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_every_row_is_drafted_with_its_own_set_and_writes_the_plain_text(
    temperature: float,
) -> None:
    model, wanted = target("llama"), jobs(temperature=temperature)
    plain = run(model, make_drafter("none"), wanted)
    results = run(model, KNNSSDDrafter(routed_store(), num_layers=2), wanted)
    assert [r.token_ids for r in results] == [r.token_ids for r in plain]
    for label, job, result in zip(
        ("math", "sql", "general", "general"), wanted, results, strict=True
    ):
        setting = SETTINGS[label]
        alone = LayerSkipDrafter(
            setting.skip_set, setting.threshold, setting.depth, setting.siblings
        )
        (expected,) = run(model, alone, [job])
        assert [s.tree.token_ids for s in result.steps] == [
            s.tree.token_ids for s in expected.steps
        ]
        assert {source for s in result.steps for source in s.tree.sources[1:]} == {f"skip {label}"}
    assert results[2].request.stats.acceptance_length > 4, "an empty set accepts everything"


def test_options_of_the_drafter_win_over_the_settings() -> None:
    drafter = KNNSSDDrafter(routed_store(), depth=2, siblings=0)
    results = run(target("llama"), drafter, jobs())
    assert {s.tree.num_nodes for r in results for s in r.steps[:3]} == {3}
    drafter = KNNSSDDrafter(
        routed_store(), threshold=1.0, siblings=0
    )  # the first draft is always made
    results = run(target("llama"), drafter, jobs())
    assert {s.tree.num_nodes for r in results for s in r.steps[:3]} == {2}


def test_what_cannot_be_honoured_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="draftless calibrate anchors"):
        make_drafter("knn-ssd")
    with pytest.raises(ArtifactError, match=str(tmp_path)):
        make_drafter("knn-ssd", {"store": tmp_path})
    store = routed_store()
    store.save(tmp_path)
    with pytest.raises(ConfigError, match="neighbours=0 of knn-ssd is below 1"):
        KNNSSDDrafter(store, neighbours=0)
    with pytest.raises(ConfigError, match="neighbours=3 of knn-ssd is above 2"):
        KNNSSDDrafter(str(tmp_path), neighbours=3)
    with pytest.raises(ArtifactError, match="this one is another"):
        KNNSSDDrafter(store, model_fingerprint="another")
    with pytest.raises(ArtifactError, match=r"'math'.*layers \[1\]"):
        KNNSSDDrafter(store, num_layers=1)
    with pytest.raises(ConfigError, match=r"threshold=1\.5 of knn-ssd"):
        KNNSSDDrafter(store, threshold=1.5)
    KNNSSDDrafter(store, neighbours=2, num_layers=2, model_fingerprint=store.model_fingerprint)


def test_the_choice_goes_with_the_row() -> None:
    drafter = KNNSSDDrafter(routed_store())
    run(target("llama"), drafter, jobs())
    gc.collect()
    assert not drafter._chosen
