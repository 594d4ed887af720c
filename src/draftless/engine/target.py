"""`TargetModel`: the only owner of the `transformers` model."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from draftless.engine.attention import ATTENTION_NAME, pack_mask, register_attention
from draftless.engine.cache import CacheShape, KVCache
from draftless.engine.capabilities import check_config, check_model, context_limit, parse_dtype
from draftless.engine.skip_view import SkipViews
from draftless.errors import ArtifactError, CapabilityError, ConfigError
from draftless.layout import TreeLayout, chain_parents, tree_layout
from draftless.skip_set import SkipSet

Attention = Literal["draftless", "sdpa", "eager"]

_PREFILL_CHUNK = 512
_FULL = "full_attention"
_SLIDING = "sliding_attention"
_FINGERPRINT_VALUES = 16  # of every parameter


@dataclass(frozen=True, slots=True)
class Prefill:
    """What caching a prompt (all but its last token) gave.

    Attributes:
        num_passes: forward passes.
        vector: `[hidden]` float32, the mean of the final-norm hidden states; None if nothing was
            cached.
    """

    num_passes: int
    vector: torch.Tensor | None


class TargetModel:
    """A stock causal model behind one call: the logits of a tree per row.

    Attributes:
        model: the `transformers` model, its weights and code as they are.
        vocab_size: ids are `0 .. vocab_size-1`.
        num_layers: decoder layers.
        max_positions: largest number of tokens in a row, or None.
        device: where the weights are.
        input_only_ids: ids that are fed and never emitted (SDSAT's adaptive tokens): `forward`
            gives them the logit -inf, so no drafter and no sampler ever sees them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        attention: Attention = "draftless",
        *,
        input_only_ids: Sequence[int] = (),
    ) -> None:
        """Check `model` and switch its attention.

        Our attention stays set on the model; everything else of `transformers` keeps working on it.

        Raises:
            CapabilityError: if exact tree decoding cannot work with this model.
            ConfigError: if `attention` is unknown or the family does not allow it, or an id of
                `input_only_ids` lies outside the vocabulary.
        """
        check_model(model)
        self.model = model.eval()
        self.config = model.config.get_text_config()
        self.device: torch.device = next(model.parameters()).device
        self.vocab_size: int = model.get_output_embeddings().weight.shape[0]
        outside = [i for i in input_only_ids if not 0 <= i < self.vocab_size]
        if outside:
            raise ConfigError(
                f"input_only_ids {outside} lie outside the vocabulary 0..{self.vocab_size - 1}; "
                "give ids that the model's embedding has"
            )
        self.num_layers: int = self.config.num_hidden_layers
        self.max_positions = context_limit(model.config)
        self.input_only_ids: tuple[int, ...] = ()  # the checks below look at every logit
        heads = self.config.num_attention_heads
        stock_attention = model.config._attn_implementation
        try:
            with torch.inference_mode():
                stock_logits = self._stock_logits()
                self._set_attention(attention)
                self._cache_shape = self._measure_cache_shape()
                self._groups = (
                    heads // self._cache_shape.num_kv_heads if attention == "draftless" else 1
                )
                self._windows = _windows(self.config)
                self._check_masks_and_positions(stock_logits)
        except Exception:
            model.set_attn_implementation(stock_attention)  # a refused model stays what it was
            raise
        self.input_only_ids = tuple(input_only_ids)
        self._input_only = torch.tensor(self.input_only_ids, dtype=torch.long, device=self.device)

    @classmethod
    def from_pretrained(
        cls,
        path: str | Path,
        *,
        attention: Attention = "draftless",
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        input_only_ids: Sequence[int] = (),
    ) -> TargetModel:
        """Load a checkpoint folder or hub id.

        Raises:
            ArtifactError: if it cannot be read.
            CapabilityError: if exact tree decoding cannot work with it; checked before loading
                weights where the configuration tells.
        """
        try:
            check_config(AutoConfig.from_pretrained(path))
            model = AutoModelForCausalLM.from_pretrained(path, dtype=parse_dtype(dtype) or "auto")
        except CapabilityError:
            raise
        except Exception as error:
            raise ArtifactError(f"cannot load a model from {str(path)!r}: {error}") from error
        model = model.to(device) if device is not None else model
        return cls(model, attention, input_only_ids=input_only_ids)

    def _set_attention(self, attention: Attention) -> None:
        if attention not in (ATTENTION_NAME, "sdpa", "eager"):
            raise ConfigError(f"attention {attention!r} is unknown; use draftless, sdpa or eager")
        if attention == ATTENTION_NAME:
            register_attention()
        elif attention == "sdpa" and getattr(self.config, "attn_logit_softcapping", None):
            raise ConfigError(
                f"{self.config.model_type} caps its attention scores, which sdpa cannot; "
                "use draftless or eager"
            )
        self.model.set_attn_implementation(attention)

    def _measure_cache_shape(self) -> CacheShape:
        """Run two tokens through the model and look at what it caches."""
        cache = DynamicCache()
        self.model(
            input_ids=torch.zeros((1, 2), dtype=torch.long, device=self.device),
            past_key_values=cache,
            use_cache=True,
        )
        shapes = {tuple(t.shape) for layer in cache.layers for t in (layer.keys, layer.values)}
        if len(shapes) != 1 or len(cache.layers) != self.config.num_hidden_layers:
            raise CapabilityError(
                f"{type(self.model).__name__} caches {len(cache.layers)} layers of shapes "
                f"{sorted(shapes)}; one shape for keys and values of every layer is supported"
            )
        keys = cache.layers[0].keys
        return CacheShape(len(cache.layers), keys.shape[1], keys.shape[3], keys.dtype, keys.device)

    def _stock_logits(self) -> torch.Tensor:  # [3, V] float32
        """What the model says to three tokens before anything of it is switched."""
        token_ids = torch.tensor([self._three_tokens()], device=self.device)
        logits: torch.Tensor = self.model(input_ids=token_ids, use_cache=False).logits
        return logits[0].float()

    def _three_tokens(self) -> list[int]:
        return [1 % self.vocab_size, 2 % self.vocab_size, 3 % self.vocab_size]

    def _check_masks_and_positions(self, stock_logits: torch.Tensor) -> None:
        """Neither our attention nor a sibling and its positions may change a path's logits.

        Attention with sinks or other extras fails the first (GPT-OSS), ALiBi models the second.
        """
        tokens = self._three_tokens()
        chain = self._probe([*tokens], tree_layout(chain_parents(3)))
        difference = (chain - stock_logits).abs().max()
        if not difference <= 0.2 * chain[-1].std():
            raise CapabilityError(
                f"{type(self.model).__name__} computes something else than "
                f"{self.model.config._attn_implementation!r} attention does (logits differ by "
                f"{float(difference):.3g}); try attention='eager'"
            )
        tree = self._probe([tokens[0], 0, *tokens[1:]], tree_layout((-1, 0, 0, 2)))
        difference = (tree[-1] - chain[-1]).abs().max()
        if not difference <= 0.2 * chain[-1].std():
            raise CapabilityError(
                f"{type(self.model).__name__} does not honour 4-D masks and position ids "
                f"(a sibling moves its logits by {float(difference):.3g}); trees cannot be verified"
            )

    def _probe(self, token_ids: list[int], layout: TreeLayout) -> torch.Tensor:
        cache = self.make_cache(1, len(token_ids))
        return self.forward(cache, [token_ids], [layout])[0].float()

    def make_cache(self, num_rows: int, num_slots: int) -> KVCache:
        """An empty cache with room for `num_slots` slots a row."""
        return KVCache(self._cache_shape, num_rows, num_slots)

    def fingerprint(self) -> str:
        """A hash of the weights' names, shapes and some values; the same in any floating dtype."""
        digest = hashlib.sha256()
        for name, weight in sorted(self.model.named_parameters()):
            values = weight.detach().flatten()
            values = values[:: max(1, len(values) // _FINGERPRINT_VALUES)][:_FINGERPRINT_VALUES]
            # Through bf16: a checkpoint loaded in a narrower or wider dtype is still itself.
            rounded = values.to(torch.bfloat16).float().cpu().numpy()
            digest.update(f"{name} {tuple(weight.shape)}".encode() + rounded.tobytes())
        return digest.hexdigest()[:16]

    def prefill(self, cache: KVCache, row: int, token_ids: Sequence[int]) -> Prefill:
        """Cache a prompt (all but its last token), in chunks and without the language-model head."""
        passes = 0
        total: torch.Tensor | None = None
        for start in range(0, len(token_ids), _PREFILL_CHUNK):
            chunk = list(token_ids[start : start + _PREFILL_CHUNK])
            layout = tree_layout(chain_parents(len(chunk)))
            inputs = self._inputs(cache, [chunk], [layout], row)
            hidden = self.model.base_model(**inputs).last_hidden_state[0].float().sum(0)
            total = hidden if total is None else total + hidden
            cache.commit(row, range(len(chunk)))
            passes += 1
        return Prefill(passes, None if total is None else total / len(token_ids))

    def forward(
        self,
        cache: KVCache,
        token_ids: Sequence[Sequence[int]],
        layouts: Sequence[TreeLayout],
        *,
        first_row: int = 0,
        skip_set: SkipSet | None = None,
    ) -> torch.Tensor:
        """One pass over one tree per row.

        Args:
            cache: its rows from `first_row` on are continued; lengths stay until `commit`.
            token_ids: `R` lists of node tokens; rows may differ in length, and be empty.
            layouts: `R` layouts of the same sizes (`EMPTY_LAYOUT` of an empty row).
            first_row: cache row of the first tree.
            skip_set: sub-layers to leave out; None is the target itself.

        Returns:
            `[R, W, V]` logits in the model's dtype; rows beyond a tree's size are padding, and
            the ids that are input only have -inf.

        Raises:
            CapabilityError: the model's sub-layers cannot be skipped.
            ConfigError: the skip set names a layer that the model does not have.
        """
        model = self.model if skip_set is None else self._skip_views(skip_set)
        inputs = self._inputs(cache, token_ids, layouts, first_row)
        logits: torch.Tensor = model(**inputs).logits
        if self.input_only_ids:
            logits.index_fill_(-1, self._input_only, -torch.inf)
        return logits

    @cached_property
    def _skip_views(self) -> SkipViews:
        return SkipViews(self.model)

    def _inputs(
        self,
        cache: KVCache,
        token_ids: Sequence[Sequence[int]],
        layouts: Sequence[TreeLayout],
        first_row: int,
    ) -> dict[str, Any]:
        """What the model is called with; the cache is made ready for it."""
        width = max(len(ids) for ids in token_ids)
        rows = slice(first_row, first_row + len(token_ids))
        lengths = cache.lengths[rows]
        cache.reserve(max(lengths) + width)
        context = cache.append(rows, width)
        padded = [[*ids, *[0] * (width - len(ids))] for ids in token_ids]
        positions = torch.zeros((len(padded), width), dtype=torch.long)
        for index, (length, layout) in enumerate(zip(lengths, layouts, strict=True)):
            positions[index, : layout.num_nodes] = layout.depth_tensor + length
        return {
            "input_ids": torch.tensor(padded, device=self.device),
            "position_ids": positions.to(self.device),
            "attention_mask": self._masks(lengths, layouts, width, context),
            "past_key_values": cache.adapter,
            "use_cache": True,
        }

    def _masks(
        self, lengths: Sequence[int], layouts: Sequence[TreeLayout], width: int, context: int
    ) -> torch.Tensor | dict[str, torch.Tensor]:
        """The additive mask `[R, 1, G*W, C]`, by layer type where the model mixes types."""
        dtype = self._cache_shape.dtype
        visible = torch.zeros((len(lengths), width, context), dtype=torch.bool)
        for row, (length, layout) in enumerate(zip(lengths, layouts, strict=True)):
            num_nodes = layout.num_nodes
            visible[row, :num_nodes, :length] = True
            visible[row, :num_nodes, length : length + num_nodes] = layout.mask
            for node in range(num_nodes, width):  # padding sees itself: no row may see nothing
                visible[row, node, length + node] = True
        masks: dict[str, torch.Tensor] = {}
        for kind, window in self._windows.items():
            seen = (
                visible if window is None else visible & _within(window, lengths, layouts, visible)
            )
            additive = torch.zeros(seen.shape, dtype=dtype).masked_fill_(~seen, -torch.inf)
            masks[kind] = pack_mask(additive[:, None].to(self.device), self._groups)
        return masks if len(masks) > 1 else next(iter(masks.values()))


def _windows(config: Any) -> dict[str, int | None]:
    """Layer types of the model and their sliding windows (None: all positions are visible)."""
    window = getattr(config, "sliding_window", None)
    kinds = set(getattr(config, "layer_types", None) or ())
    if not kinds:
        return {_SLIDING if window else _FULL: window}
    return {kind: window if kind == _SLIDING else None for kind in sorted(kinds)}


def _within(
    window: int,
    lengths: Sequence[int],
    layouts: Sequence[TreeLayout],
    visible: torch.Tensor,  # [R, W, C] bool
) -> torch.Tensor:  # [R, W, C] bool
    """True where the slot's position is less than `window` behind the node's position."""
    _, width, context = visible.shape
    slots = torch.arange(context)
    inside = torch.ones_like(visible)
    for row, (length, layout) in enumerate(zip(lengths, layouts, strict=True)):
        num_nodes = min(layout.num_nodes, width)
        queries = layout.depth_tensor + length
        keys = slots.clone()
        keys[length : length + num_nodes] = queries
        inside[row, :num_nodes] = queries[:, None] - keys[None] < window
    return inside
