"""What is tried on a model when it is loaded: its structure, in float32, against its own stock attention.

Half-precision logits of pretrained models differ by several standard deviations between two right implementations
(a few channels are a thousand times larger than the rest), so a wrong mask cannot be told from rounding there. The
structure is therefore tested in float32, on a few layers with their own weights: a path through a tree must give what
an uncached stock pass over the path gives.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import torch

from draftless.engine.cache import CacheShape, KVCache
from draftless.engine.masks import MaskBuilder, layer_windows
from draftless.engine.precision import InFloat32
from draftless.engine.skip_view import SkipViews
from draftless.engine.tree_pass import TreePass
from draftless.errors import CapabilityError
from draftless.layout import chain_parents, tree_layout
from draftless.skip_set import SkipSet

if TYPE_CHECKING:
    from draftless.engine.target import TargetModel

_NEAR = 0.02  # standard deviations of the logits; float32 stays below 0.001, a wrong mask goes beyond 0.3
_NUM_TOKENS = 24
_CACHED = 5  # tokens of the path that are cached before the tree
_WINDOW = 7  # what a sliding window is set to meanwhile
_NO_WINDOW = 1 << 20
_KEPT_PER_TYPE = 2  # layers

States = Callable[[TreePass], torch.Tensor]
"""What the head reads, `[M, hidden]`, of the tokens of a pass."""


class SelfTest:
    """Tests one model. Make it before the model's attention is switched: it keeps what the stock one gives.

    Args:
        model: a `transformers` causal model.

    Attributes:
        windows: per type of layer its sliding window, or None; a window that the configuration names and
            the model's code ignores is none.
        skip_set: the layers that are left out of the test; None if all are tried.
        view: the model without these.
        stock_attention: the name of the attention that the model was tested with.
    """

    def __init__(self, model: Any) -> None:
        self._name = type(model).__name__
        self.stock_attention: str = model.config._attn_implementation
        self._config = model.config.get_text_config()
        self._is_half = next(model.parameters()).dtype in (torch.bfloat16, torch.float16)
        self._head = model.get_output_embeddings()
        self.skip_set, self.view = _few_layers(model, self._config)
        self._tokens = _tokens(self._head.weight.shape[0])
        self.windows = layer_windows(self._config)
        self._tried = self._choose_windows()

    def check(self, states: States, shape: CacheShape, what: str, groups: int = 1) -> None:
        """Refuse an implementation that gives something else than the stock model.

        Args:
            states: the implementation, in float32.
            shape: of the model's cache.
            what: its name in errors.
            groups: query heads that share a KV head, where it takes packed masks.

        Raises:
            CapabilityError: it does.
        """
        dtype = shape.dtype if not self._is_half else torch.float32
        shape = replace(shape, dtype=dtype)
        for windows, wanted in self._tried:
            masks = MaskBuilder(windows, groups, dtype, shape.device)
            near = _NEAR * float(wanted.std())
            for label, found, kept in self._passes(states, shape, masks):
                difference = float((self._logits(found) - wanted[kept]).abs().max())
                if not difference <= near:
                    raise CapabilityError(
                        f"{self._name} gives other logits {label} with {what} than with its own "
                        f"{self.stock_attention!r} attention (they differ by {difference:.3g} in float32, at most "
                        f"{near:.2g} is rounding); {_WAY_OUT[label]}"
                    )

    def eager(self, target: TargetModel) -> States:
        """The model's own code with the attention that is set on it, in float32."""

        def states(tree_pass: TreePass) -> torch.Tensor:
            with InFloat32() if self._is_half else nullcontext():
                keywords = target.keywords(tree_pass)
                found: torch.Tensor = self.view.base_model(**keywords).last_hidden_state
            return found.flatten(0, 1)

        return states

    def _passes(
        self, states: States, shape: CacheShape, masks: MaskBuilder
    ) -> Iterator[tuple[str, torch.Tensor, slice]]:
        """What an implementation gives for the path: in one pass, from a cache, and through a tree."""
        num, cached = len(self._tokens), _CACHED
        chain = tree_layout(chain_parents(num))
        cache = KVCache(shape, 1, 3 * num)
        one_row = slice(0, 1)
        yield (
            "of a text",
            states(TreePass(cache, one_row, [self._tokens], [chain], masks)),
            slice(num),
        )
        cache.commit(0, range(cached))
        rest = self._tokens[cached:]
        layout = tree_layout(chain_parents(len(rest)))
        found = states(TreePass(cache, one_row, [rest], [layout], masks))
        yield "of cached tokens", found, slice(cached, num)
        # A sibling before every node of the path but the root, with a token of its own.
        ids, parents, path = [rest[0]], [-1], [0]
        for token_id in rest[1:]:
            above = path[-1]
            path.append(len(ids) + 1)
            ids += [self._tokens[0], token_id]
            parents += [above, above]
        tree = TreePass(cache, one_row, [ids], [tree_layout(tuple(parents))], masks)
        yield "of a tree", states(tree)[path], slice(cached, num)

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

    def _choose_windows(self) -> list[tuple[dict[str, int | None], torch.Tensor]]:
        """Windows and what the stock model gives with them; whether its code has any is seen from that."""
        own: int = max((window or 0 for window in self.windows.values()), default=0)
        if not own:
            return [(self.windows, self._of_stock())]
        with _window(self._config, _WINDOW):
            short = self._of_stock()
        with _window(self._config, _NO_WINDOW):
            none = self._of_stock()
        if torch.equal(short, none):
            self.windows = dict.fromkeys(self.windows)
            return [(self.windows, self._of_stock())]
        tried = [({k: w and _WINDOW for k, w in self.windows.items()}, short)]
        if own < len(self._tokens):
            tried.append((self.windows, self._of_stock()))
        return tried


