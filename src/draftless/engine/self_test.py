"""What is tried on a model when it is loaded: its structure, in float32, against its own stock attention.

Half-precision logits of pretrained models differ by several standard deviations between two right implementations
(a few channels are a thousand times larger than the rest), so a wrong mask cannot be told from rounding there. The
structure is therefore tested in float32, on a few layers with their own weights: a path through a tree must give what
an uncached stock pass over the path gives.

Where attention gives one token nearly all weight, another visible token changes nothing. The same is therefore tried
once more with all scores nearly zero, where every visible token has the same weight.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from draftless.engine.cache import CacheShape, KVCache
from draftless.engine.masks import MaskBuilder, layer_windows
from draftless.engine.precision import InFloat32
from draftless.engine.skip_view import SkipViews, with_module
from draftless.engine.tree_pass import TreePass
from draftless.errors import CapabilityError
from draftless.layout import chain_parents, tree_layout
from draftless.skip_set import SkipSet
from draftless.sublayers import decoder_layers

if TYPE_CHECKING:
    from draftless.engine.target import TargetModel

_NEAR = 0.02  # standard deviations of the logits; float32 stays below 0.001, a wrong mask goes beyond 0.3
_NEAR_IN_TREES = (
    2e-4  # the same in trees, where one visible token at one node may change as little as 0.001,
)
_TIMES_NOISE = 8  # or so many times the rounding of the passes without a tree
_NUM_TOKENS = 24
_CACHED = 5  # tokens of the path that are cached before the tree
_WINDOW = 7  # what a sliding window is set to meanwhile
_NO_WINDOW = 1 << 20
_KEPT_PER_TYPE = 2  # layers
_FLAT = 1e-6  # times the scores; zero times minus infinity would be no number
_HEAD_ROWS = 512  # of the beginning, the middle and the end of a vocabulary

States = Callable[[TreePass], torch.Tensor]
"""What the head reads, `[M, hidden]`, of the tokens of a pass."""


@dataclass(frozen=True)
class _Trial:
    """What the stock model gives for the test's tokens.

    Attributes:
        windows: per type of layer.
        wanted: `[M, V]` float32.
        is_flat: all scores of attention are zero.
    """

    windows: dict[str, int | None]
    wanted: torch.Tensor
    is_flat: bool = False


class SelfTest:
    """Tests one model. Make it before the model's attention is switched: it keeps what the stock one gives.

    Args:
        model: a `transformers` causal model.

    Attributes:
        windows: per type of layer its sliding window, or None; a window that the configuration names and
            the model's code ignores is none.
        skip_set: the layers that are left out of the test; None if all are tried.
        view: the model without these, and with a part of its vocabulary.
        head_rows: this part; None if it is the whole.
        stock_attention: the name of the attention that the model was tested with.
    """

    def __init__(self, model: Any) -> None:
        self._name = type(model).__name__
        self.stock_attention: str = model.config._attn_implementation
        self._config = model.config.get_text_config()
        self._is_half = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
        head = model.get_output_embeddings()
        self._vocab_size: int = head.weight.shape[0]
        self._tokens = tried_tokens(self._vocab_size, _NUM_TOKENS)
        self.skip_set, view = _few_layers(model, self._config)
        self.head_rows = _rows_of(view, head)
        self._head, self.view = _with_part_of_head(view, head, self.head_rows)
        self.windows = layer_windows(self._config)
        self._trials = self._choose_trials()

    def check(
        self,
        make_states: Callable[[], States],
        shape: CacheShape,
        what: str,
        groups: int = 1,
        *,
        tells_way_out: bool = True,
    ) -> None:
        """Refuse an implementation that gives something else than the stock model.

        Args:
            make_states: makes the implementation, in float32; called once per way of scoring.
            shape: of the model's cache.
            what: its name in errors.
            groups: query heads that share a KV head, where it takes packed masks.
            tells_way_out: whether errors tell what to do.

        Raises:
            CapabilityError: it does.
        """
        dtype = shape.dtype if not self._is_half else torch.float32
        shape = replace(shape, dtype=dtype)
        states: States | None = None
        for trial in self._trials:
            masks = MaskBuilder(trial.windows, groups, dtype, shape.device)
            with _flat(self.view) if trial.is_flat else nullcontext():
                if states is None or trial.is_flat:
                    states = None  # memory of the one before
                    states = make_states()
                label, difference, near = self._worst(states, shape, masks, trial.wanted)
            if not difference <= near:
                raise CapabilityError(
                    f"{self._name} gives other logits {label} with {what} than with its own "
                    f"{self.stock_attention!r} attention (they differ by {difference:.3g} in float32, at most "
                    f"{near:.2g} is rounding)" + (f"; {_WAY_OUT[label]}" if tells_way_out else "")
                )

    def _worst(
        self, states: States, shape: CacheShape, masks: MaskBuilder, wanted: torch.Tensor
    ) -> tuple[str, float, float]:
        """The first pass that is too far from what is wanted, or the last one: its name, how far, and the limit."""
        scale, noise = float(wanted.std()), 0.0
        for label, found, right in self._passes(states, shape, masks, wanted):
            near = _NEAR * scale
            if label == _OF_A_TREE:
                near = min(near, max(_NEAR_IN_TREES * scale, _TIMES_NOISE * noise))
            difference = float((self._logits(found) - right).abs().max())
            noise = max(noise, difference)
            if not difference <= near:
                break
        return label, difference, near

    def eager(self, target: TargetModel) -> States:
        """The model's own code with the attention that is set on it, in float32."""

        def states(tree_pass: TreePass) -> torch.Tensor:
            with InFloat32() if self._is_half else nullcontext():
                keywords = target.keywords(tree_pass)
                found: torch.Tensor = self.view.base_model(**keywords).last_hidden_state
            return found.flatten(0, 1)

        return states

    def _passes(
        self, states: States, shape: CacheShape, masks: MaskBuilder, wanted: torch.Tensor
    ) -> Iterator[tuple[str, torch.Tensor, torch.Tensor]]:
        """What an implementation gives for the path, in one pass, from a cache, and through a tree; and for the
        other nodes of the tree. Each with the logits that are right."""
        num, cached = len(self._tokens), _CACHED
        cache = KVCache(shape, 1, 3 * num)

        def run(ids: list[int], parents: tuple[int, ...]) -> torch.Tensor:
            tree_pass = TreePass(cache, slice(0, 1), [ids], [tree_layout(parents)], masks)
            return states(tree_pass)

        yield "of a text", run(self._tokens, chain_parents(num)), wanted
        cache.commit(0, range(cached))
        rest = self._tokens[cached:]
        yield "of cached tokens", run(rest, chain_parents(len(rest))), wanted[cached:]
        # A sibling before every node of the path but the root.
        siblings = self._siblings(rest)
        ids, parents, path = [rest[0]], [-1], [0]
        for token_id, sibling in zip(rest[1:], siblings, strict=True):
            above = path[-1]
            path.append(len(ids) + 1)
            ids += [sibling, token_id]
            parents += [above, above]
        found = run(ids, tuple(parents))
        yield _OF_A_TREE, found[path], wanted[cached:]
        cache.commit(0, path)
        alone = states(self._each_alone(cache, siblings, masks))
        yield _OF_A_TREE, found[[node - 1 for node in path[1:]]], self._logits(alone)

    def _each_alone(self, cache: KVCache, siblings: list[int], masks: MaskBuilder) -> TreePass:
        """The siblings, each in a row of its own, behind the cached part of the path that it goes on from."""
        num = len(siblings)
        rows = KVCache(cache.shape, num, len(self._tokens) + 1)
        used = cache.lengths[0]
        rows.data[:, :, :, :, :used] = cache.data[:, :, :1, :, :used]
        for row in range(num):
            rows.commit(row, range(used - num + row))
        alone = [[token_id] for token_id in siblings]
        return TreePass(rows, slice(0, num), alone, [tree_layout((-1,))] * num, masks)

    def _siblings(self, path: list[int]) -> list[int]:
        """A token beside each of the path but the first; they differ from each other, too."""
        size = self._vocab_size
        found = [(6007 * index * index + 3571 * index + 2) % size for index in range(1, len(path))]
        return [
            one if one != beside else (one + 1) % size
            for one, beside in zip(found, path[1:], strict=True)
        ]

    def _logits(self, states: torch.Tensor) -> torch.Tensor:  # [M, V] float32
        with InFloat32() if self._is_half else nullcontext():
            found: torch.Tensor = self._head(states if not self._is_half else states.float())
        return found

    def _of_stock(self) -> torch.Tensor:  # [M, V] float32
        device = self._head.weight.device
        token_ids = torch.tensor([self._tokens], device=device)
        with InFloat32() if self._is_half else nullcontext():
            states = self.view.base_model(input_ids=token_ids, use_cache=False).last_hidden_state
        return self._logits(states[0])

    def _choose_trials(self) -> list[_Trial]:
        """Windows and what the stock model gives with them; whether its code has any is seen from that."""
        own: int = max((window or 0 for window in self.windows.values()), default=0)
        if not own:
            return self._and_flat([_Trial(self.windows, self._of_stock())])
        with _window(self._config, _NO_WINDOW):
            none = self._of_stock()
        with _window(self._config, _WINDOW):
            short = self._of_stock()
            if not torch.equal(short, none):
                tried = [_Trial({k: w and _WINDOW for k, w in self.windows.items()}, short)]
                tried = self._and_flat(tried)
        if torch.equal(short, none):
            self.windows = dict.fromkeys(self.windows)
            return self._and_flat([_Trial(self.windows, self._of_stock())])
        if own < len(self._tokens):
            tried.insert(1, _Trial(self.windows, self._of_stock()))
        return tried

    def _and_flat(self, tried: list[_Trial]) -> list[_Trial]:
        """The same with all scores nearly zero, where the model's code lets us have that."""
        with _flat(self.view):
            flat = self._of_stock()
        if not flat.isfinite().all() or torch.equal(flat, tried[0].wanted):
            return tried
        return [*tried, _Trial(tried[0].windows, flat, is_flat=True)]


