"""Adaptive tokens of a model: rows at the mean, ids that no text makes and no decoding emits."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from draftless import Draftless
from draftless.errors import ConfigError
from draftless.manifest import Manifest, write_manifest
from draftless.training.adaptive_tokens import (
    add_adaptive_tokens,
    suppress_in_generation,
    take_unassigned,
    unassigned_ids,
)
from support.tokenizer import small_tokenizer
from support.training import write_model

TIED = pytest.mark.parametrize("is_tied", [False, True], ids=["untied", "tied"])
PROMPTS = ([0, 40, 41, 42], [0, 90, 8, 77, 120, 33], [0, 200])


def load(folder: Path) -> LlamaForCausalLM:
    return AutoModelForCausalLM.from_pretrained(folder)


def tables(model: LlamaForCausalLM) -> tuple[torch.Tensor, torch.Tensor]:
    head = model.get_output_embeddings()
    assert head is not None
    return model.get_input_embeddings().weight.detach(), head.weight.detach()


@TIED
def test_new_rows_are_the_mean_of_the_others_which_stay(tmp_path: Path, is_tied: bool) -> None:
    model = load(write_model(tmp_path, is_tied=is_tied))
    before = [table.clone() for table in tables(model)]
    size = len(before[0])
    with torch.no_grad():
        before_logits = model(torch.tensor([PROMPTS[0]])).logits
    assert add_adaptive_tokens(model, 2) == (size, size + 1)
    for old, new in zip(before, tables(model), strict=True):
        assert torch.equal(new[:size], old)
        torch.testing.assert_close(new[size:], old.mean(0).expand(2, -1))
    embedding, head = tables(model)
    assert (embedding.data_ptr() == head.data_ptr()) == is_tied
    assert model.config.vocab_size == size + 2
    with torch.no_grad():
        logits = model(torch.tensor([PROMPTS[0]])).logits
    torch.testing.assert_close(logits[..., :size], before_logits)


def test_new_ids_lie_above_those_of_a_tokenizer_that_is_longer_than_the_embedding(
    tmp_path: Path,
) -> None:
    """As that of Gemma 3, whose last token has no row."""
    model = load(write_model(tmp_path))
    tokenizer = copy.deepcopy(small_tokenizer())
    size = len(tables(model)[0])
    tokenizer.add_tokens(["<extra>", "<more>"])
    assert add_adaptive_tokens(model, 1, tokenizer) == (size + 2,)
    assert size + 2 not in tokenizer.get_vocab().values()
    for table in tables(model):
        torch.testing.assert_close(table[size:], table[:size].mean(0).expand(3, -1))


@TIED
def test_a_grown_model_survives_saving(tmp_path: Path, is_tied: bool) -> None:
    model = load(write_model(tmp_path / "model", is_tied=is_tied))
    ids = add_adaptive_tokens(model, 1)
    suppress_in_generation(model, ids)
    model.save_pretrained(tmp_path / "grown")
    again = load(tmp_path / "grown")
    assert again.config.vocab_size == ids[0] + 1
    assert again.config.tie_word_embeddings == is_tied
    for old, new in zip(tables(model), tables(again), strict=True):
        assert torch.equal(old, new)
    assert again.generation_config.suppress_tokens == list(ids)


@TIED
def test_unassigned_ids_start_at_the_mean_and_an_untied_head_stays(
    tmp_path: Path, is_tied: bool
) -> None:
    model = load(write_model(tmp_path, is_tied=is_tied, num_spare=7))
    tokenizer = small_tokenizer()
    size = len(tokenizer)
    assert unassigned_ids(model, tokenizer) == list(range(size, size + 7))
    before = [table.clone() for table in tables(model)]
    taken = (size + 2, size + 5)
    assert take_unassigned(model, tokenizer, taken) == taken
    others = [i for i in range(size + 7) if i not in taken]
    embedding, head = tables(model)
    assert model.config.vocab_size == len(embedding) == size + 7
    assert torch.equal(embedding[others], before[0][others])
    torch.testing.assert_close(embedding[list(taken)], before[0][others].mean(0).expand(2, -1))
    assert torch.equal(head, embedding if is_tied else before[1])


@pytest.mark.parametrize("num_spare", [0, 3])
def test_an_id_that_is_not_free_is_refused_with_a_way_out(tmp_path: Path, num_spare: int) -> None:
    model = load(write_model(tmp_path, num_spare=num_spare))
    tokenizer = small_tokenizer()
    size = len(tokenizer)
    free = f"free are {size}, {size + 1}, {size + 2}" if num_spare else "none is free"
    before = tables(model)[0].clone()
    for bad in (0, 45, size + num_spare, -1):
        message = f"id {bad} cannot be an adaptive token.*{free}; leave --adaptive-ids out"
        with pytest.raises(ConfigError, match=message):
            take_unassigned(model, tokenizer, (bad,))
    assert torch.equal(tables(model)[0], before)


def test_a_token_added_to_the_tokenizer_is_not_free(tmp_path: Path) -> None:
    model = load(write_model(tmp_path, num_spare=3))
    tokenizer = copy.deepcopy(small_tokenizer())
    tokenizer.add_special_tokens({"pad_token": "<pad>"})
    assert unassigned_ids(model, tokenizer) == [len(tokenizer), len(tokenizer) + 1]
    with pytest.raises(ConfigError, match="the tokenizer uses it"):
        take_unassigned(model, tokenizer, (tokenizer.pad_token_id,))


def test_suppressing_keeps_what_was_suppressed(tmp_path: Path) -> None:
    model = load(write_model(tmp_path))
    model.generation_config.suppress_tokens = [7, 3]
    suppress_in_generation(model, (5, 7))
    assert model.generation_config.suppress_tokens == [3, 5, 7]


@pytest.fixture(scope="module")
def eager_to_emit(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Path, int]]:
    """A checkpoint whose head prefers its adaptive token after every one of our prompts."""
    folder = tmp_path_factory.mktemp("eager")
    model = load(write_model(folder))
    (token_id,) = add_adaptive_tokens(model, 1)
    head = tables(model)[1]
    with torch.no_grad():
        ends = [model.model(torch.tensor([ids])).last_hidden_state[0, -1] for ids in PROMPTS]
        head[token_id] = 1e3 * torch.linalg.pinv(torch.stack(ends)).sum(-1)
        for ids in PROMPTS:
            logits = model(torch.tensor([ids])).logits[0, -1]
            assert logits.argmax() == token_id and logits.softmax(-1)[token_id] > 0.99
    suppress_in_generation(model, (token_id,))
    model.save_pretrained(folder)
    methods = {"sdsat": {"adaptive_ids": [token_id], "block_length": 3}}
    write_manifest(folder, Manifest(methods=methods, default_drafter="none"))
    yield folder, token_id


@pytest.mark.parametrize("do_sample", [False, True])
def test_transformers_never_emits_one(eager_to_emit: tuple[Path, int], do_sample: bool) -> None:
    folder, token_id = eager_to_emit
    model = load(folder)
    torch.manual_seed(0)
    more = {"temperature": 5.0} if do_sample else {}
    for ids in PROMPTS:
        for _ in range(5 if do_sample else 1):
            new = model.generate(
                torch.tensor([ids]), max_new_tokens=8, do_sample=do_sample, top_k=0, **more
            )
            assert new.shape[1] > len(ids) and token_id not in new[0].tolist()


@pytest.mark.parametrize("drafter", ["none", "prompt-lookup", "sdsat"])
@pytest.mark.parametrize("temperature", [0.0, 5.0])
def test_draftless_never_emits_one(
    eager_to_emit: tuple[Path, int], drafter: str, temperature: float
) -> None:
    folder, token_id = eager_to_emit
    model = Draftless.from_pretrained(folder, drafter=drafter)
    assert model.target.input_only_ids == (token_id,)
    for ids in PROMPTS:
        for seed in range(5 if temperature else 1):
            output = model.generate(ids, temperature=temperature, seed=seed, max_new_tokens=8)
            assert output.token_ids and token_id not in output.token_ids


def test_the_saved_tokenizer_never_makes_an_adaptive_token(eager_to_emit: tuple[Path, int]) -> None:
    folder, token_id = eager_to_emit
    tokenizer = AutoTokenizer.from_pretrained(folder)
    assert token_id not in tokenizer.get_vocab().values()
    name = tokenizer.convert_ids_to_tokens(token_id)
    texts = [
        "the cat", "<s>", "</s>", "<unk>", "<pad>", "<mask>", "<adaptive>", "<|adaptive|>",
        "<extra_id_0>", "[ADAPTIVE]", f"<{token_id}>", f"<0x{token_id:02X}>", str(token_id),
        chr(token_id), f"<|reserved_special_token_{token_id}|>", str(name), "\x00\ufffd\u2581",
        "".join(map(chr, range(1, 600))), "🐈 猫 äöü",
    ]  # fmt: skip
    for text in texts:
        for special in (False, True):
            assert token_id not in tokenizer.encode(text, add_special_tokens=special), text
    assert token_id not in tokenizer.all_special_ids
    assert len(tokenizer) <= token_id
