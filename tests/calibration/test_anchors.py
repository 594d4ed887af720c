"""Clusters, anchors and the limit of distance on vectors that one can see; vectors of a tiny model."""

from __future__ import annotations

import json
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.nn.functional import normalize

from draftless import Draftless
from draftless.calibration.anchors import (
    AnchorOptions,
    Domain,
    anchor_map,
    build_anchors,
    prompt_vectors,
    read_domain,
    regroup,
    routing_facts,
)
from draftless.calibration.clusters import distance_limit, find_domains, pick_anchors
from draftless.calibration.texts import Prompt
from draftless.drafters.registry import make_drafter
from draftless.errors import ArtifactError, ConfigError, InputError
from draftless.params import SamplingParams
from support.driving import Job, run
from support.models import prompt_ids, target

CENTRES = torch.eye(3, 6)


def blob(centre: int, count: int, seed: int = 0, width: float = 0.05) -> torch.Tensor:
    """Unit vectors around one of three axes of a space of six dimensions."""
    generator = torch.Generator().manual_seed(10 * seed + centre)
    return normalize(CENTRES[centre] + width * torch.randn((count, 6), generator=generator))


def domain(centre: int, count: int = 20, num_held_out: int = 4) -> Domain:
    prompts = tuple(f"{centre}-{number}" for number in range(count))
    return Domain(prompts, blob(centre, count), num_held_out)


def sorted_rows(rows: torch.Tensor) -> list[list[float]]:
    return sorted(rows.tolist())


def test_anchors_are_samples_or_centroids() -> None:
    pairs = torch.cat([blob(0, 9), blob(1, 9)])
    samples = pick_anchors(pairs, 2, "samples", seed=0)
    assert {tuple(row) for row in samples.tolist()} <= {tuple(row) for row in pairs.tolist()}
    centroids = pick_anchors(pairs, 2, "centroids", seed=0)
    means = normalize(torch.stack([blob(0, 9).mean(0), blob(1, 9).mean(0)]))
    assert torch.allclose(
        torch.tensor(sorted_rows(centroids)), torch.tensor(sorted_rows(means)), atol=1e-5
    )
    for anchors in (samples, centroids):
        assert torch.allclose(anchors.norm(dim=1), torch.ones(2), atol=1e-5)
    nearest = [
        part[(part @ mean).argmax()]
        for part, mean in zip((blob(0, 9), blob(1, 9)), means, strict=True)
    ]
    assert sorted_rows(samples) == sorted_rows(torch.stack(nearest))


def test_clusters_are_repeatable_and_no_more_than_samples() -> None:
    vectors = blob(0, 30)
    first = pick_anchors(vectors, 4, "samples", seed=3)
    assert torch.equal(first, pick_anchors(vectors, 4, "samples", seed=3))
    few = torch.cat([vectors[:3], vectors[:3]])
    assert sorted_rows(pick_anchors(few, 10, "samples", seed=0)) == sorted_rows(vectors[:3])


def test_domains_are_found() -> None:
    sizes = (12, 30, 20)
    vectors = torch.cat([blob(centre, size) for centre, size in enumerate(sizes)])
    labels, silhouettes = find_domains(vectors, None, seed=0)
    assert (
        set(silhouettes) == set(range(2, 13)) and max(silhouettes, key=silhouettes.__getitem__) == 3
    )
    assert labels == ("cluster-3",) * 12 + ("cluster-1",) * 30 + ("cluster-2",) * 20
    labels, silhouettes = find_domains(vectors, 2, seed=0)
    assert set(silhouettes) == {2} and set(labels) == {"cluster-1", "cluster-2"}
    assert set(find_domains(vectors, 1, seed=0)[0]) == {"cluster-1"}
    with pytest.raises(ConfigError, match="62 distinct prompts cannot be parted into 62"):
        find_domains(vectors, 62, seed=0)
    with pytest.raises(ConfigError, match="2 distinct prompts cannot be parted into 2"):
        find_domains(vectors[:2], None, seed=0)


