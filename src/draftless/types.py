"""The nouns that all parts share. Nothing of the engine is imported here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt
import torch

from draftless.errors import ConfigError
from draftless.layout import TreeLayout, chain_parents, tree_layout

if TYPE_CHECKING:
    from draftless.params import SamplingParams
    from draftless.skip_set import SkipSet

FinishReason = Literal["stop", "length", "time", "criteria"]
"""`stop`: an EOS id or a stop string; `length`: max_new_tokens, or the model's context is full;
`time`: max_time_s; `criteria`: a user's stopping criterion."""

LastKind = Literal["recovered", "bonus", "stopped"]
"""What the last token of a step is: drawn where no child carried it, drawn at a leaf (the whole
path was accepted), or the token that completed a stop."""


_SHOWN = 80  # characters of a text in its `repr`


class Noise(Protocol):
    """Gumbel noise of the target's own draws, by position (`engine.position_noise`)."""

    def __call__(
        self, position: int | Sequence[int], token_ids: torch.Tensor | None
    ) -> torch.Tensor:
        """Noise (float64) of given ids, or of the whole vocabulary (None), at one position or at `m`
        positions (ids `[m, n]`)."""
        ...

    def draw(self, logits: torch.Tensor, row: int, position: int, temperature: float) -> int | None:
        """The largest of `logits [N, V][row] / temperature + noise`, the lowest id on ties; None where
        nothing is faster than the noise of the whole vocabulary."""
        ...

    def few(self, position: int, token_ids: Sequence[int]) -> list[float]:
        """Noise of a handful of ids at one position."""
        ...

    def ranked(
        self,
        token_ids: Sequence[int],
        logits: Sequence[float],
        position: int,
        temperature: float,
        count: int,
    ) -> tuple[list[int], list[float]]:
        """A handful of ids and their `logits / temperature + noise`: the `count` best, the best first."""
        ...

    def likeliest(
        self,
        logits: torch.Tensor,
        rows: Sequence[int],
        positions: Sequence[int],
        temperature: float,
        count: int,
    ) -> tuple[npt.NDArray[np.int64], npt.NDArray[Any]]:
        """Ids and scores `[m, count]` of the largest of `logits [N, V][rows] / temperature + noise`,
        the largest first; a position per row."""
        ...


@dataclass(frozen=True, slots=True)
class DraftTree:
    """What a drafter proposes for one row: `N` nodes, node 0 is the root.

    Attributes:
        token_ids: `N` ids; the root's is the last committed token, not yet in the cache.
        parents: `N` indices; -1 for the root, otherwise an earlier node.
        is_probe: `N` flags, or empty if there is no probe. A probe is fed only to read its logits
            and is never accepted; nothing but probes may hang under a probe.
        scores: `N` estimated path probabilities, or empty; the engine reads none of them.
        sources: `N` short names of what drafted each node (`retrieval`, `denoised`, ...; the root's
            is empty), or empty; for whoever looks on, the engine reads none of them.
    """

    token_ids: tuple[int, ...]
    parents: tuple[int, ...]
    is_probe: tuple[bool, ...] = ()
    scores: tuple[float, ...] = ()
    sources: tuple[str, ...] = ()
    _layout: TreeLayout | None = field(default=None, init=False, repr=False, compare=False)

    def __post_init__(self) -> None:
        num_nodes = len(self.token_ids)
        for name in ("parents", "is_probe", "scores", "sources"):
            length = len(getattr(self, name))
            if length != num_nodes and (name == "parents" or length):
                raise ConfigError(f"a draft tree of {num_nodes} tokens has {length} {name}")

    @classmethod
    def chain(cls, token_ids: Sequence[int], source: str = "") -> DraftTree:
        """The root followed by one chain of drafts, all from one source."""
        sources = ("", *[source] * (len(token_ids) - 1)) if source else ()
        return cls(tuple(token_ids), chain_parents(len(token_ids)), sources=sources)

    @property
    def num_nodes(self) -> int:
        return len(self.token_ids)

    @property
    def layout(self) -> TreeLayout:
        """Depths, children and mask, cached per shape."""
        layout = self._layout
        if layout is None:
            layout = tree_layout(self.parents)
            object.__setattr__(self, "_layout", layout)
        return layout

    @property
    def num_draft_tokens(self) -> int:
        """Nodes that can be accepted: all but the root and the probes."""
        return self.num_nodes - 1 - sum(self.is_probe)

    def child_carrying(self, node: int, token_id: int) -> int | None:
        """The first child of `node` that carries `token_id` and may be accepted."""
        for child in self.layout.children[node]:
            if self.token_ids[child] == token_id and not (self.is_probe and self.is_probe[child]):
                return child
        return None


