"""Where a drafter with anchors sent the requests: read from the sources of the tokens it drafted."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from draftless.bench.rows import Case, Row, Turn
from draftless.drafters.anchor_store import GENERAL

SOURCE = "skip "
"""Begin of a source that names a route: `skip math`, `skip general`."""


@dataclass(frozen=True, slots=True)
class Routing:
    """Requests of one case by domain and route. A turn of a conversation is a request.

    Attributes:
        case: what routed.
        labels: domains that it can route to, `general` apart.
        counts: by domain and route; the route None is unknown, because no draft was accepted.
    """

    case: Case
    labels: tuple[str, ...]
    counts: dict[str, Counter[str | None]]

    def right(self, domains: Iterable[str]) -> tuple[int, int]:
        """Requests of these domains that went where they belong, and all whose route is known.

        A domain belongs to its own label, or to the general set if it has none.
        """
        num_right = num_known = 0
        for domain in domains:
            counts = self.counts[domain]
            num_right += counts[domain if domain in self.labels else GENERAL]
            num_known += counts.total() - counts[None]
        return num_right, num_known


def label_of(turn: Turn) -> str | None:
    """Where a request was sent: the route of its first accepted draft; None if there is none."""
    named = (s.removeprefix(SOURCE) for s in turn.sources if s.startswith(SOURCE))
    return next(named, None)


def known_labels(sessions: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Domains that each method can route to, as the sessions of a run tell."""
    return {name: own for one in sessions for name, own in one.get("labels", {}).items()}


def routings(rows: Sequence[Row], labels: Mapping[str, Sequence[str]]) -> list[Routing]:
    """For every case that routes.

    Args:
        rows: of one run.
        labels: by method (`known_labels`); a method that is missing here has the labels that it chose.
    """
    counts: dict[Case, dict[str, Counter[str | None]]] = {}
    for row in rows:
        for turn in row.turns:
            domains = counts.setdefault(row.case, {})
            domains.setdefault(row.category, Counter())[label_of(turn)] += 1
    found = []
    for case, domains in counts.items():
        chosen = {label for own in domains.values() for label in own} - {None, GENERAL}
        known = labels.get(case.method, chosen)
        if case.method in labels or any(set(own) - {None} for own in domains.values()):
            ordered = {domain: domains[domain] for domain in sorted(domains)}
            found.append(Routing(case, tuple(sorted(map(str, known))), ordered))
    return found
