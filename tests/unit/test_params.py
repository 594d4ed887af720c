"""Every option is validated once, with a message that names it."""

from __future__ import annotations

import dataclasses
import math
from typing import Any

import numpy as np
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
    ("temperature", 1e-7),
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
        ({"eos_token_ids": 1.5}, "eos_token_ids=1.5 is neither"),
        ({"stop": 5}, "stop=5 is neither"),
        ({"bad_words_ids": [5]}, "bad_words_ids holds 5"),
        ({"bad_words_ids": [[1.5]]}, r"bad_words_ids holds \[1.5\]"),
        ({"suppress_tokens": 5}, "suppress_tokens=5 is no list"),
        ({"begin_suppress_tokens": ["x"]}, r"begin_suppress_tokens holds \['x'\]"),
        ({"sequence_bias": {(1,): 2.0}}, "sequence_bias=.* is no list"),
        ({"sequence_bias": [(1, 2.0)]}, "sequence_bias holds 1, which"),
        ({"sequence_bias": [1]}, "each must be a pair"),
        ({"forced_bos_token_id": [5]}, r"forced_bos_token_id must be one token id, got \[5\]"),
        ({"forced_bos_token_id": 1.5}, "must be one token id, got 1.5"),
        ({"forced_eos_token_id": []}, "forced_eos_token_id holds no id"),
        ({"forced_eos_token_id": ["x"]}, r"forced_eos_token_id holds \['x'\]"),
        ({"ignore_eos": 1}, "ignore_eos must be True or False, got 1"),
        ({"temperature": np.float32("nan")}, "temperature=nan"),
        ({"max_new_tokens": np.float64(3.0)}, "max_new_tokens=3.0 is not an int"),
        ({"forced_eos_token_id": 1.5}, r"forced_eos_token_id holds \[1.5\]"),
        ({"exponential_decay_length_penalty": 5}, "is no .start, factor."),
        ({"logits_processors": print}, "logits_processors=.* is no list"),
        ({"stopping_criteria": print}, "stopping_criteria=.* is no list"),
    ],
)
def test_bad_lists_are_refused(options: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        SamplingParams(**options)


def test_lists_of_any_kind() -> None:
    ids = list(np.array([1, 2]))
    params = SamplingParams(
        suppress_tokens={1, 2}, begin_suppress_tokens=ids, bad_words_ids=[ids], eos_token_ids={3},  # type: ignore[arg-type]
        stop={"x"}, forced_eos_token_id=ids[0],
    )  # fmt: skip
    assert (params.stop, params.eos_token_ids) == (("x",), (3,))
    assert SamplingParams(eos_token_ids=np.int64(3)).eos_token_ids == (3,)  # type: ignore[arg-type]


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
