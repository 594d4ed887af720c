"""`TargetModel`: the only owner of the `transformers` model."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from itertools import count
from pathlib import Path
from typing import Any, Literal

import torch
from transformers import AutoConfig, AutoModelForCausalLM, DynamicCache, PreTrainedModel

from draftless.checkpoint.gguf import model_keywords, source_keywords
from draftless.engine import native, probes
from draftless.engine.attention import ATTENTION_NAME, register_attention
from draftless.engine.cache import CacheShape, KVCache, cache_keyword
from draftless.engine.capabilities import (
    check_compile,
    check_config,
    check_input_only,
    check_model,
    check_source,
    context_limit,
    parse_device,
    parse_dtype,
)
from draftless.engine.compiled.forward import CompiledForward
from draftless.engine.compiled.strict import WIDTH
from draftless.engine.int8 import round_to_int8
from draftless.engine.masks import MaskBuilder, layer_windows
from draftless.engine.skip_view import SkipViews
from draftless.engine.tree_pass import TreePass
from draftless.errors import ArtifactError, CapabilityError, ConfigError
from draftless.layout import TreeLayout, chain_parents, tree_layout
from draftless.skip_set import SkipSet
from draftless.sublayers import decoder_layers

Attention = Literal["draftless", "sdpa", "eager"]

_PREFILL_CHUNK = 512
_COMPILED_CHUNK = 128  # our attention weighs what is hidden, too; shorter parts hide less
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
        is_strict: the logits after a path are the same bits in every tree.
        input_only_ids: ids that are fed and never emitted (SDSAT's adaptive tokens): `forward`
            gives them the logit -inf, so no drafter and no sampler ever sees them.
        first_emitted_id: the lowest id that is none of them.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        attention: Attention = "draftless",
        *,
        input_only_ids: Sequence[int] = (),
        compile: bool = False,
        strict: bool = False,
    ) -> None:
        """Check `model` and switch its attention.

        Our attention stays set on the model; everything else of `transformers` keeps working on it.
        With `compile`, forward passes run through code that is compiled now, once for all widths and
        lengths; where that is impossible, a warning says why and the model's own code runs. With
        `strict`, the logits after a path are the same bits in every tree (`compiled/strict.py`).

        Raises:
            CapabilityError: if exact tree decoding cannot work with this model, or `strict` not here.
            ConfigError: if `attention` is unknown or the family does not allow it, or an id of
                `input_only_ids` lies outside the vocabulary, or other attention than ours is to
                be compiled, or `strict` comes without `compile`.
        """
        check_model(model)
        self.model = model.eval()
        self._cache_keyword = cache_keyword(model)
        self.config = model.config.get_text_config()
        self.device: torch.device = next(model.parameters()).device
        self.vocab_size: int = model.get_output_embeddings().weight.shape[0]
        check_input_only(input_only_ids, self.vocab_size)
        self.num_layers: int = self.config.num_hidden_layers
        self.max_positions = context_limit(model.config)
        self.input_only_ids: tuple[int, ...] = ()  # the checks below look at every logit
        self._compiled: CompiledForward | None = None
        self.is_strict = False
        heads = self.config.num_attention_heads
        stock_attention = model.config._attn_implementation
        check_compile(attention, compile, strict)
        try:
            with torch.inference_mode():
                stock_logits = self._stock_logits()
                self._set_attention(attention)
                self._cache_shape = self._measure_cache_shape()
                self._windows = layer_windows(self.config)
                shape = self._cache_shape
                groups = heads // shape.num_kv_heads if attention == ATTENTION_NAME else 1
                self._masks = MaskBuilder(self._windows, groups, shape.dtype, self.device)
                probes.check_masks_and_positions(self, stock_logits)
            if compile:
                self._compiled = self._compile(stock_logits)
            if strict:
                self._make_strict()
        except Exception:
            model.set_attn_implementation(stock_attention)  # a refused model stays what it was
            raise
        self.input_only_ids = tuple(input_only_ids)
        self.first_emitted_id = next(i for i in count() if i not in self.input_only_ids)
        self._input_only = torch.tensor(self.input_only_ids, dtype=torch.long, device=self.device)

    @property
    def is_compiled(self) -> bool:
        """Whether forward passes run compiled."""
        return self._compiled is not None

    def compile_view(self, skip_set: SkipSet) -> None:
        """Compile the passes that leave out `skip_set`, too; without a compiled target, nothing."""
        if self._compiled is None:
            return
        try:
            self._compiled.prepare(skip_set)
        except Exception as error:  # noqa: BLE001 - as for the whole model
            self._warn_of("a view of it without some layers", error)

    def _compile(self, stock_logits: torch.Tensor) -> CompiledForward | None:
        """The compiled forward, or None, with a warning, where there can be none."""
        try:
            place, _ = decoder_layers(self.model)
            self._compiled = CompiledForward(
                self._view_of, place, list(self._windows), self.num_layers, self._cache_shape.dtype
            )
            if self.device.type == "cpu":
                for name in ("draws", *["attention"] * native.has_fast_products()):
                    native.load(name)
            self._compiled.prepare()
            with torch.inference_mode():
                probes.check_masks_and_positions(self, stock_logits)
        except Exception as error:  # noqa: BLE001 - what a compiler may raise is not ours to list
            self._warn_of(type(self.model).__name__, error)
            return None
        return self._compiled

    @staticmethod
    def _warn_of(what: str, error: Exception) -> None:
        warnings.warn(
            f"{what} cannot be compiled here "
            f"({type(error).__name__}: {str(error).strip().partition(chr(10))[0]}); going on "
            "without, which gives the same output more slowly. compile=False silences this",
            stacklevel=5,
        )

    def _make_strict(self) -> None:
        if self._compiled is None:
            raise CapabilityError("strict=True needs a model that can be compiled; leave it out")
        with torch.inference_mode():
            # Few keys are tried; that more make no difference is known of our own attention.
            has_own = self._compiled.has_own_attention
            self._has_stable_bits = has_own and probes.has_stable_bits(self)
            self.is_strict = True
            if not self._has_stable_bits:
                probes.check_strict(self)

    @classmethod
    def from_pretrained(  # noqa: PLR0913 - keywords, each of its own kind
        cls,
        path: str | Path,
        *,
        attention: Attention = "draftless",
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        input_only_ids: Sequence[int] = (),
        compile: bool = False,
        strict: bool = False,
        int8: bool = False,
        **hub_options: Any,
    ) -> TargetModel:
        """Load a checkpoint folder, hub id or GGUF file; with `int8` its weights are rounded (`int8.py`).

        `hub_options` (`revision`, `token`, ...) go to `transformers` as they are.

        Raises:
            ArtifactError: if it cannot be read.
            CapabilityError: if exact tree decoding cannot work with it; checked before loading
                weights where the configuration tells.
        """
        place = parse_device(device)
        check_source(path)
        try:
            check_config(AutoConfig.from_pretrained(**source_keywords(path), **hub_options))
            how = model_keywords(path, parse_dtype(dtype))
            model = AutoModelForCausalLM.from_pretrained(**how, **hub_options)
        except (CapabilityError, ArtifactError):
            raise
        except Exception as error:
            where = "" if Path(path).exists() else " (no folder here, so a name on the hub)"
            raise ArtifactError(
                f"cannot load a model from {str(path)!r}{where}: {error}"
            ) from error
        model = model.to(place) if place is not None else model
        if int8:
            round_to_int8(model)
        return cls(model, attention, input_only_ids=input_only_ids, compile=compile, strict=strict)

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
        token_ids = torch.zeros((1, 2), dtype=torch.long, device=self.device)
        self.model(input_ids=token_ids, use_cache=True, **{self._cache_keyword: cache})
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
        token_ids = torch.tensor([probes.three_tokens(self.vocab_size)], device=self.device)
        logits: torch.Tensor = self.model(input_ids=token_ids, use_cache=False).logits
        return logits[0].float()

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
        is_compiled = self._compiled is not None and self.device.type == "cpu"
        size = _COMPILED_CHUNK if is_compiled else _PREFILL_CHUNK
        total: torch.Tensor | None = None
        starts = range(0, len(token_ids), size)
        for start in starts:
            chunk = list(token_ids[start : start + size])
            hidden = self._hidden(cache, slice(row, row + 1), chunk)[0].float().sum(0)
            total = hidden if total is None else total + hidden
            cache.commit(row, range(len(chunk)))
        return Prefill(len(starts), None if total is None else total / len(token_ids))

    def _hidden(
        self, cache: KVCache, row: slice, token_ids: list[int]
    ) -> torch.Tensor:  # [1, W, hidden]
        """What the language-model head would read of one row's next tokens."""
        chain = tree_layout(chain_parents(len(token_ids)))
        tree_pass = TreePass(cache, row, [token_ids], [chain], self._masks)
        hidden = self._compiled.hidden(tree_pass) if self._compiled is not None else None
        if hidden is None:
            hidden = self.model.base_model(**self._keywords(tree_pass)).last_hidden_state
        return hidden

    def forward(
        self,
        cache: KVCache,
        token_ids: Sequence[Sequence[int]],
        layouts: Sequence[TreeLayout],
        *,
        first_row: int = 0,
        skip_set: SkipSet | None = None,
    ) -> list[torch.Tensor]:
        """One pass over one tree per row.

        Args:
            cache: its rows from `first_row` on are continued; lengths stay until `commit`.
            token_ids: `R` lists of node tokens; rows may differ in length, and be empty.
            layouts: `R` layouts of the same sizes (`EMPTY_LAYOUT` of an empty row).
            first_row: cache row of the first tree.
            skip_set: sub-layers to leave out; None is the target itself.

        Returns:
            Per row `[N, V]` logits of its tree's nodes in the model's dtype; the ids that are input
            only have -inf.

        Raises:
            CapabilityError: the model's sub-layers cannot be skipped.
            ConfigError: the skip set names a layer that the model does not have.
        """
        if self.is_strict and skip_set is None and not self._is_stable(token_ids):
            logits = self._forward_strict(cache, token_ids, layouts, first_row)
        else:
            logits = self._forward(cache, token_ids, layouts, first_row, skip_set)
        if self.input_only_ids:
            logits.index_fill_(-1, self._input_only, -torch.inf)
        if len(token_ids) == 1:
            return [logits]
        of_rows = logits.view(len(token_ids), -1, logits.shape[1]).unbind()
        return [
            row if len(row) == len(ids) else row[: len(ids)]
            for row, ids in zip(of_rows, token_ids, strict=True)
        ]

    def _is_stable(self, token_ids: Sequence[Sequence[int]]) -> bool:
        """Whether a strict model may run a pass like any other."""
        assert self._compiled is not None
        num_tokens = len(token_ids) * max(map(len, token_ids))
        return self._has_stable_bits and self._compiled.handles(None, num_tokens)

    def _forward(
        self,
        cache: KVCache,
        token_ids: Sequence[Sequence[int]],
        layouts: Sequence[TreeLayout],
        first_row: int,
        skip_set: SkipSet | None,
    ) -> torch.Tensor:  # [R*W, V]
        rows = slice(first_row, first_row + len(token_ids))
        tree_pass = TreePass(cache, rows, token_ids, layouts, self._masks)
        if self._compiled is not None and self._compiled.handles(skip_set, tree_pass.num_tokens):
            return self._compiled(skip_set, tree_pass)
        logits: torch.Tensor = self._view_of(skip_set)(**self._keywords(tree_pass)).logits
        return logits.flatten(0, 1)

    def _forward_strict(
        self,
        cache: KVCache,
        token_ids: Sequence[Sequence[int]],
        layouts: Sequence[TreeLayout],
        first_row: int,
    ) -> torch.Tensor:  # [R*W, V]
        """Row by row, padded: neither other rows nor the width may show in the bits."""
        assert self._compiled is not None
        most = max(map(len, token_ids))
        width = -(-most // WIDTH) * WIDTH
        found = []
        for row, (ids, layout) in enumerate(zip(token_ids, layouts, strict=True), first_row):
            rows = slice(row, row + 1)
            tree_pass = TreePass(cache, rows, [ids], [layout], self._masks, width, is_strict=True)
            found.append(self._compiled(None, tree_pass)[:most])
        return torch.cat(found)

    def _view_of(self, skip_set: SkipSet | None) -> Any:
        return self.model if skip_set is None else self._skip_views(skip_set)

    @cached_property
    def _skip_views(self) -> SkipViews:
        return SkipViews(self.model)

    def _keywords(self, tree_pass: TreePass) -> dict[str, Any]:
        """How a `transformers` model is told."""
        token_ids, positions = tree_pass.tensors
        masks = tree_pass.masks
        return {
            "input_ids": token_ids,
            "position_ids": positions,
            "attention_mask": masks if len(masks) > 1 else next(iter(masks.values())),
            self._cache_keyword: tree_pass.cache.adapter,
            "use_cache": True,
        }
