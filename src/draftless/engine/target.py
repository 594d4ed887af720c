"""`TargetModel`: the only owner of the `transformers` model."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property, partial
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import torch
from transformers import PreTrainedModel

from draftless.engine.attention import ATTENTION_NAME
from draftless.engine.build import begin_building
from draftless.engine.cache import KVCache, cache_keyword
from draftless.engine.capabilities import (
    check_compile,
    check_input_only,
    check_model,
    context_limit,
)
from draftless.engine.compiled.strict import WIDTH
from draftless.engine.cpu.forward import NativeForward
from draftless.engine.fingerprint import fingerprint
from draftless.engine.int8 import round_to_int8
from draftless.engine.load import (
    Compile,
    Progress,
    fast_pass,
    load_stock,
    measure_cache_shape,
    prove_stable_bits,
    refusing,
    say_if_not_reproducible,
    say_nothing,
    set_attention,
    warn_of,
)
from draftless.engine.masks import MaskBuilder
from draftless.engine.native import is_loaded
from draftless.engine.prefill import Prefill
from draftless.engine.proof import Proof, ProofFile
from draftless.engine.self_test import SelfTest
from draftless.engine.skip_view import SkipViews
from draftless.engine.stable_bits import check_stable_bits
from draftless.engine.threads import choose_threads
from draftless.engine.tree_pass import TreePass
from draftless.engine.watch import Watch
from draftless.errors import CapabilityError
from draftless.layout import TreeLayout, chain_parents, tree_layout
from draftless.skip_set import SkipSet

if TYPE_CHECKING:
    from draftless.engine.compiled.forward import CompiledForward

Attention = Literal["draftless", "sdpa", "eager"]

_HALVES = (torch.bfloat16, torch.float16)
_PREFILL_CHUNK = 512
_COMPILED_CHUNK = 128  # our attention weighs what is hidden, too; shorter parts hide less


class TargetModel:
    """A stock causal model behind one call: the logits of a tree per row.

    Attributes:
        model: the `transformers` model, its weights and code as they are.
        vocab_size: ids are `0 .. vocab_size-1`.
        num_layers: decoder layers.
        max_positions: largest number of tokens in a row, or None.
        device: where the weights are.
        is_strict: the logits after a path are the same bits in every tree.
        has_own_threads: passes are native ones, which do not run on torch's threads.
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
        compile: Compile = False,
        strict: bool = False,
        on_progress: Progress = say_nothing,
        source: str | Path | None = None,
    ) -> None:
        """Check `model` and switch its attention.

        Our attention stays set on the model; everything else of `transformers` keeps working on it.
        `compile` chooses the forward pass (`load.fast_pass`); where `True` can have no other than the
        model's own code, a warning says why. `strict`: batch-invariant also where that costs time
        (`compiled/strict.py`). `on_progress` is told what begins. `source` is the checkpoint that the model
        was loaded from just now: what was proved of it here before is not tested again (`proof.py`).

        Raises:
            CapabilityError: if exact tree decoding cannot work with this model, or `strict` not here.
            ConfigError: if `attention` is unknown or the family does not allow it, or an id of
                `input_only_ids` lies outside the vocabulary, or other attention than ours is to
                be compiled, or `strict` comes without `compile`.
        """
        check_model(model)
        check_compile(attention, compile, strict)
        self.model = model.eval()
        self._cache_keyword = cache_keyword(model)
        self.config = model.config.get_text_config()
        self.device: torch.device = next(model.parameters()).device
        self.dtype: torch.dtype = next(model.parameters()).dtype
        self.vocab_size: int = model.get_output_embeddings().weight.shape[0]
        check_input_only(input_only_ids, self.vocab_size)
        self.num_layers: int = self.config.num_hidden_layers
        self.max_positions = context_limit(model.config)
        self.input_only_ids: tuple[int, ...] = ()  # the tests below look at every logit
        self._compiled: NativeForward | CompiledForward | None = None
        self._how = compile
        self.is_strict = self._has_stable_bits = self.has_own_threads = False
        self._stock_attention = model.config._attn_implementation
        try:
            self._prepare(attention, strict, source, on_progress)
        except Exception:
            model.set_attn_implementation(self._stock_attention)  # it stays what it was
            raise
        self._watch = Watch(model)
        self.input_only_ids = tuple(input_only_ids)
        self.first_emitted_id = next(i for i in count() if i not in self.input_only_ids)
        self._input_only = torch.tensor(self.input_only_ids, dtype=torch.long, device=self.device)
        say_if_not_reproducible(self, compile)

    def _prepare(
        self, attention: Attention, strict: bool, source: str | Path | None, on_progress: Progress
    ) -> None:
        file = ProofFile(source, self.model, attention)
        proof = file.read() if self._how in (True, "auto") else None
        test = self._test_structure(attention, on_progress, proof)
        if self._how:
            on_progress("preparing the forward pass")
            self._make_fast(test, proof)
        if strict:
            self._make_strict()
        if proof is None and self.has_own_threads:
            file.write(Proof(self.windows, self.cache_shape, self._has_stable_bits))

    def _test_structure(
        self, attention: Attention, on_progress: Progress, proof: Proof | None
    ) -> SelfTest | None:
        """Switch the attention, and try it against the stock one, if it was not proved before."""
        model = self.model
        with torch.inference_mode(), refusing(type(model).__name__):
            if proof is None:
                on_progress("testing the model")
            test = SelfTest(model) if proof is None else None
            set_attention(model, attention)
            self._attention: str = model.config._attn_implementation
            if test is None:
                assert proof is not None
                self.windows, self.cache_shape = proof.windows, proof.cache_shape
            else:
                self.windows, self.cache_shape = test.windows, measure_cache_shape(model)
            dtype = self.cache_shape.dtype
            self._masks = MaskBuilder(self.windows, self._groups, dtype, self.device)
            if test is not None:
                make, what = partial(test.eager, self), f"{attention!r} attention"
                test.check(make, self.cache_shape, what, self._groups)
        return test

    @property
    def _groups(self) -> int:
        """Query heads that share a KV head, where attention packs them; else 1."""
        if self._attention != ATTENTION_NAME:
            return 1
        heads: int = self.config.num_attention_heads
        return heads // self.cache_shape.num_kv_heads

    @property
    def is_reproducible(self) -> bool:
        """Whether the ids depend on nothing but weights, prompt, parameters and seed.
        In half precision that needs passes whose bits do not depend on their width. In float32 no such
        difference was ever seen in ids.
        """
        return self.dtype not in _HALVES or self._has_stable_bits or self.is_strict

    def _make_fast(self, test: SelfTest | None, proof: Proof | None = None) -> None:
        self._compiled = fast_pass(self, test, self._how)
        self.has_own_threads = isinstance(self._compiled, NativeForward)
        if self.has_own_threads:
            is_loaded("draws")  # top-k and keyed draws; torch takes over until it is
            choose_threads(self._one_token)
        if proof is not None and self.has_own_threads:
            self._has_stable_bits = proof.has_stable_bits
        elif self._compiled is not None and self._compiled.has_own_operators:
            few = test.skip_set if test and self.has_own_threads else None
            self._has_stable_bits = prove_stable_bits(self, few)

    @torch.inference_mode()
    def _one_token(self) -> None:
        self.forward(self.make_cache(1, 1), [[0]], [tree_layout((-1,))])

    def check_unchanged(self) -> None:
        """Before requests begin: see to what was done to the model since it was loaded.

        New weights are tested and packed anew.

        Raises:
            CapabilityError: its attention, dtype or device changed, or it is in training mode.
        """
        self._watch.check()
        if self._watch.has_new_weights() and self._compiled is not None:
            skip_sets, attention = self._compiled.skip_sets, self._attention
            self._compiled = None
            self.model.set_attn_implementation(self._stock_attention)
            with torch.inference_mode():
                test = SelfTest(self.model)
            self.model.set_attn_implementation(attention)
            self._make_fast(test)
            for skip_set in skip_sets:
                self.compile_view(skip_set)

    @property
    def is_compiled(self) -> bool:
        """Whether forward passes run compiled."""
        return self._compiled is not None

    def compile_view(self, skip_set: SkipSet) -> None:
        """Compile the passes that leave out `skip_set`, too, if passes are compiled."""
        try:
            if self._compiled is not None:
                self._compiled.prepare(skip_set)
        except Exception as error:  # noqa: BLE001 - as for the whole model
            warn_of("a view of it without some layers", error)

    def _make_strict(self) -> None:
        if self._compiled is None:
            raise CapabilityError("strict=True needs a model that can be compiled; leave it out")
        if not self._has_stable_bits:
            self.is_strict = True
            with torch.inference_mode():
                check_stable_bits(self)
        self.is_strict = True

    @classmethod
    def from_pretrained(  # noqa: PLR0913 - keywords, each of its own kind
        cls,
        path: str | Path,
        *,
        attention: Attention = "draftless",
        dtype: str | torch.dtype | None = None,
        device: str | torch.device | None = None,
        input_only_ids: Sequence[int] = (),
        compile: Compile = False,
        strict: bool = False,
        int8: bool = False,
        on_progress: Progress = say_nothing,
        **hub_options: Any,
    ) -> TargetModel:
        """Load a checkpoint folder, hub id or GGUF file; with `int8` its weights are rounded (`int8.py`).
        `hub_options` (`revision`, `token`, ...) go to `transformers` as they are.

        Raises:
            ArtifactError: if it cannot be read.
            CapabilityError: if exact tree decoding cannot work with it; checked before loading
                weights where the configuration tells.
        """
        on_progress("loading weights")
        begin_building()
        model = load_stock(path, dtype, device, hub_options)
        how: dict[str, Any] = {"input_only_ids": input_only_ids, "strict": strict, "source": path}
        if int8:
            round_to_int8(model)
            compile = "inductor" if compile is True else compile  # whose pieces keep int8 in memory
            how["source"] = None  # these are other weights
        return cls(model, attention, compile=compile, on_progress=on_progress, **how)

    def make_cache(self, num_rows: int, num_slots: int) -> KVCache:
        """An empty cache with room for `num_slots` slots a row."""
        return KVCache(self.cache_shape, num_rows, num_slots)

    def tree_pass(self, cache: KVCache, token_ids: Sequence[int], layout: TreeLayout) -> TreePass:
        """A pass over one tree of the first row."""
        return TreePass(cache, slice(0, 1), [token_ids], [layout], self._masks)

    def fingerprint(self) -> str:
        """A hash of the weights' names, shapes and some values; the same in any floating dtype."""
        return fingerprint(self.model)

    def prefill(self, cache: KVCache, row: int, token_ids: Sequence[int]) -> Prefill:
        """Cache a prompt (all but its last token), in chunks and without the language-model head."""
        is_inductor = self.is_compiled and not isinstance(self._compiled, NativeForward)
        size = _COMPILED_CHUNK if is_inductor and self.device.type == "cpu" else _PREFILL_CHUNK
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
        """What the head would read of one row's next tokens."""
        chain = tree_layout(chain_parents(len(token_ids)))
        tree_pass = TreePass(cache, row, [token_ids], [chain], self._masks)
        hidden = self._compiled.hidden(tree_pass) if self._compiled is not None else None
        if hidden is None:
            hidden = self.model.base_model(**self.keywords(tree_pass)).last_hidden_state
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
            Per row `[N, V]` logits of its nodes in the model's dtype; ids for input only have -inf.

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
        logits: torch.Tensor = self.view_of(skip_set)(**self.keywords(tree_pass)).logits
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

    def view_of(self, skip_set: SkipSet | None) -> Any:
        """The model without a skip set's sub-layers."""
        return self.model if skip_set is None else self._skip_views(skip_set)

    @cached_property
    def _skip_views(self) -> SkipViews:
        return SkipViews(self.model)

    def keywords(self, tree_pass: TreePass) -> dict[str, Any]:
        """How the `transformers` model is told of a pass."""
        return tree_pass.keywords(self._cache_keyword)