def test_the_limit_keeps_its_share() -> None:
    """Vectors 0, 1, ... 9 tenths of a degree-like step away: the limit is one of their distances."""
    angles = torch.linspace(0.0, 0.9, 10)
    held_out = torch.stack([angles.cos(), angles.sin()], dim=1)
    anchors = torch.tensor([[1.0, 0.0], [0.0, -1.0]])
    for keep, kept in ((0.1, 1), (0.5, 5), (0.85, 9), (0.95, 10), (1.0, 10)):
        limit = distance_limit(held_out, anchors, keep)
        assert sum(1.0 - angle.cos() <= limit for angle in angles) == kept
    assert distance_limit(-anchors[:1], anchors[:1], 1.0) == 2.0


def test_held_out_and_unseen_prompts_are_counted() -> None:
    domains = {"math": domain(0), "sql": domain(1)}
    anchors = build_anchors(domains, AnchorOptions(per_domain=3, keep=1.0))
    assert anchors.labels == ("math",) * 3 + ("sql",) * 3
    facts = routing_facts(anchors, domains, {"prose": domain(2)})
    assert facts["accuracy"] == 1.0 and facts["general_share"] == 0.0 and facts["num_held_out"] == 8
    assert facts["routes"] == {"math": {"math": 4}, "sql": {"sql": 4}}
    assert facts["unseen"] == {"prose": {"general_share": 1.0, "routes": {"general": 20}}}
    swapped = {"math": domains["sql"], "sql": domains["math"]}
    assert routing_facts(anchors, swapped, {})["accuracy"] == 0.0
    half = build_anchors(domains, AnchorOptions(per_domain=3, keep=0.5))
    facts = routing_facts(half, domains, {})
    assert facts["accuracy"] == facts["general_share"] == 0.5


def test_anchors_never_see_what_is_held_out() -> None:
    vectors = torch.cat([blob(0, 6), blob(2, 2)])
    domains = {"math": Domain(tuple("abcdefgh"), vectors, 2), "sql": domain(1)}
    anchors = build_anchors(domains, AnchorOptions(per_domain=8))
    assert float((anchors.vectors @ CENTRES[2]).max()) < 0.5


def test_found_domains_keep_what_is_held_out() -> None:
    """Two files in which two domains are mixed; the last prompts of each file are held out."""
    parts = {"a": (blob(0, 6), blob(1, 4), blob(0, 2, 1)), "b": (blob(0, 4, 2), blob(1, 3, 2))}
    given = {
        "a": Domain(tuple(f"a{n}" for n in range(12)), torch.cat(parts["a"]), 2),
        "b": Domain(tuple(f"b{n}" for n in range(7)), torch.cat(parts["b"]), 3),
    }
    found, silhouettes = regroup(given, AnchorOptions(num_domains="auto"))
    assert len(silhouettes) == 11
    first, second = found["cluster-1"], found["cluster-2"]
    assert " ".join(first.prompts) == "a0 a1 a2 a3 a4 a5 b0 b1 b2 b3 a10 a11"
    assert " ".join(second.prompts) == "a6 a7 a8 a9 b4 b5 b6"
    assert torch.equal(first.held_out, blob(0, 2, 1))
    assert torch.equal(second.held_out, blob(1, 3, 2))
    only_held = {"a": given["a"], "b": Domain(("b",), blob(2, 1), 1)}
    found, _ = regroup(only_held, AnchorOptions(num_domains=3))
    assert found["cluster-3"].num_held_out == 0, "its one prompt is needed as a sample"
    nothing = {"all": Domain(tuple(range(4)), blob(0, 4), 0)}
    with pytest.raises(InputError, match="held out"):
        build_anchors(nothing, AnchorOptions())


