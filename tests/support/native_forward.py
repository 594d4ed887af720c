"""Drives the native forward pass without the rest of the engine, whole models and single functions."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import pytest
import torch
import transformers as hf
from transformers import PreTrainedConfig, PreTrainedModel

from draftless.engine.attention import register_attention
from draftless.engine.build import NoCompiler
from draftless.engine.cache import CacheShape, KVCache
from draftless.engine.cpu.forward import NativeForward
from draftless.engine.cpu.library import library
from draftless.engine.cpu.lower import Lowering
from draftless.engine.cpu.program import PackedWeight, Program
from draftless.engine.cpu.record import NUM_TOKENS, Recording, _Recorder
from draftless.engine.masks import MaskBuilder, layer_windows
from draftless.engine.skip_view import SkipViews
from draftless.engine.tree_pass import TreePass
from draftless.layout import EMPTY_LAYOUT, chain_parents, tree_layout
from draftless.skip_set import SkipSet
from support.models import FAMILIES, VOCAB_SIZE

F = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
"""Of embedded tokens and positions."""

ROWS = 30
"""Of a table of embeddings."""

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}

_SIZES = {
    "vocab_size": VOCAB_SIZE, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "bos_token_id": None, "eos_token_id": None, "pad_token_id": None,
}  # fmt: skip
_GROUPED = {**_SIZES, "num_key_value_heads": 2}
_GPT = {
    "vocab_size": VOCAB_SIZE, "n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512,
    "bos_token_id": None, "eos_token_id": None,
}  # fmt: skip
_OPT = {key: size for key, size in _SIZES.items() if key != "intermediate_size"}

MORE: dict[str, Callable[[], PreTrainedConfig]] = {
    "gpt2": lambda: hf.GPT2Config(**_GPT),
    "opt": lambda: hf.OPTConfig(**_OPT, ffn_dim=48, word_embed_proj_dim=32),
    "cohere": lambda: hf.CohereConfig(**_SIZES, logit_scale=1.0),
    "glm": lambda: hf.GlmConfig(**_GROUPED, head_dim=8),
    "granite": lambda: hf.GraniteConfig(
        **_SIZES, attention_multiplier=0.3, residual_multiplier=0.7
    ),
    "phi": lambda: hf.PhiConfig(**_SIZES),
    "stablelm": lambda: hf.StableLmConfig(**_GROUPED),
    "starcoder2": lambda: hf.Starcoder2Config(**_GROUPED),
    "nemotron": lambda: hf.NemotronConfig(**_GROUPED, head_dim=8),
    "ernie4_5": lambda: hf.Ernie4_5Config(**_GROUPED, head_dim=8),
    "smollm3": lambda: hf.SmolLM3Config(**_GROUPED),
}
REFUSED: dict[str, Callable[[], PreTrainedConfig]] = {
    "gptj": lambda: hf.GPTJConfig(**_GPT, rotary_dim=4),
    "qwen3_moe": lambda: hf.Qwen3MoeConfig(
        **_GROUPED, moe_intermediate_size=32, num_experts=4, num_experts_per_tok=2, head_dim=8
    ),
}
CONFIGS = {**{name: family.config for name, family in FAMILIES.items()}, **MORE}
NAMES = tuple(CONFIGS)


def skip_without_compiler() -> None:
    try:
        library()
    except NoCompiler as error:
        pytest.skip(str(error))


def tokens(length: int, seed: int = 0) -> list[int]:
    generator = torch.Generator().manual_seed(seed)
    return torch.randint(VOCAB_SIZE, (length,), generator=generator).tolist()


@cache
def stock(name: str, dtype: str) -> PreTrainedModel:
    """A random model with its own attention. Its bf16 weights are those of fp32, rounded."""
    config = {**CONFIGS, **REFUSED}[name]()
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        torch.manual_seed(0)
        model = hf.AutoModelForCausalLM.from_config(config, attn_implementation="eager").float()
        for parameter in model.parameters():
            parameter.data += 0.2 * torch.randn_like(parameter)
            parameter.data = parameter.data.bfloat16().float()
    return model.to(DTYPES[dtype]).eval()


def stock_logits(name: str, dtype: str, ids: Sequence[int]) -> torch.Tensor:  # [M, V] float32
    with torch.inference_mode():
        return stock(name, dtype)(torch.tensor([ids]), use_cache=False).logits[0].float()


class Native:
    """A native forward pass of a copy of a stock model."""

    def __init__(self, name: str, dtype: str) -> None:
        import copy

        skip_without_compiler()
        register_attention()
        self.dtype = DTYPES[dtype]
        self.model = copy.deepcopy(stock(name, dtype))
        self.model.set_attn_implementation("draftless")
        self.config = self.model.config.get_text_config()
        self.windows = layer_windows(self.config)
        self.num_layers = self.config.num_hidden_layers
        heads = self.config.num_attention_heads
        self.kv_heads = getattr(self.config, "num_key_value_heads", None) or heads
        size = getattr(self.config, "head_dim", None)
        self.head_dim = size or self.config.hidden_size // heads
        views: SkipViews | None = None

        def view_of(skip_set: SkipSet | None) -> PreTrainedModel:
            nonlocal views
            if skip_set is None:
                return self.model
            views = views or SkipViews(self.model)
            return views(skip_set)

        self.forward = NativeForward(view_of, list(self.windows), self.num_layers, self.dtype)
        self.forward.prepare()

    def cache(self, num_rows: int = 1, capacity: int = 128) -> KVCache:
        device = torch.device("cpu")
        shape = CacheShape(self.num_layers, self.kv_heads, self.head_dim, self.dtype, device)
        return KVCache(shape, num_rows, capacity)

    def tree_pass(
        self,
        cache: KVCache,
        ids: Sequence[Sequence[int]],
        parents: Sequence[tuple[int, ...]] | None = None,
    ) -> TreePass:
        """Of all rows; chains unless parents are given."""
        parents = parents or [chain_parents(len(row)) for row in ids]
        masks = MaskBuilder(self.windows, self.config.num_attention_heads // self.kv_heads,
                            self.dtype, torch.device("cpu"))  # fmt: skip
        layouts = [tree_layout(one) if one else EMPTY_LAYOUT for one in parents]
        return TreePass(cache, slice(0, len(ids)), ids, layouts, masks)

    def run(
        self,
        cache: KVCache,
        ids: Sequence[Sequence[int]],
        parents: Sequence[tuple[int, ...]] | None = None,
        skip_set: SkipSet | None = None,
    ) -> torch.Tensor:  # [R, W, V]
        with torch.inference_mode():
            tree_pass = self.tree_pass(cache, ids, parents)
            return self.forward(skip_set, tree_pass).reshape(len(ids), tree_pass.width, -1)

    def one_by_one(
        self, ids: Sequence[int], skip_set: SkipSet | None = None
    ) -> torch.Tensor:  # [M, V]
        """Plain decoding."""
        cache, found = self.cache(), []
        for one in ids:
            found.append(self.run(cache, [[one]], skip_set=skip_set)[0, 0])
            cache.commit(0, [0])
        return torch.stack(found)


@cache
def native(name: str, dtype: str) -> Native:
    return Native(name, dtype)


def recorded(
    function: Callable[..., torch.Tensor], table: torch.Tensor, num_tokens: int = NUM_TOKENS
) -> Recording:
    """What a function of embedded tokens `[1, M, D]` (and of positions `[1, M]`) does to them."""
    recorder = _Recorder()
    token_ids = torch.zeros((1, num_tokens), dtype=torch.long)
    positions = torch.arange(num_tokens)[None]
    with torch.inference_mode(), recorder:
        x = torch.nn.functional.embedding(token_ids, table)
        logits = function(x, positions)
    return Recording(recorder.calls, token_ids, positions, logits, logits)


@dataclass
class Function:
    """A function of embedded tokens, lowered. The result is `[1, M, N]`, made by its last operator."""

    function: Callable[..., torch.Tensor]
    table: torch.Tensor
    program: Program = field(init=False)

    def __post_init__(self) -> None:
        skip_without_compiler()
        dtype = self.table.dtype
        lowering = Lowering(recorded(self.function, self.table), dtype)

        def pack(
            weights: Sequence[torch.Tensor],
            biases: Sequence[torch.Tensor | None],
            dtype: torch.dtype,
        ) -> PackedWeight:
            return PackedWeight(weights, biases, dtype, aligned)

        self.program = Program(lowering, dtype, pack, lowering.logits)

    def __call__(self, ids: Sequence[int]) -> torch.Tensor:  # [M, N]
        device = torch.device("cpu")
        cache = KVCache(CacheShape(1, 1, 8, self.table.dtype, device), 1, 64)
        masks = MaskBuilder({"full": None}, 1, self.table.dtype, device)
        layout = tree_layout(chain_parents(len(ids)))
        return self.program(TreePass(cache, slice(0, 1), [ids], [layout], masks))

    def by_torch(self, ids: Sequence[int]) -> torch.Tensor:  # [M, N]
        with torch.inference_mode():
            x = torch.nn.functional.embedding(torch.tensor([ids]), self.table)
            return self.function(x, torch.arange(len(ids))[None])[0]


def aligned(size: int) -> torch.Tensor:  # [size] uint8, 64-byte aligned zeros
    memory = torch.zeros(size + 64, dtype=torch.uint8)
    first = -memory.data_ptr() % 64
    return memory[first : first + size]


def table_of(size: int, dtype: str, scale: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(size)
    return (scale * torch.randn(ROWS, size, generator=generator)).to(DTYPES[dtype])


def flat(x: torch.Tensor) -> torch.Tensor:
    """`[1, M, N]` by an operator of its own that changes nothing."""
    return x.reshape(1, x.shape[1], -1) * 1.0


def check(function: F, table: torch.Tensor, *, exact: bool = False, steps: float = 1.01) -> None:
    """As torch's, to some units in the last place; NaN and infinities where torch has them."""
    ids = [3, 0, 7, 7, ROWS - 1, *range(8, 16)]
    made = Function(lambda x, positions: flat(function(x, positions)), table)
    found, expected = made(ids), made.by_torch(ids)
    assert found.shape == expected.shape
    assert torch.equal(made(ids[2:3])[0].view(torch.uint8), made(ids[3:4])[0].view(torch.uint8))
    assert torch.equal(found.isnan(), expected.isnan())
    found, expected = found.nan_to_num(0.0).float(), expected.nan_to_num(0.0).float()
    if exact:
        assert torch.equal(found, expected)
        return
    unit = 2**-8 if table.dtype == torch.bfloat16 else 4 * 2**-24
    assert ((found - expected).abs() <= steps * unit * expected.abs() + 1e-36).all()
