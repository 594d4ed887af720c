"""What is tried when a model is loaded: every planted defect is found, and no right model is refused."""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import cache
from itertools import pairwise
from typing import Any

import pytest
import torch
import transformers as hf
from transformers import PreTrainedModel

from draftless.engine import masks as masks_module
from draftless.engine.cpu import lower
from draftless.engine.cpu.forward import NativeForward
from draftless.engine.cpu.program import PackedWeight, Program
from draftless.engine.load import Compile
from draftless.engine.masks import MaskBuilder
from draftless.engine.target import TargetModel
from draftless.engine.tree_pass import TreePass
from draftless.errors import CapabilityError
from draftless.layout import TreeLayout, chain_parents, tree_layout
from support.models import FAMILIES, VOCAB_SIZE, build_model, prompt_ids, stock_model
from support.outliers import plant_outliers

OUTLIERS = ("llama", "qwen2", "mistral", "phi3", "gemma2", "gemma3")
Patch = pytest.MonkeyPatch


@cache
def stock_with_outliers(family: str) -> PreTrainedModel:
    return plant_outliers(build_model(FAMILIES[family].config(), "fp32"))


def with_outliers(family: str, dtype: torch.dtype = torch.bfloat16) -> PreTrainedModel:
    return copy.deepcopy(stock_with_outliers(family)).to(dtype)


def refused(model: PreTrainedModel, compile: Compile, match: str = "gives other logits") -> None:
    attention = model.config._attn_implementation
    with pytest.raises(CapabilityError, match=match):
        TargetModel(model, compile=compile)
    assert model.config._attn_implementation == attention, "a refused model stays what it was"


# --- nothing right is refused ------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loads(family: str, dtype: torch.dtype) -> None:
    loaded(copy.deepcopy(stock_model(family, "fp32")).to(dtype), dtype)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("family", OUTLIERS)
def test_every_family_loads_with_outliers(family: str, dtype: torch.dtype) -> None:
    loaded(with_outliers(family, dtype), dtype)


def loaded(model: PreTrainedModel, dtype: torch.dtype) -> None:
    attentions = FAMILIES.get(model.config.model_type, FAMILIES["llama"]).attentions
    for attention in attentions:
        TargetModel(copy.deepcopy(model), attention)
    target = TargetModel(model, compile="auto")
    assert isinstance(target._compiled, NativeForward) == (dtype != torch.float64)
    assert target.is_reproducible


def test_a_mixture_of_experts_loads_in_bfloat16() -> None:
    """Its code reads views of weights, which are widened only when something is computed."""
    config = hf.MixtralConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, num_local_experts=4, num_experts_per_tok=2,
        initializer_range=0.3, bos_token_id=None, eos_token_id=None,
    )  # fmt: skip
    target = TargetModel(build_model(config, "bf16"), compile="auto")
    assert not target.is_compiled
    assert not target.is_reproducible


@torch.inference_mode()
def test_what_lies_between_the_hidden_states_and_the_head_runs_natively() -> None:
    config = hf.ModernBertDecoderConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=4,
        num_attention_heads=4, initializer_range=0.3, local_attention=16,
        pad_token_id=0, bos_token_id=1, eos_token_id=2, cls_token_id=1, sep_token_id=2,
    )  # fmt: skip
    torch.manual_seed(0)
    model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").eval()
    ids = prompt_ids(40)
    wanted = model(torch.tensor([ids])).logits[0]
    target = TargetModel(model, compile=True)
    assert isinstance(target._compiled, NativeForward)
    cache = target.make_cache(1, 64)
    found = target.forward(cache, [ids], [tree_layout(chain_parents(40))])[0]
    torch.testing.assert_close(found, wanted, atol=1e-3, rtol=1e-3)


# --- windows -----------------------------------------------------------------------------------


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@torch.inference_mode()
def test_a_window_that_the_code_ignores_is_none(dtype: torch.dtype, compile: bool) -> None:
    """A Llama configuration may hold one; the model's own code then sees everything."""
    config = copy.deepcopy(stock_model("llama", "fp32").config)
    config.sliding_window = 8
    model = build_model(config, "fp32")
    ids = prompt_ids(40)
    wanted = model(torch.tensor([ids])).logits[0]
    target = TargetModel(model.to(dtype), compile=compile)
    assert set(target.windows.values()) == {None}
    cache = target.make_cache(1, 64)
    target.prefill(cache, 0, ids[:30])
    found = target.forward(cache, [ids[30:]], [tree_layout(chain_parents(10))])[0].float()
    near = 0.01 if dtype == torch.float32 else 0.2
    assert (found - wanted[30:]).abs().max() < near * wanted.std()


def window_off_by(more: int) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        within = masks_module._within
        patch.setattr(masks_module, "_within", lambda window, *rest: within(window + more, *rest))
        patch.setattr(
            TreePass,
            "windows",
            property(lambda self: [w and w + more for w in self._masks.windows]),
        )

    return plant


def window_ignored(patch: Patch) -> None:
    window_off_by(1 << 20)(patch)