@dataclass(frozen=True, slots=True)
class Verdict:
    """The outcome of one walk.

    Attributes:
        path: accepted node indices from the root (always 0) on; their keys and values stay.
        token_ids: committed tokens: the accepted drafts and the target's own last token.
        last_kind: what the last of them is.
        finish_reason: why the row ends with the last token, or None if it goes on.
    """

    path: tuple[int, ...]
    token_ids: tuple[int, ...]
    last_kind: LastKind
    finish_reason: FinishReason | None = None

    @property
    def num_accepted_tokens(self) -> int:
        """Committed tokens that were drafts: all but the target's own last one."""
        return len(self.token_ids) - 1


class Row:
    """One request in flight, as a drafter sees it. The engine alone appends to `token_ids`.

    Attributes:
        token_ids: committed ids, prompt included; the last one is the root of the next tree.
        prompt_len: how many of them are the prompt.
        params: the request's sampling parameters, with the seed filled in.
        noise: the Gumbel noise of the target's own draws, or None if decoding is greedy. The token
            at index `i` of `token_ids` is drawn with the noise of position `i`.
        max_depth: deepest draft that can still be used in this step (context and token limit).
        prompt_vector: `[hidden]` float32, the mean of the target's final-norm hidden states over the
            prompt but its last token; None for a prompt of one token.
    """

    __slots__ = (
        "__weakref__",
        "max_depth",
        "noise",
        "params",
        "prompt_len",
        "prompt_vector",
        "request_id",
        "token_ids",
    )

    def __init__(
        self,
        request_id: int,
        prompt_ids: Sequence[int],
        params: SamplingParams,
        noise: Noise | None,
    ) -> None:
        self.request_id = request_id
        self.token_ids = list(prompt_ids)
        self.prompt_len = len(prompt_ids)
        self.params = params
        self.noise = noise
        self.max_depth = 0
        self.prompt_vector: torch.Tensor | None = None


@dataclass(frozen=True, slots=True)
class StepRecord:
    """One step of one row.

    Attributes:
        row: the request (its `token_ids` already hold the committed tokens).
        tree: what was proposed.
        verdict: what became of it.
        logits: `[N, V]` logits of every node, valid only during `observe`; None in streams.
        time_s: seconds of this step by stage, for all rows; in `observe` propose and forward,
            in streams all: propose (draft passes apart), draft
            (those), forward, verify, commit, observe.
    """

    row: Row
    tree: DraftTree
    verdict: Verdict
    logits: torch.Tensor | None = None
    time_s: dict[str, float] = field(default_factory=dict)

    @property
    def sources(self) -> tuple[str, ...]:
        """What drafted each committed token; empty for the target's own (the last one)."""
        accepted = self.verdict.path[1 : len(self.verdict.token_ids)]
        named = [self.tree.sources[node] if self.tree.sources else "draft" for node in accepted]
        return (*named, *[""] * (len(self.verdict.token_ids) - len(named)))


class DraftPasses(Protocol):
    """Passes through part of the target, for the rows of one step. Nothing they write stays."""

    def feed(
        self, token_ids: Mapping[int, Sequence[int]], skip_set: SkipSet
    ) -> dict[int, torch.Tensor]:
        """Feed a chain of tokens to some rows in one pass that leaves out `skip_set`.

        Args:
            token_ids: per index of a row (in what `propose` was given) the tokens that follow what
                was fed to it before in this step; the first one of a step is the root.
            skip_set: the same for all of these rows.

        Returns:
            Per index `[N, V]` logits after each of its tokens.
        """


class Drafter(Protocol):
    """Proposes trees and learns from steps. Never emits tokens, commits the cache or keeps time.

    State belongs to rows (key it weakly by `Row`), so one drafter serves concurrent requests.
    """

    def reset(self, row: Row) -> None:
        """A new request begins; its prompt is in `row.token_ids`."""

    def propose(self, rows: Sequence[Row], passes: DraftPasses) -> list[DraftTree]:
        """One tree per row; no node deeper than `row.max_depth`, node 0 carries the root token.

        `passes` are there for drafters that need draft passes, and valid only now.
        """

    def observe(self, records: Sequence[StepRecord]) -> None:
        """Learn from the steps just made, accepted or not; `logits` are valid only now."""


