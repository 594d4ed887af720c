"""`generate` called as that of `transformers` is; and what of a checkpoint's own config counts."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import GenerationConfig, LlamaForCausalLM, LogitsProcessor

from draftless import ConfigError, Draftless, SamplingParams
from support.tokenizer import small_tokenizer

PROMPT = [20, 21, 20, 22, 20, 21]
IDS = torch.tensor([PROMPT])
OWN = {"repetition_penalty": 1.5, "top_k": 5, "temperature": 0.6, "top_p": 0.8, "eos_token_id": 1}


class Biased(LogitsProcessor):
    def __call__(self, ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + ids.shape[1] * torch.arange(scores.shape[1]) / 50


@pytest.fixture(scope="module")
def stock(checkpoint: Path) -> Any:
    model = LlamaForCausalLM.from_pretrained(checkpoint)
    model.generation_config = GenerationConfig(do_sample=True, pad_token_id=7, **OWN)
    return model


@pytest.fixture(scope="module")
def model(stock: Any) -> Draftless:
    return Draftless.from_pretrained(
        copy.deepcopy(stock), tokenizer=small_tokenizer(), drafter="prompt-lookup"
    )


@pytest.mark.parametrize(
    "options",
    [
        {"do_sample": False, "max_new_tokens": 12},
        {"do_sample": False, "max_length": 14},
        {"do_sample": False, "max_length": 14, "min_length": 12, "eos_token_id": list(range(60))},
        {"do_sample": np.False_, "max_new_tokens": np.int64(9), "temperature": 0.7},
        {"do_sample": False, "max_new_tokens": 9, "repetition_penalty": 1.0, "num_beams": 1},
        {"do_sample": False, "max_new_tokens": 9, "num_return_sequences": 1, "use_cache": True},
        {"do_sample": False, "max_new_tokens": 9, "top_p": None, "temperature": None},
        {"do_sample": False, "max_new_tokens": 9, "logits_processor": [Biased()]},
        {"do_sample": False, "max_new_tokens": 9, "forced_eos_token_id": [5, 6]},
        {"do_sample": False, "max_new_tokens": 20, "stop_strings": ["a"], "tokenizer": small_tokenizer()},
        {"generation_config": GenerationConfig(do_sample=False, max_new_tokens=9)},
        {"generation_config": GenerationConfig(max_new_tokens=9), "do_sample": False},
    ],
    ids=str,
)  # fmt: skip
def test_the_same_ids(model: Draftless, stock: Any, options: dict[str, Any]) -> None:
    inputs = {"input_ids": IDS, "attention_mask": torch.ones_like(IDS)}
    wanted = stock.generate(**inputs, **copy.deepcopy(options))[0, len(PROMPT) :].tolist()
    (output,) = model.generate(**inputs, **options)
    assert output.token_ids == wanted
    assert [*output.prompt_token_ids, *output.token_ids] == [*PROMPT, *wanted]


def test_max_length_counts_the_padding(model: Draftless, stock: Any) -> None:
    ids, mask = torch.tensor([[7, 7, 7, 20, 21, 22]]), torch.tensor([[0, 0, 0, 1, 1, 1]])
    options: dict[str, Any] = {"max_length": 10, "do_sample": False, "eos_token_id": 290}
    wanted = stock.generate(input_ids=ids, attention_mask=mask, **options)
    (output,) = model.generate(input_ids=ids, attention_mask=mask, **options)
    assert output.token_ids == wanted[0, 6:].tolist()
    assert len(output.token_ids) == 4


def test_the_rule_for_the_checkpoints_own_config(model: Draftless) -> None:
    """Only its EOS ids, unless a request asks for more."""
    default = model.resolve_params()
    assert default == SamplingParams()
    assert model.resolve_params(max_length=30, prompt_len=10) == SamplingParams(max_new_tokens=20)
    own = {**OWN, "eos_token_ids": (1,)}
    del own["eos_token_id"]
    whole = SamplingParams(**own)  # type: ignore[arg-type]
    assert model.resolve_params(use_model_defaults=True) == whole
    assert model.resolve_params(do_sample=True) == whole
    assert model.resolve_params(use_model_defaults=True, temperature=0.3).temperature == 0.3
    assert model.resolve_params(use_model_defaults=True, temperature=0).is_greedy
    greedy = model.resolve_params(do_sample=False, temperature=0.9)
    assert (greedy.temperature, greedy.repetition_penalty) == (0.0, 1.5)
    config = model.resolve_params(GenerationConfig())
    assert (config.max_new_tokens, config.temperature, config.top_k) == (20, 0.6, 5)
    assert model.resolve_params(generation_config=None) == default
    assert model.generate(PROMPT, max_new_tokens=9).token_ids == (
        model.generate(PROMPT, SamplingParams(max_new_tokens=9)).token_ids
    )
    drawn = model.generate(PROMPT, use_model_defaults=True, seed=3, max_new_tokens=9)
    assert drawn.token_ids == model.generate(PROMPT, whole, seed=3, max_new_tokens=9).token_ids


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperture": 0.5}, "unknown option temperture; did you mean temperature?"),
        ({"max_new_token": 5}, "did you mean max_new_tokens?"),
        ({"do_samples": True}, "did you mean do_sample?"),
        ({"zebra": True}, "unknown option zebra; see SamplingParams"),
        ({"num_beams": 4}, "num_beams=4 is not supported: beam search"),
        ({"num_return_sequences": 2}, "give the prompt several times"),
        ({"use_cache": False}, "use_cache=False is not supported: the ids are the same"),
        ({"assistant_model": 5}, "assistant_model=5 is not supported: use a Draftless drafter"),
        ({"inputs_embeds": 5}, "give token ids"),
        ({"output_scores": True}, "scores are not kept"),
        ({"do_sample": True, "temperature": 0.0}, "use do_sample=False for greedy"),
        ({"max_length": 4}, "max_length=4 leaves no room after a prompt of 6 tokens"),
        (
            {"params": SamplingParams(), "do_sample": True},
            "do_sample goes with options as keywords",
        ),
        ({"params": SamplingParams(), "use_model_defaults": True}, "use_model_defaults goes with"),
        ({"params": SamplingParams(), "generation_config": GenerationConfig()}, "give one of"),
        ({"include_stop": "no"}, "include_stop must be True or False, got 'no'"),
    ],
)
def test_what_cannot_be_honoured(model: Draftless, options: Any, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        model.generate(PROMPT, **options)


def test_numbers_of_numpy_are_numbers(model: Draftless) -> None:
    ours: dict[str, Any] = {"temperature": 0.5, "top_k": 9, "seed": 3, "max_new_tokens": 6}
    numpy = {"temperature": np.float32(0.5), "top_k": np.int64(9), "seed": np.uint8(3)}
    params = SamplingParams(**numpy, max_new_tokens=np.int32(6))  # type: ignore[arg-type]
    assert params == SamplingParams(**ours)
    assert type(params.temperature) is float and type(params.seed) is int
    assert model.generate(PROMPT, params).token_ids == model.generate(PROMPT, **ours).token_ids


def test_what_people_ask_a_model_for(model: Draftless) -> None:
    assert (model.device.type, model.config.model_type) == ("cpu", "llama")
    assert model.generation_config.top_k == 5
    assert repr(model).startswith("Draftless(LlamaForCausalLM, 0.0")
    compiled = ", compiled" * model.target.is_compiled
    assert repr(model).endswith(f"M parameters, float32 on cpu{compiled}, PromptLookupDrafter)")
    output = model.generate(PROMPT, max_new_tokens=3, ignore_eos=True)
    assert repr(output).startswith(f"Output(text={output.text!r}, 3 tokens after 6, finish_reason=")
    assert output.is_reproducible
    with pytest.raises(TypeError, match="cannot be pickled"):
        pickle.dumps(model)
