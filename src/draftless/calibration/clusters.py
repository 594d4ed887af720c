"""Anchors, domains and the limit of distance, from prompt vectors: K-means and cosine.

Source: KNN-SSD (Findings of EACL 2026), section 3.1. Vectors are of unit length throughout, so that
Euclidean K-means sees cosine distances (the released code clusters raw vectors and compares cosines).
"""

from __future__ import annotations

import math
from typing import Any

import torch
from torch.nn.functional import normalize

from draftless.drafters.anchor_store import AnchorKind
from draftless.drafters.knn_router import cosine_distances
from draftless.errors import ConfigError

AUTO_CLUSTERS = range(2, 13)
"""Numbers of domains that `find_domains` tries."""


def pick_anchors(
    vectors: torch.Tensor,  # [n, H] float32, unit length
    num_clusters: int,
    kind: AnchorKind,
    seed: int,
) -> torch.Tensor:  # [c, H] float32, unit length
    """The anchors of one domain; fewer than `num_clusters` where it has fewer distinct vectors.

    Args:
        vectors: of the domain's samples.
        num_clusters: of K-means.
        kind: `samples`: the member of each cluster nearest to its centroid; `centroids`: these.
        seed: of K-means.
    """
    found = _k_means(vectors, min(num_clusters, _num_distinct(vectors)), seed)
    centroids = normalize(torch.from_numpy(found.cluster_centers_).float())
    if kind == "centroids":
        return centroids
    distances = cosine_distances(vectors, centroids)
    members = torch.from_numpy(found.labels_).long()[:, None] == torch.arange(len(centroids))
    return vectors[distances.masked_fill(~members, math.inf).argmin(0)]


def find_domains(
    vectors: torch.Tensor,  # [n, H] float32, unit length
    num_domains: int | None,
    seed: int,
) -> tuple[tuple[str, ...], dict[int, float]]:
    """Domains of samples without labels: `cluster-1`, `cluster-2` ..., the largest first.

    Args:
        vectors: of all samples.
        num_domains: how many, or None: of `AUTO_CLUSTERS`, the number with the best silhouette.
        seed: of K-means.

    Returns:
        `n` labels, and the silhouette (-1 to 1, cosine) of every number that was tried.

    Raises:
        ConfigError: there are not more distinct samples than domains.
    """
    num_distinct = _num_distinct(vectors)
    tried = [k for k in ([num_domains] if num_domains else AUTO_CLUSTERS) if k < num_distinct]
    if not tried:
        raise ConfigError(
            f"{num_distinct} distinct prompts cannot be parted into {num_domains or 2} domains; "
            "give more prompts, or fewer --clusters"
        )
    found = {k: _k_means(vectors, k, seed).labels_ for k in tried}
    scores = {k: _silhouette(vectors, labels) if k > 1 else 0.0 for k, labels in found.items()}
    best = torch.from_numpy(found[max(scores, key=lambda k: scores[k])]).long()
    order = best.bincount().argsort(descending=True, stable=True).tolist()
    return tuple(f"cluster-{order.index(label) + 1}" for label in best.tolist()), scores


def distance_limit(
    vectors: torch.Tensor,  # [n, H] float32, unit length
    anchors: torch.Tensor,  # [A, H] float32, unit length
    keep: float,
) -> float:
    """The smallest distance to the nearest anchor that keeps this share of held-out prompts.

    Args:
        vectors: of held-out prompts of the store's domains.
        anchors: of the store.
        keep: share, above 0 and at most 1.
    """
    nearest = cosine_distances(vectors, anchors).amin(1).sort().values
    # A hair above the last one that is kept: the same vector must stay inside when it is routed.
    return min(2.0, float(nearest[math.ceil(keep * len(nearest)) - 1]) + 1e-6)


def plane(
    vectors: torch.Tensor,  # [n, H] float32, unit length
    others: torch.Tensor,  # [m, H] float32, unit length
) -> tuple[torch.Tensor, list[float]]:
    """Coordinates `[m, 2]` of `others` on the two principal axes of `vectors`.

    Returns:
        The coordinates, and the share of the variance that each axis shows.
    """
    from sklearn.decomposition import PCA

    axes = PCA(n_components=2, svd_solver="full").fit(vectors.numpy())
    places = torch.from_numpy(axes.transform(others.numpy()))
    return places, [float(share) for share in axes.explained_variance_ratio_]


def _num_distinct(vectors: torch.Tensor) -> int:
    return len(torch.unique(vectors, dim=0))


def _silhouette(vectors: torch.Tensor, labels: Any) -> float:
    from sklearn.metrics import silhouette_score

    return float(silhouette_score(vectors.numpy(), labels, metric="cosine"))


def _k_means(vectors: torch.Tensor, num_clusters: int, seed: int) -> Any:
    try:
        from sklearn.cluster import KMeans
    except ImportError as error:
        raise ConfigError(
            "clustering needs more packages: pip install 'draftless[calibrate]'"
        ) from error
    return KMeans(num_clusters, n_init=10, random_state=seed).fit(vectors.numpy())
