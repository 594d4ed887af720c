"""Which sub-layers a draft pass leaves out, and how a request is drafted with them.

Source: Self-SD (arXiv 2309.08168), section 3.2: attention and MLP sub-layers are chosen singly.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from draftless.errors import ConfigError


@dataclass(frozen=True, slots=True)
class SkipSet:
    """Sub-layers by layer index, ascending. Empty: the draft pass is the target itself."""

    attention: tuple[int, ...] = ()
    mlp: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        for kind in ("attention", "mlp"):
            indices = getattr(self, kind)
            if not all(type(index) is int and index >= 0 for index in indices):
                raise ConfigError(f"skip set: {kind} {indices!r} is no list of layer indices")
            object.__setattr__(self, kind, tuple(sorted(set(indices))))

    @classmethod
    def from_dict(cls, data: Any) -> SkipSet:
        """Read `{"attention": [...], "mlp": [...]}`; a kind may be missing.

        Raises:
            ConfigError: it has another form.
        """
        if isinstance(data, SkipSet):
            return data
        is_known = isinstance(data, Mapping) and set(data) <= {"attention", "mlp"}
        if not is_known or not all(isinstance(v, list | tuple) for v in data.values()):
            raise ConfigError(
                f"skip set {data!r} is not of the form {{'attention': [1, 2], 'mlp': [2]}}"
            )
        return cls(**{kind: tuple(indices) for kind, indices in data.items()})

    def to_dict(self) -> dict[str, list[int]]:
        return {"attention": list(self.attention), "mlp": list(self.mlp)}

    def check(self, num_layers: int) -> None:
        """Refuse indices beyond the model.

        Raises:
            ConfigError: one is not below `num_layers`.
        """
        beyond = sorted({i for i in (*self.attention, *self.mlp) if i >= num_layers})
        if beyond:
            raise ConfigError(
                f"the skip set names layers {beyond}, and the model has {num_layers} "
                f"(0 to {num_layers - 1}); it was found for another model"
            )

    @property
    def num_skipped(self) -> int:
        """How many sub-layers are left out."""
        return len(self.attention) + len(self.mlp)

    def __str__(self) -> str:
        return f"attention {_ranges(self.attention)}, MLP {_ranges(self.mlp)}"


@dataclass(frozen=True, slots=True)
class SkipSetting:
    """How a request is drafted by skipping layers.

    Attributes:
        skip_set: what the draft passes leave out.
        threshold: drafting stops behind a token that the draft gives less than this probability.
        depth: longest draft.
        siblings: most further candidates beside the chain.
    """

    skip_set: SkipSet
    threshold: float
    depth: int
    siblings: int = 0

    @classmethod
    def from_dict(cls, data: Any) -> SkipSetting:
        """Read what `to_dict` wrote.

        Raises:
            ConfigError: it has another form.
        """
        fields = {"skip_set", "threshold", "depth", "siblings"}
        if not isinstance(data, Mapping) or set(data) != fields:
            raise ConfigError(f"skip setting {data!r} does not have the keys {sorted(fields)}")
        return cls(
            SkipSet.from_dict(data["skip_set"]),
            float(data["threshold"]),
            int(data["depth"]),
            int(data["siblings"]),
        )

    def to_dict(self) -> dict[str, Any]:
        return {
            "skip_set": self.skip_set.to_dict(),
            "threshold": self.threshold,
            "depth": self.depth,
            "siblings": self.siblings,
        }


def _ranges(indices: Sequence[int]) -> str:
    """`1-4, 7` for 1, 2, 3, 4, 7."""
    parts: list[list[int]] = []
    for index in indices:
        if parts and index == parts[-1][-1] + 1:
            parts[-1].append(index)
        else:
            parts.append([index])
    return ", ".join(str(p[0]) if len(p) == 1 else f"{p[0]}-{p[-1]}" for p in parts) or "none"
