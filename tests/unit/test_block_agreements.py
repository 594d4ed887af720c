"""Blocks beside a sequence never touch it, and see what decoding sees: every dtype, mask and layout."""

from __future__ import annotations

from functools import cache
from typing import Literal

import pytest
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from draftless.training.adaptive import AdaptivePlanner, AdaptiveSettings
from draftless.training.draft_collator import Batch, DraftCollator
from draftless.training.noise_runs import NoisePlanner, NoiseSettings
from draftless.training.packing import PaddingCollator, pack_documents

PAD = 2
VOCAB_SIZE = 64
SPECIAL = frozenset({0, 1, PAD})
DTYPES = {"fp32": torch.float32, "fp64": torch.float64, "bf16": torch.bfloat16}
Kind = Literal["noise", "adaptive", "both"]

LAYOUTS = pytest.mark.parametrize("is_packed", [False, True], ids=["padded", "packed"])
ATTENTIONS = pytest.mark.parametrize("attention", ["sdpa", "eager"])
KINDS = pytest.mark.parametrize("kind", ["noise", "adaptive", "both"])


@cache
def model(dtype: torch.dtype, attention: str) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE, hidden_size=32, num_hidden_layers=2, num_attention_heads=4,
        num_key_value_heads=2, intermediate_size=48, initializer_range=0.3,
    )  # fmt: skip
    with torch.random.fork_rng():
        torch.manual_seed(0)
        made = LlamaForCausalLM(config)
    made.set_attn_implementation(attention)
    return made.to(dtype).eval()


def documents() -> list[dict[str, list[int]]]:
    """Longest first, which is also how they are packed."""
    generator = torch.Generator().manual_seed(1)
    made = []
    for length in (30, 23, 17):
        ids = torch.randint(3, VOCAB_SIZE - 3, (length,), generator=generator).tolist()
        made.append({"input_ids": ids, "labels": [-100] * 6 + ids[6:]})
    return made


def collator(kind: Kind, mask_dtype: torch.dtype | None = None) -> DraftCollator:
    noise = NoisePlanner(NoiseSettings(mode="branch", spacing=3), SPECIAL)
    adaptive = AdaptivePlanner(AdaptiveSettings((61, 62, 63), block_length=3, spacing=4))
    return DraftCollator(
        PaddingCollator(PAD),
        noise if kind != "adaptive" else None,
        PAD,
        adaptive if kind != "noise" else None,
        mask_dtype=mask_dtype,
        adds_places=True,
    )


def make_batch(made: DraftCollator, is_packed: bool) -> Batch:
    return made(pack_documents(documents(), 100) if is_packed else documents())


@torch.no_grad()
def logits_of(made: LlamaForCausalLM, batch: Batch) -> torch.Tensor:  # [B, N, V]
    names = ("input_ids", "position_ids", "attention_mask")
    return made(**{name: batch[name] for name in names}, use_cache=False).logits


def spans(batch: Batch, is_packed: bool) -> list[tuple[int, int, int]]:
    """Row, begin and end of the standard tokens of every document."""
    lengths = [len(document["input_ids"]) for document in documents()]
    begins = [sum(lengths[:number]) if is_packed else 0 for number in range(len(lengths))]
    found = [
        (0 if is_packed else number, begin, begin + length)
        for number, (begin, length) in enumerate(zip(begins, lengths, strict=True))
    ]
    for (row, begin, end), document in zip(found, documents(), strict=True):
        assert batch["input_ids"][row, begin:end].tolist() == document["input_ids"]
    return found


@pytest.mark.parametrize("dtype", DTYPES)
@ATTENTIONS
@LAYOUTS
def test_the_contents_of_blocks_change_no_bit_of_the_standard_logits(
    dtype: str, attention: str, is_packed: bool
) -> None:
    of_dtype = DTYPES[dtype]
    made = model(of_dtype, attention)
    batch = make_batch(collator("both", of_dtype if attention == "eager" else None), is_packed)
    is_block = batch["block_depths"] > 0
    assert is_block.sum() > 40
    other = batch["input_ids"].clone()
    other[is_block] = (other[is_block] * 7 + 5) % VOCAB_SIZE
    logits, changed = (
        logits_of(made, {**batch, "input_ids": i}) for i in (batch["input_ids"], other)
    )
    for row, begin, end in spans(batch, is_packed):
        assert torch.equal(logits[row, begin:end], changed[row, begin:end])
    assert not torch.equal(logits[is_block], changed[is_block])  # they are seen by their own block


@pytest.mark.parametrize("dtype", ["fp32", "fp64"])
@ATTENTIONS
@LAYOUTS
@KINDS
def test_with_and_without_blocks_agree_and_blocks_see_what_decoding_sees(
    kind: Kind, dtype: str, attention: str, is_packed: bool
) -> None:
    of_dtype = DTYPES[dtype]
    made = model(of_dtype, attention)
    blocks = collator(kind, of_dtype if attention == "eager" else None)
    batch = make_batch(blocks, is_packed)
    logits = logits_of(made, batch)

    def check(found: torch.Tensor, ids: list[int], begin: int) -> None:
        with torch.no_grad():
            alone = made(input_ids=torch.tensor([ids])).logits[0, begin:]
        # The stock eager attention has its softmax in fp32, whatever the dtype.
        is_double = dtype == "fp64" and attention == "sdpa"
        limit = 1e-10 if is_double else 1e-4 * float(alone.abs().max())
        assert (found - alone).abs().max() < limit

    num_blocks = 0
    places = spans(batch, is_packed)
    block_begin = places[-1][2]  # packed: behind all documents
    for (row, begin, end), document in zip(places, documents(), strict=True):
        ids = document["input_ids"]
        check(logits[row, begin:end], ids, 0)
        block_begin = block_begin if is_packed else end
        for run in blocks.plan(ids, document["labels"]):
            length = len(run.token_ids)
            context = [*ids[: run.start], *run.token_ids]
            check(logits[row, block_begin : block_begin + length], context, run.start)
            block_begin += length
            num_blocks += 1
    assert num_blocks >= 8


def test_a_block_does_not_see_another_one() -> None:
    made = model(torch.float64, "sdpa")
    batch = make_batch(collator("both"), is_packed=True)
    depths = batch["block_depths"][0]
    starts = (depths == 1).nonzero().flatten().tolist()
    first = torch.zeros_like(depths, dtype=torch.bool)
    first[starts[0] : starts[1]] = True
    other = batch["input_ids"].clone()
    other[0, first] = 40
    logits, changed = (
        logits_of(made, {**batch, "input_ids": i}) for i in (batch["input_ids"], other)
    )
    assert torch.equal(logits[0, ~first], changed[0, ~first])
