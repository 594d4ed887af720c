"""Prompts in every form that `transformers`' users have them; padding is never read as text."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import BatchEncoding, GenerationConfig, LlamaForCausalLM

from draftless import Draftless, InputError
from draftless.inputs import Padding, read_prompts

PAD, EOS = 7, 1
SHORT, LONG = [20, 21], [30, 31, 32, 33, 34]
RIGHT = [[*SHORT, PAD, PAD, PAD], LONG]
LEFT = [[PAD, PAD, PAD, *SHORT], LONG]
MASKS = {"right": [[1, 1, 0, 0, 0], [1] * 5], "left": [[0, 0, 0, 1, 1], [1] * 5]}


@pytest.fixture(scope="module")
def model(checkpoint: Path) -> Draftless:
    return Draftless.from_pretrained(checkpoint, drafter="recycling")


@pytest.fixture(scope="module")
def alone(model: Draftless) -> list[list[int]]:
    return [model.generate(ids, max_new_tokens=8).token_ids for ids in (SHORT, LONG)]


@pytest.mark.parametrize(("side", "rows"), [("right", RIGHT), ("left", LEFT)])
@pytest.mark.parametrize("kind", [torch.tensor, np.array, list], ids=["torch", "numpy", "list"])
def test_a_masked_batch_is_each_prompt_alone(
    model: Draftless, alone: list[list[int]], side: str, rows: Any, kind: Any
) -> None:
    inputs = BatchEncoding({"input_ids": kind(rows), "attention_mask": kind(MASKS[side])})
    for outputs in (
        model.generate(**inputs, max_new_tokens=8),
        model.generate(inputs, max_new_tokens=8),
        model.generate(kind(rows), attention_mask=kind(MASKS[side]), max_new_tokens=8),
    ):
        assert [output.token_ids for output in outputs] == alone
        assert [output.prompt_token_ids for output in outputs] == [SHORT, LONG]


def test_a_left_padded_batch_is_as_transformers_has_it(model: Draftless, checkpoint: Path) -> None:
    ids, mask = torch.tensor(LEFT), torch.tensor(MASKS["left"])
    stock = LlamaForCausalLM.from_pretrained(checkpoint)
    options = {"max_new_tokens": 8, "do_sample": False}
    wanted = stock.generate(input_ids=ids, attention_mask=mask, pad_token_id=PAD, **options)
    outputs = model.generate(input_ids=ids, attention_mask=mask, pad_token_id=PAD, **options)
    for row, output in zip(wanted.tolist(), outputs, strict=True):
        assert row[5 : 5 + len(output.token_ids)] == output.token_ids


@pytest.mark.parametrize("rows", [LEFT, RIGHT])
def test_ids_alone_are_masked_where_transformers_masks_them(
    model: Draftless, alone: list[list[int]], rows: Any
) -> None:
    """With a pad id that is no EOS id; otherwise nobody knows, and it is refused."""
    ids = torch.tensor(rows)
    given = (
        {"pad_token_id": PAD},
        {"generation_config": GenerationConfig(pad_token_id=PAD), "do_sample": False},
    )
    for how in given:
        outputs = model.generate(ids, max_new_tokens=8, **how)  # type: ignore[arg-type]
        assert [output.token_ids for output in outputs] == alone
    doubtful = torch.tensor(rows).where(ids != PAD, EOS)
    with pytest.raises(InputError, match="prompt 0 begins or ends with 1, a pad id that may"):
        model.generate(doubtful, pad_token_id=EOS)
    with pytest.raises(InputError, match="prompt 0 begins or ends with 7"):
        read_prompts(ids, padding=Padding(None, (EOS,), tokenizer_id=PAD))


def test_what_can_only_be_text_stays() -> None:
    eos = Padding(EOS, (EOS,), EOS)
    assert read_prompts(torch.tensor([[EOS, 5]]), padding=eos).items == [[EOS, 5]]  # one row
    assert read_prompts([[EOS, 5], [5, EOS]], padding=eos).items == [[EOS, 5], [5, EOS]]
    inside = torch.tensor([[5, EOS, 6], [5, 6, 8]])
    assert read_prompts(inside, padding=eos).items == inside.tolist()
    assert read_prompts(torch.tensor([EOS, 5]), padding=eos).items == [[EOS, 5]]


def test_the_form_decides_what_is_returned(model: Draftless) -> None:
    one = model.generate(np.array(SHORT), max_new_tokens=3)
    for many in (
        model.generate(np.array([SHORT]), max_new_tokens=3),
        model.generate([np.array(SHORT)], max_new_tokens=3),
        model.generate(torch.tensor([SHORT]), max_new_tokens=3),
        model.generate(inputs=torch.tensor([SHORT]), max_new_tokens=3),
    ):
        assert [output.token_ids for output in many] == [one.token_ids]
    tokenizer = model.tokenizer
    assert tokenizer is not None
    text = tokenizer("the cat")
    assert model.generate(text, max_new_tokens=3).prompt_token_ids == text.input_ids
    assert model.generate([]) == []
    assert model.generate(torch.zeros((0, 4), dtype=torch.long)) == []
    chunks = list(model.stream(**tokenizer("the cat", return_tensors="pt"), max_new_tokens=3))
    assert chunks[-1].output is not None
    assert chunks[-1].output.token_ids == model.generate("the cat", max_new_tokens=3).token_ids
    with pytest.raises(InputError, match="stream takes one prompt"):
        model.stream(["a", "b"])


@pytest.mark.parametrize(
    ("prompts", "options", "message"),
    [
        (torch.zeros((1, 2, 3), dtype=torch.long), {}, r"\[T\] or \[B, T\], got \[1, 2, 3\]"),
        (np.zeros((1, 2, 3), dtype=int), {}, r"got \[1, 2, 3\]"),
        (torch.tensor(5), {}, r"got \[\]"),
        ([torch.tensor([[5]])], {}, r"a prompt in a list must be of shape \[T\], got \[1, 1\]"),
        (torch.tensor([True]), {}, "must be integers, got torch.bool"),
        (np.array([0.5]), {}, "0.5, which is no token id"),
        ([True, 5], {}, "True, which is no token id"),
        (b"the cat", {}, "not bytes"),
        ([b"the cat"], {}, "not b'the cat'"),
        ({"input_ids": [5]}, {}, r"not dict; give a tokenizer's result as generate\(\*\*inputs\)"),
        (None, {}, "give prompts or input_ids, got neither"),
        ([5], {"input_ids": [5]}, "got both"),
        ([[5, 6]], {"attention_mask": [[1]]}, r"rows of \[2\], got \[1\]"),
        ([[5, 6]], {"attention_mask": 1}, "got 1"),
        ([[5, 6]], {"attention_mask": [[1, 2]]}, "must hold 0 and 1, got 2"),
        ([[5, 6], [7, 8]], {"attention_mask": [[1, 1], [0, 0]]}, "prompt 1: the prompt is empty"),
        (["a"], {"attention_mask": [[1]]}, "goes with token ids"),
        ([5], {"token_type_ids": [[1]]}, "token_type_ids is not used by this model"),
        (BatchEncoding({"input_ids": [5], "pixel_values": [1]}), {}, "pixel_values is not used"),
        (BatchEncoding({"ids": [5]}), {}, r"needs 'input_ids', got \['ids'\]"),
        (BatchEncoding({"input_ids": [5]}), {"attention_mask": [1]}, "brings its attention_mask"),
        (["a", ""], {}, "^prompt 1: the prompt is empty"),
        ([[5], [5, 300]], {}, "^prompt 1: token id 300"),
    ],
    ids=str,
)
def test_what_is_no_prompt(model: Draftless, prompts: Any, options: Any, message: str) -> None:
    with pytest.raises(InputError, match=message):
        model.generate(prompts, **options)


def test_token_types_that_say_nothing_are_no_reason_to_refuse(model: Draftless) -> None:
    ids = torch.tensor([SHORT])
    (output,) = model.generate(
        input_ids=ids, token_type_ids=torch.zeros_like(ids), max_new_tokens=1
    )
    assert output.prompt_token_ids == SHORT


@pytest.mark.parametrize("size", [1, 2, 9])
def test_the_batch_size_does_not_change_the_output(model: Draftless, size: int) -> None:
    prompts = [SHORT, LONG, [40]]
    wanted = [model.generate(ids, max_new_tokens=8).token_ids for ids in prompts]
    outputs = model.generate(prompts, max_new_tokens=8, batch_size=size)
    assert [output.token_ids for output in outputs] == wanted
    with pytest.raises(ValueError, match="batch_size must be an int of at least 1, got 0"):
        model.generate(prompts, batch_size=0)