_OF_A_TREE = "of a tree"
_WAY_OUT = {
    "of a text": "try attention='eager', or use transformers alone",
    "of cached tokens": "it cannot go on from cached tokens; use transformers alone",
    _OF_A_TREE: "it does not honour 4-D masks and position ids, so drafts cannot be verified",
}


@contextmanager
def _window(config: Any, window: int) -> Iterator[None]:
    own = config.sliding_window
    config.sliding_window = window
    try:
        yield
    finally:
        config.sliding_window = own


def tried_tokens(vocab_size: int, count: int) -> list[int]:
    """Ids from all of the vocabulary."""
    return [(7919 * index * index + 104729 * index + 1) % vocab_size for index in range(count)]


@contextmanager
def _flat(model: Any) -> Iterator[None]:
    """Inside, all scores of attention are nearly zero: every visible token has the same weight."""
    scaled = [
        (module, module.scaling)
        for module in model.modules()
        if hasattr(module, "layer_idx") and isinstance(getattr(module, "scaling", None), float)
    ]
    try:
        for module, scaling in scaled:
            module.scaling = scaling * _FLAT
        yield
    finally:
        for module, scaling in scaled:
            module.scaling = scaling


def _few_layers(model: Any, config: Any) -> tuple[SkipSet | None, Any]:
    """The model with two layers of each type and shape, or whole where none can be left out."""
    kinds: Sequence[str] = getattr(config, "layer_types", None) or [""] * config.num_hidden_layers
    try:
        _, layers = decoder_layers(model)
        views = SkipViews(model)
    except CapabilityError:
        return None, model
    kept: dict[Any, list[int]] = {}
    for index, (kind, layer) in enumerate(zip(kinds, layers, strict=True)):
        form = (kind, *(one.shape for one in layer.parameters()))
        kept.setdefault(form, []).append(index)
    left_out = tuple(sorted(i for same in kept.values() for i in same[_KEPT_PER_TYPE:]))
    if not left_out:
        return None, model
    skip_set = SkipSet(left_out, left_out)
    try:
        return skip_set, views(skip_set)
    except CapabilityError:
        return None, model


def _rows_of(model: Any, head: Any) -> torch.Tensor | None:
    """Which rows of a head are tested; None: all of them."""
    if type(head) is not nn.Linear or (size := len(head.weight)) <= 3 * _HEAD_ROWS:
        return None
    if all(module is not head for module in model.modules()):
        return None
    starts = (0, (size - _HEAD_ROWS) // 2, size - _HEAD_ROWS)
    device = head.weight.device
    return torch.cat([torch.arange(one, one + _HEAD_ROWS, device=device) for one in starts])


def _with_part_of_head(model: Any, head: Any, rows: torch.Tensor | None) -> tuple[Any, Any]:
    """Some rows of the head, and a view of the model that has no others."""
    if rows is None:
        return head, model
    has_bias = head.bias is not None
    with torch.device("meta"):
        part = nn.Linear(head.in_features, len(rows), has_bias)
    part.weight = nn.Parameter(head.weight[rows], requires_grad=False)
    if has_bias:
        part.bias = nn.Parameter(head.bias[rows], requires_grad=False)
    return part, with_module(model, head, part)