@dataclass
class Statistics:
    """Counts and times of one request. Seconds are shared by the rows of a batch, not divided.

    `num_forward_passes` are those of the target, prefill included; `num_draft_passes` those that the
    drafter made through part of it.

    `acceptance_length` is committed tokens per step and counts the target's own token of each step
    (vLLM's convention): 1.0 means that drafting brought nothing.
    """

    num_steps: int = 0
    num_forward_passes: int = 0
    num_draft_passes: int = 0
    num_draft_tokens: int = 0
    num_accepted_tokens: int = 0
    num_committed_tokens: int = 0
    acceptance_histogram: list[int] = field(default_factory=list)
    time_s: dict[str, float] = field(default_factory=dict)

    @property
    def acceptance_length(self) -> float:
        return self.num_committed_tokens / self.num_steps if self.num_steps else 0.0

    @property
    def tokens_per_second(self) -> float:
        """Committed tokens per second of decoding; prefill is not counted."""
        decode_s = sum(s for stage, s in self.time_s.items() if stage != "prefill")
        return self.num_committed_tokens / decode_s if decode_s else 0.0

    def add_step(self, record: StepRecord) -> None:
        """Count one step and its seconds."""
        accepted = record.verdict.num_accepted_tokens
        self.num_steps += 1
        self.num_forward_passes += 1
        self.num_draft_tokens += record.tree.num_draft_tokens
        self.num_accepted_tokens += accepted
        self.num_committed_tokens += len(record.verdict.token_ids)
        missing = accepted + 1 - len(self.acceptance_histogram)
        self.acceptance_histogram.extend([0] * missing)
        self.acceptance_histogram[accepted] += 1
        for stage, seconds in record.time_s.items():
            self.add_time(stage, seconds)

    def add_time(self, stage: str, seconds: float) -> None:
        """Add seconds to one stage."""
        self.time_s[stage] = self.time_s.get(stage, 0.0) + seconds

    def as_dict(self) -> dict[str, object]:
        """The `stats` object of `--json`."""
        return {
            "num_steps": self.num_steps,
            "num_forward_passes": self.num_forward_passes,
            "num_draft_passes": self.num_draft_passes,
            "num_draft_tokens": self.num_draft_tokens,
            "num_accepted_tokens": self.num_accepted_tokens,
            "acceptance_length": self.acceptance_length,
            "acceptance_histogram": list(self.acceptance_histogram),
            "tokens_per_second": self.tokens_per_second,
            "time_s": dict(self.time_s),
        }


@dataclass(frozen=True, slots=True, repr=False)
class Output:
    """What one request returns.

    `torch.tensor([[*output.prompt_token_ids, *output.token_ids]])` is what `transformers`' `generate`
    returns for one prompt.

    Attributes:
        token_ids: generated ids; the last one completed the stop (EOS included).
        text: decoded without special tokens and without the stop string (unless `include_stop`).
        finish_reason: why it ended.
        seed: the seed that was used, drawn from the operating system if none was given.
        stats: counts and times.
        prompt_token_ids: ids of the prompt, without padding.
        is_reproducible: whether the ids are the same for every drafter, batch and run. False where half
            precision rounds otherwise in passes of another width.
    """

    token_ids: list[int]
    text: str
    finish_reason: FinishReason
    seed: int
    stats: Statistics
    prompt_token_ids: list[int] = field(default_factory=list)
    is_reproducible: bool = True

    def __repr__(self) -> str:
        text = self.text if len(self.text) <= _SHOWN else f"{self.text[:_SHOWN]}..."
        return (
            f"Output(text={text!r}, {len(self.token_ids)} tokens after "
            f"{len(self.prompt_token_ids)}, finish_reason={self.finish_reason!r}, seed={self.seed}, "
            f"{self.stats.acceptance_length:.2f} tokens per step)"
        )


@dataclass(frozen=True, slots=True)
class Chunk:
    """One step of a stream.

    Attributes:
        text: text that became certain (held back while it may begin a stop string).
        token_ids: tokens committed in this step.
        num_accepted_tokens: how many of them, from the first on, were drafts.
        sources: what drafted each of them (`DraftTree.sources`); empty for the target's own.
        num_draft_tokens: nodes of this step's tree that could be accepted.
        num_nodes: all its nodes: the root, drafts and probes.
        output: the complete result with the last chunk, None before.
    """

    text: str
    token_ids: tuple[int, ...]
    num_accepted_tokens: int
    sources: tuple[str, ...] = ()
    num_draft_tokens: int = 0
    num_nodes: int = 0
    output: Output | None = None