def window_everywhere(patch: Patch) -> None:
    """Also on the layers that see everything."""
    init = MaskBuilder.__init__

    def narrow(self: MaskBuilder, windows: dict[str, int | None], *rest: Any) -> None:
        init(self, {kind: max(w or 0 for w in windows.values()) for kind in windows}, *rest)

    patch.setattr(MaskBuilder, "__init__", narrow)


@pytest.mark.parametrize("compile", [False, True])
@pytest.mark.parametrize("family", ["mistral", "gemma2", "gemma3"])
@pytest.mark.parametrize(
    "plant", [window_off_by(1), window_off_by(-1), window_ignored], ids=["+1", "-1", "none"]
)
def test_another_window_is_found(
    plant: Callable[[Patch], None], family: str, compile: bool, monkeypatch: Patch
) -> None:
    model = with_outliers(family)
    if compile:  # the defect is in the native pass alone
        only_natively(plant, monkeypatch)
    else:
        plant(monkeypatch)
    refused(model, compile, "native forward pass" if compile else "'draftless' attention")


def only_natively(plant: Callable[[Patch], None], patch: Patch) -> None:
    """Plant a defect that is there while a native pass runs."""
    run = Program.__call__

    def spoiled(self: Program, tree_pass: TreePass) -> torch.Tensor:
        with patch.context() as inner:
            plant(inner)
            return run(self, tree_pass)

    patch.setattr(Program, "__call__", spoiled)


@pytest.mark.parametrize("family", ["gemma2", "gemma3"])
def test_a_window_on_the_wrong_layers_is_found(family: str, monkeypatch: Patch) -> None:
    window_everywhere(monkeypatch)
    refused(with_outliers(family), False)


def test_a_window_that_nobody_asked_about_is_found(monkeypatch: Patch) -> None:
    """Where the code ignores the window and we would not."""
    model = with_outliers("llama")
    init = MaskBuilder.__init__

    def narrow(self: MaskBuilder, windows: dict[str, int | None], *rest: Any) -> None:
        init(self, dict.fromkeys(windows, 8), *rest)

    monkeypatch.setattr(MaskBuilder, "__init__", narrow)
    refused(model, False)


# --- positions and trees -----------------------------------------------------------------------


def shifted_after_the_root(patch: Patch) -> None:
    """Nodes stand one place too far from what is cached."""
    layout = TreePass.tensors.func  # type: ignore[attr-defined]

    def shifted(self: TreePass) -> tuple[torch.Tensor, torch.Tensor]:
        token_ids, positions = layout(self)
        return token_ids, positions + (positions > min(self.lengths))

    patch.setattr(TreePass, "tensors", property(shifted))


def shifted_after_the_cache(patch: Patch) -> None:
    layout = TreePass.tensors.func  # type: ignore[attr-defined]

    def shifted(self: TreePass) -> tuple[torch.Tensor, torch.Tensor]:
        token_ids, positions = layout(self)
        return token_ids, positions + (min(self.lengths) > 0)

    patch.setattr(TreePass, "tensors", property(shifted))


def places_instead_of_depths(patch: Patch) -> None:
    """A node's position is its number, as if a tree were a text."""
    layout = TreePass.tensors.func  # type: ignore[attr-defined]

    def shifted(self: TreePass) -> tuple[torch.Tensor, torch.Tensor]:
        token_ids, positions = layout(self)
        return token_ids, positions[:, :1] + torch.arange(positions.shape[1])

    patch.setattr(TreePass, "tensors", property(shifted))


def visible_sibling(patch: Patch) -> None:
    """Every node sees the sibling before it."""
    of_tree = MaskBuilder._of_tree
    visible = masks_module._visible

    def opened(layout: TreeLayout) -> torch.Tensor:
        seen = layout.mask.clone()
        for siblings in layout.children:
            for before, node in pairwise(siblings):
                seen[node, before] = True
        return seen

    def spoiled_tree(self: MaskBuilder, parents: tuple[int, ...]) -> torch.Tensor:
        found = of_tree(self, parents)
        hidden = ~opened(tree_layout(parents))
        additive = torch.zeros(hidden.shape, dtype=found.dtype).masked_fill_(hidden, -torch.inf)
        return masks_module.pack_mask(additive[None, None], self._groups)

    def spoiled(
        lengths: Sequence[int], layouts: Sequence[TreeLayout], width: int, context: int
    ) -> torch.Tensor:
        layouts = [replace(layout, mask=opened(layout)) for layout in layouts]
        return visible(lengths, layouts, width, context)

    patch.setattr(MaskBuilder, "_of_tree", spoiled_tree)
    patch.setattr(masks_module, "_visible", spoiled)


@pytest.mark.parametrize("family", OUTLIERS)
@pytest.mark.parametrize(
    "plant",
    [shifted_after_the_root, shifted_after_the_cache, places_instead_of_depths, visible_sibling],
)
def test_other_positions_or_neighbours_are_found(
    plant: Callable[[Patch], None], family: str, monkeypatch: Patch
) -> None:
    plant(monkeypatch)
    refused(with_outliers(family), False)