def test_the_map_shows_everything_on_one_plane() -> None:
    domains = {"math": domain(0, 90), "sql": domain(1)}
    anchors = build_anchors(domains, AnchorOptions(per_domain=2))
    drawn = anchor_map(anchors, domains, {"prose": domain(2)})
    counts = {kind: Counter(one["label"] for one in drawn[kind]) for kind in ("samples", "anchors")}
    assert counts["samples"] == {"math": 60, "sql": 16, "prose (unseen)": 20}
    assert counts["anchors"] == {"math": 2, "sql": 2}
    points = drawn["samples"] + drawn["anchors"]
    side = {name: {one["x"] > 0 for one in points if one["label"] == name} for name in domains}
    assert side["math"] != side["sql"] and all(len(signs) == 1 for signs in side.values())
    assert len(drawn["explained"]) == 2 and drawn["explained"][0] > 0.8
    json.dumps(drawn, allow_nan=False)


def test_vectors_are_those_of_requests() -> None:
    """The same prompts through the loop, in one batch, give the same directions."""
    model, prompts = target("llama"), [prompt_ids(n) for n in (2, 9, 300)]
    jobs = [Job(ids, SamplingParams(max_new_tokens=1)) for ids in prompts]
    rows = [result.request.row for result in run(model, make_drafter("none"), jobs)]
    vectors = prompt_vectors(model, prompts)
    assert vectors.dtype == torch.float32
    for row, vector in zip(rows, vectors, strict=True):
        assert row.prompt_vector is not None
        assert torch.allclose(normalize(row.prompt_vector.float(), dim=0), vector, atol=1e-6)


@pytest.fixture(scope="module")
def model() -> Draftless:
    drafter = make_drafter("none")
    return Draftless(target("llama", "fp32"), None, drafter)


def prompts(count: int, seed: int = 0) -> list[Prompt]:
    return [Prompt("math", prompt_ids(3 + number, seed)) for number in range(count)]


def test_prompts_are_chosen_and_their_vectors_kept(model: Draftless, tmp_path: Path) -> None:
    file, done = tmp_path / "new" / "math.safetensors", []
    useless = [Prompt("math", [5]), Prompt("math", prompt_ids(513))]
    options = AnchorOptions(num_samples=8)

    def read(given: list[Prompt], **changed: int) -> Domain:
        done.clear()
        chosen = replace(options, **changed)
        return read_domain(model, given, chosen, file, lambda: done.append(1))

    first = read([*useless, *prompts(20)])
    assert len(first.prompts) == len(first.vectors) == len(done) == 10
    assert len(first.held_out) == 2 and len(first.samples) == 8
    assert torch.equal(first.vectors, prompt_vectors(model.target, first.prompts))
    again = read([*useless, *prompts(20)])
    assert not done and torch.equal(again.vectors, first.vectors)
    assert again.prompts == first.prompts
    assert read([*useless, *prompts(20)], seed=1).prompts != first.prompts
    assert len(done) == 10, "other prompts have other vectors"
    assert len(read(prompts(4)).held_out) == 1
    with pytest.raises(InputError, match="domain 'math' has 1 prompts"):
        read([*useless, *prompts(1)])


def test_a_damaged_file_of_vectors_is_named(model: Draftless, tmp_path: Path) -> None:
    file = tmp_path / "math.safetensors"
    read_domain(model, prompts(4), AnchorOptions(), file)
    file.write_bytes(file.read_bytes()[:-7])
    with pytest.raises(ArtifactError, match=r"math.safetensors is damaged"):
        read_domain(model, prompts(4), AnchorOptions(), file)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_samples": 0}, "num_samples=0 is below 1"),
        ({"per_domain": 0}, "per_domain=0 is below 1"),
        ({"num_domains": 0}, "clusters=0 is below 1"),
        ({"kind": "medoids"}, "use samples or centroids"),
        ({"keep": 0.0}, "keep=0.0 is not"),
        ({"keep": 1.1}, "keep=1.1 is not"),
    ],
)
def test_options_out_of_bounds(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        AnchorOptions(**options)
