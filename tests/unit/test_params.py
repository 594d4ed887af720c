"""Every option is validated once, with a message that names it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import pytest

from draftless.errors import ConfigError
from draftless.params import SamplingParams

BAD: list[tuple[str, Any]] = [
    ("max_new_tokens", 0),
    ("max_new_tokens", 1.5),
    ("max_new_tokens", True),
    ("min_new_tokens", -1),
    ("temperature", math.nan),
    ("temperature", -0.1),
    ("temperature", math.inf * -1),
    ("temperature", "hot"),
    ("top_k", -1),
    ("top_k", 2.0),
    ("top_p", 0.0),
    ("top_p", 1.1),
    ("top_p", math.nan),
    ("min_p", -0.1),
    ("min_p", 1.5),
    ("top_h", 0.0),
    ("typical_p", 2.0),
    ("epsilon_cutoff", 1.0),
    ("eta_cutoff", 0.0),
    ("repetition_penalty", 0.0),
    ("repetition_penalty", math.nan),
    ("no_repeat_ngram_size", -2),
    ("sample_index", -1),
    ("seed", 1.0),
    ("max_time_s", -1.0),
]


@pytest.mark.parametrize(("name", "value"), BAD, ids=str)
def test_bad_values_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ConfigError, match=name):
        SamplingParams(**{name: value})


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"min_new_tokens": 9, "max_new_tokens": 8}, "min_new_tokens=9 is above"),
        ({"stop": ["x", ""]}, "empty stop string"),
        ({"stop": [3]}, "stop holds 3"),
        ({"bad_words_ids": [[1], []]}, "bad_words_ids holds an empty sequence"),
        ({"eos_token_ids": ["x"]}, "eos_token_ids holds 'x'"),
        ({"eos_token_ids": [True]}, "eos_token_ids holds True"),
    ],
)
def test_bad_lists_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingParams(**options)


def test_single_values_become_tuples() -> None:
    params = SamplingParams(stop="end", eos_token_ids=3)
    assert (params.stop, params.eos_token_ids) == (("end",), (3,))
    assert SamplingParams().eos_token_ids is None
    assert SamplingParams(eos_token_ids=[]).eos_token_ids == ()


def test_params_are_frozen_and_greedy_by_default() -> None:
    params = SamplingParams()
    assert params.is_greedy
    assert not SamplingParams(temperature=0.01).is_greedy
    with pytest.raises(dataclasses.FrozenInstanceError):
        params.temperature = 1.0  # type: ignore[misc]
