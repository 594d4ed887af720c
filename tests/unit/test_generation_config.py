"""Every field of a `GenerationConfig` is honoured exactly or refused by name."""

from __future__ import annotations

from typing import Any

import pytest
from transformers import GenerationConfig

from draftless.engine.generation_config import params_from_generation_config as params_from
from draftless.errors import ConfigError
from draftless.params import SamplingParams

HONOURED: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({}, {"temperature": 0.0, "max_new_tokens": 20}),
    ({"max_new_tokens": 7, "max_length": 30}, {"max_new_tokens": 7}),
    ({"max_length": 30}, {"max_new_tokens": 20}),
    ({"max_length": 30, "min_length": 15}, {"max_new_tokens": 20, "min_new_tokens": 5}),
    ({"max_length": 30, "min_length": 5}, {"min_new_tokens": 0}),
    ({"max_new_tokens": 5, "min_length": 100}, {"max_new_tokens": 5, "min_new_tokens": 5}),
    ({"epsilon_cutoff": 0.0, "eta_cutoff": 0.0}, {"epsilon_cutoff": None, "eta_cutoff": None}),
    ({"min_new_tokens": 3, "min_length": 12}, {"min_new_tokens": 3}),
    ({"min_new_tokens": 3, "min_length": 18}, {"min_new_tokens": 3}),
    ({"min_new_tokens": 0, "min_length": 18}, {"min_new_tokens": 0}),
    ({"min_length": 18}, {"min_new_tokens": 8}),
    # Idle without do_sample, as in transformers.
    ({"temperature": 0.5, "top_k": 9}, {"temperature": 0.0, "top_k": 0}),
    # generate's defaults once sampling is on.
    ({"do_sample": True}, {"temperature": 1.0, "top_k": 50, "top_p": 1.0}),
    (
        {"do_sample": True, "temperature": 0.7, "top_k": 0, "top_p": 0.9, "min_p": 0.1},
        {"temperature": 0.7, "top_k": 0, "top_p": 0.9, "min_p": 0.1},
    ),
    ({"do_sample": True, "typical_p": 0.5, "eta_cutoff": 0.1}, {"typical_p": 0.5}),
    ({"repetition_penalty": 1.2}, {"repetition_penalty": 1.2}),
    ({"no_repeat_ngram_size": 3}, {"no_repeat_ngram_size": 3}),
    ({"bad_words_ids": [[1, 2]]}, {"bad_words_ids": [[1, 2]]}),
    ({"sequence_bias": {(1, 2): 2.5}}, {"sequence_bias": [((1, 2), 2.5)]}),
    ({"sequence_bias": [[[1, 2], 2.5]]}, {"sequence_bias": [((1, 2), 2.5)]}),
    ({"suppress_tokens": [4], "begin_suppress_tokens": [5]}, {"suppress_tokens": [4]}),
    ({"forced_eos_token_id": 2}, {"forced_eos_token_id": 2}),
    ({"forced_eos_token_id": [2, 3]}, {"forced_eos_token_id": (2, 3)}),
    ({"eos_token_id": 2}, {"eos_token_ids": (2,)}),
    ({"eos_token_id": [2, 3]}, {"eos_token_ids": (2, 3)}),
    ({"stop_strings": "end"}, {"stop": ("end",)}),
    ({"stop_strings": ["a", "b"]}, {"stop": ("a", "b")}),
    ({"max_time": 1.5}, {"max_time_s": 1.5}),
    ({"num_beams": 1, "guidance_scale": 1.0, "use_cache": True}, {}),
]


@pytest.mark.parametrize(("fields", "wanted"), HONOURED, ids=str)
def test_honoured(fields: dict[str, Any], wanted: dict[str, Any]) -> None:
    params = params_from(GenerationConfig(**fields), prompt_len=10)
    assert {name: getattr(params, name) for name in wanted} == wanted


REFUSED: list[dict[str, Any]] = [
    {"num_beams": 4},
    {"num_return_sequences": 2, "do_sample": True},
    {"guidance_scale": 1.5},
    {"encoder_repetition_penalty": 1.1},
    {"encoder_no_repeat_ngram_size": 2},
    {"token_healing": True},
    {"prompt_lookup_num_tokens": 5},
    {"output_scores": True, "return_dict_in_generate": True},
    {"output_logits": True, "return_dict_in_generate": True},
    {"output_hidden_states": True, "return_dict_in_generate": True},
    {"output_attentions": True, "return_dict_in_generate": True},
    {"cache_implementation": "static"},
    {"use_cache": False},
]


@pytest.mark.parametrize("fields", REFUSED, ids=str)
def test_refused_with_the_name_and_a_way_out(fields: dict[str, Any]) -> None:
    name = next(iter(fields))
    with pytest.raises(ConfigError, match=f"{name}=.* is not supported: "):
        params_from(GenerationConfig(**fields), prompt_len=10)


@pytest.mark.parametrize(
    ("name", "value"), [("penalty_alpha", 0.6), ("dola_layers", "high"), ("force_words_ids", [[1]])]
)
def test_fields_that_transformers_has_given_up_are_refused_too(name: str, value: Any) -> None:
    config = GenerationConfig()
    setattr(config, name, value)
    with pytest.raises(ConfigError, match=name):
        params_from(config, prompt_len=10)


def test_unknown_fields_are_refused() -> None:
    config = GenerationConfig()
    config.brand_new_option = 3
    with pytest.raises(ConfigError, match="brand_new_option"):
        params_from(config, prompt_len=10)


def test_every_field_of_transformers_is_known() -> None:
    """At its default no field stands in the way; a new one would say so here."""
    assert params_from(GenerationConfig(), 5) == SamplingParams(max_new_tokens=20)


def test_no_room_after_the_prompt() -> None:
    with pytest.raises(ConfigError, match="leaves no room after a prompt of 30 tokens"):
        params_from(GenerationConfig(max_length=30), prompt_len=30)


def test_temperature_zero_with_sampling() -> None:
    config = GenerationConfig(do_sample=True)
    config.temperature = 0.0
    with pytest.raises(ConfigError, match="do_sample=False for greedy"):
        params_from(config, 5)


def test_overrides_win() -> None:
    params = params_from(GenerationConfig(do_sample=True, top_k=3), 5, seed=8, top_k=4)
    assert (params.seed, params.top_k) == (8, 4)


def test_what_only_code_of_the_model_knows_is_no_option() -> None:
    of_model = GenerationConfig(chat_format="chatml", max_length=20, repetition_penalty=1.1)
    params = params_from(GenerationConfig(min_p=0.1), 30, of_model, max_new_tokens=8)
    assert (params.max_new_tokens, params.repetition_penalty, params.min_p) == (8, 1.1, 0.1)
    with pytest.raises(ConfigError, match="chat_format"):
        params_from(of_model, 5)
    with pytest.raises(ConfigError, match="max_length=20 leaves no room"):
        params_from(GenerationConfig(), 30, of_model)


def test_what_a_model_wants_of_caches_says_nothing_of_its_output() -> None:
    of_model = GenerationConfig(cache_implementation="static", use_cache=False, min_new_tokens=4)
    params = params_from(GenerationConfig(min_length=12), 5, of_model)
    assert params.min_new_tokens == 4  # the model's wins, as in transformers