_WAY_OUT = {
    "of a text": "try attention='eager', or use transformers alone",
    "of cached tokens": "it cannot go on from cached tokens; use transformers alone",
    "of a tree": "it does not honour 4-D masks and position ids, so drafts cannot be verified",
}


@contextmanager
def _window(config: Any, window: int) -> Iterator[None]:
    own = config.sliding_window
    config.sliding_window = window
    try:
        yield
    finally:
        config.sliding_window = own


def _tokens(vocab_size: int) -> list[int]:
    """Ids from all of the vocabulary."""
    return [
        (7919 * index * index + 104729 * index + 1) % vocab_size for index in range(_NUM_TOKENS)
    ]


def _few_layers(model: Any, config: Any) -> tuple[SkipSet | None, Any]:
    """The model with two layers of each type, or whole where none can be left out."""
    kinds: Sequence[str] = getattr(config, "layer_types", None) or [""] * config.num_hidden_layers
    kept = {
        index
        for kind in dict.fromkeys(kinds)
        for index in [i for i, one in enumerate(kinds) if one == kind][:_KEPT_PER_TYPE]
    }
    left_out = tuple(index for index in range(len(kinds)) if index not in kept)
    if not left_out:
        return None, model
    skip_set = SkipSet(left_out, left_out)
    try:
        return skip_set, SkipViews(model)(skip_set)
    except CapabilityError:
        return None, model


def check_stable_bits(target: TargetModel) -> None:
    """A text fed token by token and as the last leaves of trees must give the same bits.

    Behind many cached tokens: kernels may take another way where there is more to read.

    Raises:
        CapabilityError: it does not: products or sums depend on what else is in a pass.
    """
    tokens = _tokens(target.vocab_size)[:_PATH]
    cache = _with_noise(target, [_NUM_CACHED], len(tokens))
    plain = []
    for token_id in tokens:
        plain.append(target.forward(cache, [[token_id]], [tree_layout((-1,))])[0][0])
        cache.commit(0, [0])
    for num_nodes in _TREES:
        num_siblings = (num_nodes - 1) // (_PATH - 1) - 1
        ids, parents, path = [tokens[0]], [-1], [0]
        for token_id in tokens[1:]:
            above = path[-1]
            ids += [0] * num_siblings
            parents += [above] * num_siblings
            path.append(len(ids))
            ids.append(token_id)
            parents.append(above)
        # Alone, and beside a longer row.
        for lengths in ([_NUM_CACHED], [_NUM_CACHED, _MOST_CACHED]):
            cache = _with_noise(target, lengths, len(ids))
            layouts = [tree_layout(tuple(parents)), tree_layout((-1,))][: len(lengths)]
            logits = target.forward(cache, [ids, [0]][: len(lengths)], layouts)[0]
            if not torch.equal(logits[path], torch.stack(plain)):
                raise CapabilityError(
                    f"{type(target.model).__name__} in {target.model.dtype} gives other bits in a pass of "
                    f"{len(ids)} tokens than in one of one"
                )


def _with_noise(target: TargetModel, lengths: Sequence[int], num_more: int) -> KVCache:
    """A cache whose rows hold the same numbers: small keys, so that every token counts."""
    shape = target.cache_shape
    sizes = (shape.num_layers, 2, shape.num_kv_heads, _MOST_CACHED, shape.head_dim)
    noise = torch.randn(sizes, generator=torch.Generator().manual_seed(0))
    noise[:, 0] *= _KEYS
    cache = target.make_cache(len(lengths), _MOST_CACHED + num_more)
    for row, length in enumerate(lengths):
        cache.data[:, :, row, :, :_MOST_CACHED] = noise.to(shape.device, shape.dtype)
        cache.commit(row, range(length))
    return cache


_PATH = 6
_TREES = (6, 16, 48)
_NUM_CACHED, _MOST_CACHED = 300, 309
_KEYS = 0.1
