"""The verdict on a difference: rounding is shown, everything else is a defect."""

from __future__ import annotations

import math

import pytest
import torch

from draftless import SamplingParams
from draftless.bench import near_ties
from draftless.bench.near_ties import LIMIT, Judge, border, first_difference, judged, ulp
from draftless.bench.rows import Margin
from draftless.noise import KeyedNoise
from support.bench import wide_model

GREEDY = SamplingParams(seed=0)
BF16 = torch.bfloat16


@pytest.mark.parametrize(
    ("ids", "plain", "index"),
    [
        ([1, 2], [1, 2], None),
        ([1, 3], [1, 2], 1),
        ([1], [1, 2], 1),
        ([1, 2, 3], [1, 2], 2),
        ([], [], None),
    ],
)
def test_first_difference(ids: list[int], plain: list[int], index: int | None) -> None:
    assert first_difference(ids, plain) == index


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("value", [0.7, 1.0, 17.3, -31.9, 40.0])
def test_an_ulp_is_the_distance_of_neighbours(value: float, dtype: torch.dtype) -> None:
    number = torch.tensor(abs(value), dtype=dtype)
    above = (number.view(torch.int16) + 1).view(dtype)
    assert ulp(value, dtype) == float(above) - float(number)


def logits(**some: float) -> torch.Tensor:
    """Twenty logits of -10; `t3=1.5` sets that of token 3."""
    values = torch.full((20,), -10.0, dtype=torch.float64)
    for name, value in some.items():
        values[int(name[1:])] = value
    return values


@pytest.mark.parametrize(("distance", "is_near_tie"), [(7.9, True), (8.1, False)])
def test_the_limit_counts_ulps_of_the_largest_logit(distance: float, is_near_tie: bool) -> None:
    unit = ulp(20.0, BF16)
    assert unit == 0.125
    # The two tokens' own logits are near 1, where an ULP is sixteen times smaller.
    found = judged(
        Margin(0, 3, 4), logits(t0=20.0, t3=1.0, t4=1.0 + distance * unit), GREEDY, 5, BF16
    )
    assert found.ulps == pytest.approx(distance)
    assert found.is_near_tie == is_near_tie


def test_sampled_scores_have_noise_and_a_temperature() -> None:
    params = SamplingParams(temperature=0.5, seed=9)
    noise = KeyedNoise(9)(7, torch.tensor([3, 4]))
    gap = float(noise[0] - noise[1]) * 0.5  # the logits that make up for the noise
    found = judged(Margin(2, 3, 4), logits(t0=20.0, t3=1.0, t4=1.0 + gap), params, 7, BF16)
    assert found.ulps == pytest.approx(0.0, abs=1e-9)
    found = judged(Margin(2, 3, 4), logits(t0=20.0, t3=1.0, t4=1.5 + gap), params, 7, BF16)
    assert found.ulps == pytest.approx(4.0)  # 0.5 / 0.5 over 0.125 / 0.5
    other = judged(Margin(2, 3, 4), logits(t0=20.0, t3=1.0, t4=1.5 + gap), params, 8, BF16)
    assert other.ulps != pytest.approx(4.0)  # another position has other noise


@pytest.mark.parametrize(
    ("options", "places"),
    [
        ({"top_k": 2}, ["inside", "border", "border", "outside", "outside"]),
        ({"top_k": 1}, ["inside", "outside", "outside", "outside", "outside"]),
        # Masses are .58 .21 .20 .01 .00; the second and the third may change places.
        ({"top_p": 0.5}, ["inside", "border", "border", "outside", "outside"]),
        ({"top_p": 0.75}, ["inside", "border", "border", "outside", "outside"]),
        ({"top_p": 0.9}, ["inside", "inside", "inside", "outside", "outside"]),
        ({"top_p": 0.3}, ["inside", "outside", "outside", "outside", "outside"]),
        ({"min_p": math.exp(-1.0)}, ["inside", "border", "border", "outside", "outside"]),
        ({"min_p": math.exp(-2.0)}, ["inside", "inside", "inside", "outside", "outside"]),
        ({}, ["inside"] * 5),
    ],
)
def test_borders(options: dict[str, float], places: list[str]) -> None:
    scores = torch.tensor([5.0, 4.0, 3.95, 1.0, -9.0], dtype=torch.float64)
    params = SamplingParams(temperature=1.0, seed=0, **options)
    slack = 0.1 if "top_p" not in options else 0.35
    assert [border(scores, token, params, slack) for token in range(5)] == places


