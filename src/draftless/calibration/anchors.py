"""Where prompts of each domain lie: vectors, anchors, the limit of distance, and how well they route.

Source: KNN-SSD (Findings of EACL 2026), section 3.1. A vector comes from `TargetModel.prefill`, the very
code that requests go through, so anchors and requests are the same thing.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save
from torch.nn.functional import normalize

from draftless.calibration.clusters import distance_limit, find_domains, pick_anchors, plane
from draftless.calibration.texts import Prompt
from draftless.drafters.anchor_store import GENERAL, AnchorKind, Anchors
from draftless.drafters.knn_router import route
from draftless.engine.target import TargetModel
from draftless.errors import ArtifactError, ConfigError, InputError
from draftless.jsonl import write_file
from draftless.model import Draftless
from draftless.noise import hash_ids

MAP_NAME = "map.json"
_SHOWN = 60  # samples of a domain in the map


@dataclass(frozen=True)
class AnchorOptions:
    """How anchors are made.

    Attributes:
        num_samples: most prompts of a domain; a quarter as many more are held out.
        per_domain: anchors of a domain, one for each of its clusters.
        kind: of anchors.
        num_domains: None takes the domains of the data; `auto` or a number finds them.
        keep: share of held-out prompts that the limit of distance keeps.
        seed: of the choice and of K-means.

    Raises:
        ConfigError: an option is out of bounds.
    """

    num_samples: int = 200
    per_domain: int = 10
    kind: AnchorKind = "samples"
    num_domains: int | Literal["auto"] | None = None
    keep: float = 0.95
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("num_samples", "per_domain"):
            if getattr(self, name) < 1:
                raise ConfigError(f"{name}={getattr(self, name)} is below 1")
        if isinstance(self.num_domains, int) and self.num_domains < 1:
            raise ConfigError(f"clusters={self.num_domains} is below 1")
        if self.kind not in get_args(AnchorKind):
            raise ConfigError(f"anchors {self.kind!r} are unknown; use samples or centroids")
        if not 0.0 < self.keep <= 1.0:
            raise ConfigError(f"keep={self.keep} is not above 0 and at most 1")


@dataclass(frozen=True, eq=False)
class Domain:
    """Prompts of one domain, or of one split of the data before domains are found.

    Attributes:
        prompts: texts or messages.
        vectors: `[n, H]` float32 of unit length, one per prompt.
        num_held_out: the last so many are held out.
    """

    prompts: tuple[Any, ...]
    vectors: torch.Tensor
    num_held_out: int

    @property
    def samples(self) -> torch.Tensor:
        return self.vectors[: len(self.vectors) - self.num_held_out]

    @property
    def held_out(self) -> torch.Tensor:
        return self.vectors[len(self.vectors) - self.num_held_out :]


def read_domain(
    model: Draftless,
    prompts: Sequence[Prompt],
    options: AnchorOptions,
    file: Path,
    on_prompt: Callable[[], None] = lambda: None,
) -> Domain:
    """A seeded choice of a domain's prompts and their vectors, which are kept in a file.

    Args:
        model: its drafter does not matter.
        prompts: of one domain; those of one token or beyond the context are passed over.
        options: how many.
        file: vectors that are there already are read, if they are those of the same model and
            prompts; new ones are written in one piece.
        on_prompt: called for every vector that was computed.

    Raises:
        InputError: fewer than two prompts can be used.
        ArtifactError: the file is damaged or cannot be written.
    """
    order = random.Random(options.seed).sample(range(len(prompts)), len(prompts))
    chosen: list[tuple[Any, list[int]]] = []
    limit = model.target.max_positions
    for index in order:
        ids = model.encode(prompts[index].content)
        if len(ids) >= 2 and (limit is None or len(ids) <= limit):
            chosen.append((prompts[index].content, ids))
        if len(chosen) == options.num_samples + max(1, options.num_samples // 4):
            break
    if len(chosen) < 2:
        name = prompts[0].domain if prompts else "?"
        raise InputError(
            f"domain {name!r} has {len(chosen)} prompts of at least two tokens that fit the "
            "context; an anchor needs one, and one must be held out"
        )
    vectors = _read_or_make(file, model.target, [ids for _, ids in chosen], on_prompt)
    return Domain(tuple(content for content, _ in chosen), vectors, max(1, len(chosen) // 5))


def prompt_vectors(
    target: TargetModel,
    prompts: Sequence[Sequence[int]],
    on_prompt: Callable[[], None] = lambda: None,
) -> torch.Tensor:  # [n, H] float32, unit length
    """The vectors of prompts of at least two tokens."""
    cache = target.make_cache(1, max(map(len, prompts)))
    vectors = []
    with torch.inference_mode():
        for ids in prompts:
            cache.truncate(0, 0)
            vector = target.prefill(cache, 0, ids[:-1]).vector
            assert vector is not None
            vectors.append(vector.cpu())
            on_prompt()
    return normalize(torch.stack(vectors).clone())


def _read_or_make(
    file: Path,
    target: TargetModel,
    prompts: Sequence[Sequence[int]],
    on_prompt: Callable[[], None],
) -> torch.Tensor:  # [n, H] float32, unit length
    state = 0
    for ids in prompts:
        state = hash_ids(state, len(ids), ids=ids)
    facts = {"model_fingerprint": target.fingerprint(), "prompts": f"{state:016x}"}
    try:
        if file.exists():
            with safe_open(file, "pt") as tensors:
                if tensors.metadata() == facts:
                    found: torch.Tensor = tensors.get_tensor("vectors")
                    return found
        vectors = prompt_vectors(target, prompts, on_prompt)
        file.parent.mkdir(parents=True, exist_ok=True)
        write_file(file, save({"vectors": vectors}, facts))
    except SafetensorError as error:
        raise ArtifactError(f"{file} is damaged: {error}; remove it and go on") from error
    except OSError as error:
        raise ArtifactError(f"cannot read or write {file}: {error}") from error
    return vectors


def regroup(
    domains: Mapping[str, Domain], options: AnchorOptions
) -> tuple[dict[str, Domain], dict[int, float]]:
    """The same prompts by domains that are found, whatever their labels were.

    Returns:
        Found domains, and the silhouette of every number of domains that was tried.

    Raises:
        ConfigError: there are not more distinct prompts than domains.
    """
    wanted = None if options.num_domains == "auto" else options.num_domains
    vectors = torch.cat([domain.vectors for domain in domains.values()])
    is_held = [
        place >= len(domain.samples)
        for domain in domains.values()
        for place in range(len(domain.vectors))
    ]
    prompts = [content for domain in domains.values() for content in domain.prompts]
    labels, silhouettes = find_domains(vectors, wanted, options.seed)
    found = {}
    for label in sorted(set(labels), key=lambda name: int(name.rpartition("-")[2])):
        members = [i for i, name in enumerate(labels) if name == label]
        members.sort(key=lambda i: is_held[i])
        num_held_out = sum(is_held[i] for i in members)
        if num_held_out == len(members):  # not one sample: the first held-out prompt becomes it
            num_held_out -= 1
        found[label] = Domain(tuple(prompts[i] for i in members), vectors[members], num_held_out)
    return found, silhouettes


def build_anchors(domains: Mapping[str, Domain], options: AnchorOptions) -> Anchors:
    """Anchors of all domains, and the limit of distance from their held-out prompts.

    Raises:
        InputError: no domain has a held-out prompt.
    """
    each = {
        label: pick_anchors(domain.samples, options.per_domain, options.kind, options.seed)
        for label, domain in domains.items()
    }
    vectors = torch.cat(list(each.values()))
    labels = tuple(label for label, anchors in each.items() for _ in range(len(anchors)))
    held_out = torch.cat([domain.held_out for domain in domains.values()])
    if not len(held_out):
        raise InputError("no prompt is left to be held out; give more prompts, or fewer --clusters")
    return Anchors(vectors, labels, distance_limit(held_out, vectors, options.keep))


def routing_facts(
    anchors: Anchors, domains: Mapping[str, Domain], unseen: Mapping[str, Domain]
) -> dict[str, Any]:
    """How held-out prompts of the store's domains and prompts of unseen ones are routed.

    Returns:
        `accuracy`: share of held-out prompts with the right label (a far one is not right);
        `general_share`: of them, those that are far; `routes`: per domain the number of prompts
        by label; `unseen`: the same for domains without anchors, and their `general_share`.
    """
    routes = {name: _routes(anchors, domain.held_out) for name, domain in domains.items()}
    total = sum(sum(counts.values()) for counts in routes.values())
    unseen_routes = {name: _routes(anchors, domain.vectors) for name, domain in unseen.items()}
    return {
        "accuracy": sum(counts.get(name, 0) for name, counts in routes.items()) / total,
        "general_share": sum(counts.get(GENERAL, 0) for counts in routes.values()) / total,
        "num_held_out": total,
        "routes": routes,
        "unseen": {
            name: {"general_share": counts.get(GENERAL, 0) / sum(counts.values()), "routes": counts}
            for name, counts in unseen_routes.items()
        },
    }


def _routes(anchors: Anchors, vectors: torch.Tensor) -> dict[str, int]:
    return dict(Counter(route(anchors, vector, 1) or GENERAL for vector in vectors).most_common())


def anchor_map(
    anchors: Anchors, domains: Mapping[str, Domain], unseen: Mapping[str, Domain]
) -> dict[str, Any]:
    """Everything on the two principal axes of the samples, for `draftless bench report` to draw.

    Returns:
        `samples` and `anchors`: lists of `{"label", "x", "y"}`; a few samples of each domain, and of
        unseen ones, which are labelled so. `explained`: the axes' shares of the variance.
    """
    shown = {name: domain.samples[:_SHOWN] for name, domain in domains.items()}
    shown |= {f"{name} (unseen)": domain.vectors[:_SHOWN] for name, domain in unseen.items()}
    labels = [name for name, vectors in shown.items() for _ in vectors]
    samples = torch.cat([domain.samples for domain in domains.values()])
    places, explained = plane(samples, torch.cat([*shown.values(), anchors.vectors]))
    points = [
        {"label": name, "x": round(x, 5), "y": round(y, 5)}
        for name, (x, y) in zip([*labels, *anchors.labels], places.tolist(), strict=True)
    ]
    return {
        "samples": points[: len(labels)],
        "anchors": points[len(labels) :],
        "explained": explained,
    }