def another_parent(layout: TreeLayout) -> TreeLayout:
    """The tree with one node below its sibling: which it then sees, from one place further."""
    for siblings in layout.children:
        if len(siblings) > 1:
            parents = list(layout.parents)
            parents[siblings[1]] = siblings[0]
            return tree_layout(tuple(parents))
    return layout


def one_cached_token_less(self: TreePass) -> None:
    self.lengths = [max(0, length - 1) for length in self.lengths]


@pytest.mark.parametrize("family", OUTLIERS)
@pytest.mark.parametrize("defect", ["sibling", "length"])
def test_the_native_pass_is_tried_with_trees_and_a_cache(
    defect: str, family: str, monkeypatch: Patch
) -> None:
    run = Program.__call__

    def spoiled(self: Program, tree_pass: TreePass) -> torch.Tensor:
        if defect == "sibling":
            tree_pass.layouts = [another_parent(layout) for layout in tree_pass.layouts]
        else:
            one_cached_token_less(tree_pass)
        return run(self, tree_pass)

    monkeypatch.setattr(Program, "__call__", spoiled)
    refused(with_outliers(family), True, "with the native forward pass")


# --- attention of another kind -----------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
def test_attention_sinks_are_missed(dtype: torch.dtype) -> None:
    """GPT-OSS gives its sinks to the attention, which ours does not know."""
    config = hf.GptOssConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, intermediate_size=48, num_hidden_layers=2,
        num_attention_heads=4, num_key_value_heads=2, head_dim=8, num_local_experts=4,
        num_experts_per_tok=2, sliding_window=8, initializer_range=0.3, bos_token_id=None,
        eos_token_id=None, pad_token_id=None, rope_parameters={"rope_type": "default", "rope_theta": 1e4},
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager")
    model = model.to(dtype).eval()
    refused(copy.deepcopy(model), "auto", "of a text with 'draftless' attention")
    target = TargetModel(model, "eager", compile="auto")
    assert not target.is_compiled


@pytest.mark.parametrize(
    "config",
    [
        hf.BloomConfig(vocab_size=VOCAB_SIZE, hidden_size=32, n_layer=2, n_head=4),
        hf.FalconConfig(
            vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4, alibi=True
        ),
        hf.MptConfig(vocab_size=VOCAB_SIZE, d_model=32, n_layers=2, n_heads=4),
    ],
    ids=lambda config: config.model_type,
)  # fmt: skip
def test_alibi_is_refused(config: Any) -> None:
    """These add distances to the scores by themselves, and not through the attention interface."""
    model = hf.AutoModelForCausalLM.from_config(config).eval()
    refused(model, "auto", "does not use transformers' attention interface")


# --- what the native pass computes -------------------------------------------------------------


def other_weights(
    change: Callable[[list[torch.Tensor], list[torch.Tensor | None]], Any],
) -> Callable[[Patch], None]:
    def plant(patch: Patch) -> None:
        init = PackedWeight.__init__

        def spoiled(self: PackedWeight, weights: Any, biases: Any, *rest: Any) -> None:
            init(self, *change(list(weights), list(biases)), *rest)

        patch.setattr(PackedWeight, "__init__", spoiled)

    return plant


def other_operator(name: str, instead: str) -> Callable[[Patch], None]:
    return lambda patch: patch.setitem(lower._UNARY, name, instead)


NATIVE_DEFECTS = {
    "weight order": other_weights(lambda weights, biases: (weights[::-1], biases[::-1])),
    "bias": other_weights(lambda weights, biases: (weights, [None] * len(biases))),
    "rope": other_operator("sin", "cos"),
    "rope direction": other_operator("neg", "abs"),
    "soft cap of the logits": other_operator("tanh", "sigmoid"),
}
CASES = [
    (name, family)
    for name in NATIVE_DEFECTS
    for family in OUTLIERS
    if name != "bias" or family == "qwen2"  # others have none
    if name != "soft cap of the logits" or family == "gemma2"
    if name != "weight order" or family != "phi3"  # which has one weight for all
]


@pytest.mark.parametrize(("name", "family"), CASES)
def test_a_wrong_native_pass_is_found(name: str, family: str, monkeypatch: Patch) -> None:
    NATIVE_DEFECTS[name](monkeypatch)
    refused(with_outliers(family), True, "logits .* with the native forward pass")


@pytest.mark.parametrize("family", OUTLIERS)
def test_weights_that_are_wrong_in_half_precision_alone_are_found(
    family: str, monkeypatch: Patch
) -> None:
    """What float32 passes cannot show."""
    pack = NativeForward._pack

    def spoiled(self: NativeForward, weights: Any, biases: Any, dtype: Any) -> PackedWeight:
        return pack(self, [weight.flip(0) for weight in weights], biases, dtype)

    monkeypatch.setattr(NativeForward, "_pack", spoiled)
    refused(with_outliers(family), True, "with the native forward pass are off by")