def test_a_border_explains_a_difference_only_if_the_winner_lies_on_it() -> None:
    params = SamplingParams(temperature=1.0, seed=9, top_k=1)
    noise = KeyedNoise(9)(7, torch.tensor([3, 4]))
    assert abs(noise[0] - noise[1]) > 1.0
    found = judged(Margin(0, 3, 4), logits(t3=30.0, t4=29.9), params, 7, BF16)
    assert found.ulps is not None
    assert found.ulps > LIMIT
    assert found.is_near_tie  # whichever came first was the only one kept
    params = SamplingParams(temperature=1.0, seed=9, top_k=2)
    values = logits(t3=39.0, t4=20.0, t5=20.1)
    assert border(values, 4, params, 0.5) == "border"
    found = judged(Margin(0, 3, 4), values, params, 7, BF16)
    assert not found.is_near_tie  # kept or not, token 4 could not win against token 3


def test_a_token_outside_the_kept_set_is_a_defect_however_near_its_score() -> None:
    noise = KeyedNoise(9)(7, torch.tensor([3, 4]))
    gap = float(noise[0] - noise[1])
    values = logits(t3=5.0, t4=5.0 + gap)  # equal scores: the noise makes up for the logits
    assert abs(gap) > 1.0
    free = SamplingParams(temperature=1.0, seed=9)
    best = SamplingParams(temperature=1.0, seed=9, top_k=1)
    assert judged(Margin(0, 3, 4), values, free, 7, BF16).is_near_tie
    assert not judged(Margin(0, 3, 4), values, best, 7, BF16).is_near_tie


@pytest.mark.parametrize("temperature", [0.0, 2.0])
def test_the_judge_recomputes_the_shared_prefix_in_fp32(temperature: float) -> None:
    model = wide_model(BF16)
    params = SamplingParams(seed=5, temperature=temperature)
    prompt, plain = [5, 9, 40], [7, 8, 60, 61]
    found = Judge(model).margin(prompt, [7, 8, 90, 2, 3], plain, params)
    assert found is not None
    assert (found.index, found.token_id, found.plain_token_id) == (2, 90, 60)

    exact = wide_model(BF16).to(torch.float32)  # the run's own weights, not others
    with torch.inference_mode():
        values = exact(torch.tensor([[*prompt, 7, 8]])).logits[0, -1].double()
    scores, unit = values[[90, 60]], ulp(float(values.abs().max()), BF16)
    if temperature:
        # The token that follows n ids is drawn with the noise of position n.
        scores = scores / temperature + KeyedNoise(5)(5, torch.tensor([90, 60]))
        unit /= temperature
    assert found.ulps == pytest.approx(float((scores[0] - scores[1]).abs()) / unit, rel=1e-4)
    assert found.is_near_tie == (found.ulps <= LIMIT)
    assert {parameter.dtype for parameter in model.parameters()} == {BF16}


def test_the_judge_never_sees_what_is_input_only() -> None:
    """Its logit sets no unit and takes no share of the mass."""
    model, plain = wide_model(BF16), [7, 8, 60]
    exact = wide_model(BF16).to(torch.float32)
    with torch.inference_mode():
        values = exact(torch.tensor([[5, 7, 8]])).logits[0, -1].double()
    values = values.clone()  # may be changed out here
    largest = int(values.abs().argmax())
    found = Judge(model, [largest]).margin([5], [7, 8, 90], plain, GREEDY)
    values[largest] = 0.0
    expected = float((values[90] - values[60]).abs()) / ulp(float(values.abs().max()), BF16)
    assert found is not None and found.ulps == pytest.approx(expected, rel=1e-4)
    assert Judge(model, [largest])._logits([5, 7, 8])[largest] == -torch.inf


def test_equal_outputs_have_no_margin() -> None:
    assert Judge(wide_model(BF16)).margin([1], [2, 3], [2, 3], GREEDY) is None


@pytest.mark.parametrize(
    ("dtype", "ids"), [(torch.float32, [2, 4]), (torch.float64, [2, 4]), (BF16, [2])]
)
def test_what_rounding_cannot_explain_is_a_defect(dtype: torch.dtype, ids: list[int]) -> None:
    """A difference in fp32, and a text that ends where the plain one goes on."""
    found = Judge(wide_model(dtype)).margin([1], ids, [2, 3], GREEDY)
    assert found == Margin(1, ids[1] if len(ids) > 1 else -1, 3, None, False)


def test_a_difference_that_cannot_be_judged_is_not_called_a_near_tie(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def full(*_: object) -> None:
        raise torch.OutOfMemoryError("planted")

    monkeypatch.setattr(near_ties, "stock_copy", full)
    found = Judge(wide_model(BF16)).margin([1], [2, 4], [2, 3], GREEDY)
    assert found == Margin(1, 4, 3, None, False)
