"""Warping against `transformers`' own warpers, and the draw around it."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from transformers import LogitsProcessorList
from transformers.generation import logits_process as hf

from draftless.engine import loop, sampling
from draftless.engine.position_noise import PositionNoise
from draftless.engine.sampling import TokenSampler, fetch, lowest_argmax_of_rows
from draftless.engine.warping import warp, warp_block
from draftless.noise import KeyedNoise
from draftless.params import SamplingParams
from draftless.types import Row
from support.drafters import registered
from support.driving import Job, run
from support.models import prompt_ids, target

CPU = torch.device("cpu")
OPTIONS: list[dict[str, Any]] = [
    {},
    {"temperature": 0.3},
    {"temperature": 1.7},
    {"top_k": 1},
    {"top_k": 7},
    {"top_k": 5000},
    {"top_p": 0.05},
    {"top_p": 0.7},
    {"top_p": 0.999},
    {"min_p": 0.05},
    {"min_p": 1.0},
    {"top_k": 40, "top_p": 0.8},
    {"top_k": 3, "min_p": 0.2},
    {"top_p": 0.9, "min_p": 0.1},
    {"temperature": 0.6, "top_k": 100, "top_p": 0.95, "min_p": 0.02},
]


def seeded() -> torch.Generator:
    return torch.Generator().manual_seed(5)


def stock_warp(scores: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    """What `transformers` makes of `scores [V]`; minus infinity where a token is dropped."""
    found = LogitsProcessorList()
    if "temperature" in options:
        found.append(hf.TemperatureLogitsWarper(options["temperature"]))
    if "top_k" in options:
        found.append(hf.TopKLogitsWarper(options["top_k"]))
    if "top_p" in options:
        found.append(hf.TopPLogitsWarper(options["top_p"]))
    if "min_p" in options:
        found.append(hf.MinPLogitsWarper(options["min_p"]))
    return found(torch.zeros(1, 1, dtype=torch.long), scores[None].clone())[0]


def our_warp(scores: torch.Tensor, options: dict[str, Any]) -> torch.Tensor:
    kept, ids = warp(scores, SamplingParams(**{"temperature": 1.0, **options}))
    if ids is None:
        return kept
    assert len(set(ids.tolist())) == len(ids)
    return torch.full_like(scores, -torch.inf).index_copy(0, ids, kept)


@pytest.mark.parametrize("options", OPTIONS, ids=str)
@pytest.mark.parametrize("vocab_size", [5, 63, 64, 65, 512, 700])
def test_kept_tokens_and_scores_are_those_of_transformers(
    options: dict[str, Any], vocab_size: int
) -> None:
    generator = torch.Generator().manual_seed(vocab_size)
    for spread in (0.01, 1.0, 6.0):  # flat (all fall-backs), ordinary, peaked
        scores = spread * torch.randn(vocab_size, dtype=torch.float64, generator=generator)
        torch.testing.assert_close(our_warp(scores, options), stock_warp(scores, options))


@pytest.mark.parametrize("options", [{"top_k": 3}, {"min_p": 0.9}, {"top_k": 2, "min_p": 0.5}])
def test_ties_at_the_border_are_all_kept(options: dict[str, Any]) -> None:
    scores = torch.tensor([2.0, 3.0, 2.0, 2.0, 1.0, 3.0], dtype=torch.float64)
    torch.testing.assert_close(our_warp(scores, options), stock_warp(scores, options))


@pytest.mark.parametrize("top_p", [0.3, 0.5, 0.9])
def test_top_p_keeps_as_many_of_equal_tokens_as_transformers(top_p: float) -> None:
    """Which of equal tokens stay is up to the sort; the number and the kept mass are not."""
    scores = torch.tensor([1.0, 2.0, 1.0, 1.0, 2.0, 1.0], dtype=torch.float64)
    ours, stock = our_warp(scores, {"top_p": top_p}), stock_warp(scores, {"top_p": top_p})
    assert ours.sort().values.equal(stock.sort().values)


def test_banned_tokens_never_come_back() -> None:
    scores = torch.tensor([0.0, -torch.inf, 1.0, -torch.inf], dtype=torch.float64)
    for options in ({"top_k": 3}, {"top_p": 0.99}, {"min_p": 0.001}, {"top_k": 4, "top_p": 0.999}):
        assert not our_warp(scores, options)[[1, 3]].isfinite().any()


def test_top_p_sorts_few_tokens_and_more_only_where_these_do_not_hold_the_mass(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    sizes: list[int] = []
    sort = np.sort
    monkeypatch.setattr(np, "sort", lambda values: (sizes.append(len(values)), sort(values))[1])
    peaked = torch.linspace(0, -100, 500, dtype=torch.float64)
    warp(peaked, SamplingParams(temperature=1.0, top_p=0.9))
    assert len(sizes) == 1 and sizes[0] < 60
    warp(torch.zeros(20_000), SamplingParams(temperature=1.0, top_p=0.9))
    assert sizes[1:] == [0, 20_000]


@pytest.mark.parametrize("options", OPTIONS, ids=str)
def test_a_block_is_warped_as_its_rows_are(options: dict[str, Any]) -> None:
    params = SamplingParams(**{"temperature": 1.0, **options})
    spread = torch.tensor([[0.01], [1.0], [6.0]], dtype=torch.float64)
    scores = spread * torch.randn(3, 700, dtype=torch.float64, generator=seeded())
    scores[1, 10:20] = scores[1, 10]
    before = scores.clone()
    rows = torch.stack([our_warp(row, options) for row in scores])
    torch.testing.assert_close(warp_block(scores, params), rows)
    assert scores.equal(before)


# --- the draw ----------------------------------------------------------------------------------


def make_sampler(**options: Any) -> tuple[TokenSampler, Row, KeyedNoise]:
    params = SamplingParams(seed=9, **options)
    keyed = KeyedNoise(9)
    noise = None if params.is_greedy else PositionNoise(keyed, VOCAB, CPU)
    row = Row(0, [3, 1, 4], params, noise)
    return TokenSampler(row, (), CPU), row, keyed


VOCAB = 80
LOGITS = 2 * torch.randn(4, VOCAB, generator=torch.Generator().manual_seed(0))


def test_greedy_is_the_argmax_with_the_lowest_id_on_ties() -> None:
    sampler, _, _ = make_sampler()
    logits = LOGITS.clone()
    logits[2, [9, 70]] = 50.0
    sampler.bind(logits)
    assert sampler.draw(0, []) == int(LOGITS[0].argmax())
    assert sampler.draw(2, []) == 9


@pytest.mark.parametrize("options", [o for o in OPTIONS if o.get("top_p") != 0.7], ids=str)
def test_a_draw_is_gumbel_max_at_its_own_position(options: dict[str, Any]) -> None:
    sampler, row, keyed = make_sampler(**{"temperature": 1.0, **options})
    sampler.bind(LOGITS)
    for node, path in ((0, []), (3, [7]), (2, [7, 8])):
        position = len(row.token_ids) + len(path)
        noise = keyed(position, torch.arange(VOCAB))
        wanted = (stock_warp(LOGITS[node], options).double() + noise).argmax()
        assert sampler.draw(node, path) == int(wanted)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_half_precision_is_widened_before_anything_else(dtype: torch.dtype) -> None:
    """At 8 bits two different scores divided by a temperature can become equal."""
    sampler, row, keyed = make_sampler(temperature=0.3)
    logits = LOGITS.to(dtype)
    sampler.bind(logits)
    scores = logits[1].float() / 0.3
    noise = keyed(len(row.token_ids), torch.arange(VOCAB))
    assert sampler.draw(1, []) == int((scores.double() + noise).argmax())


def test_rare_warpers_are_transformers_own_in_its_order() -> None:
    options = {
        "temperature": 0.8, "top_h": 0.9, "top_k": 50, "top_p": 0.9, "min_p": 0.01,
        "typical_p": 0.8, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02, "renormalize_logits": True,
    }  # fmt: skip
    sampler, row, keyed = make_sampler(**options)
    sampler.bind(LOGITS)
    warpers = LogitsProcessorList(
        [
            hf.TemperatureLogitsWarper(0.8), hf.TopHLogitsWarper(0.9), hf.TopKLogitsWarper(50),
            hf.TopPLogitsWarper(0.9), hf.MinPLogitsWarper(0.01), hf.TypicalLogitsWarper(0.8),
            hf.EpsilonLogitsWarper(0.01), hf.EtaLogitsWarper(0.02), hf.LogitNormalization(),
        ]
    )  # fmt: skip
    scores = warpers(torch.tensor([row.token_ids]), LOGITS[:1].clone())[0].double()
    noise = keyed(len(row.token_ids), torch.arange(VOCAB))
    assert sampler.draw(0, []) == int((scores + noise).argmax())


def test_processors_see_the_path_and_leave_the_logits_alone() -> None:
    """A penalty on a token that was accepted in this very step."""
    sampler, _, _ = make_sampler(repetition_penalty=1e6)
    logits = LOGITS.abs() + 1  # of positive scores a penalised one is next to nothing
    sampler.bind(logits)
    before = logits.clone()
    best = int(logits[1].argmax())
    assert sampler.draw(1, []) == best
    assert sampler.draw(1, [best]) != best
    assert sampler.draw(1, []) == best
    assert logits.equal(before)


def test_the_draw_costs_nothing_beside_the_walk(monkeypatch: pytest.MonkeyPatch) -> None:
    """Noise and warping are made for the node that is asked for, not for the tree."""
    calls: list[int] = []
    monkeypatch.setattr(sampling, "warp", lambda s, p: (calls.append(len(s)), warp(s, p))[1])
    sampler, _, _ = make_sampler(temperature=1.0, top_k=5)
    sampler.bind(LOGITS)
    sampler.draw(2, [1])
    assert calls == [VOCAB]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16, torch.float32])
def test_the_largest_is_found_whatever_the_signs(dtype: torch.dtype) -> None:
    """Halves are compared by their bits, whose order is the numbers' above zero only."""
    rows = [
        [-3.0, -1.0, -2.0],  # all below zero
        [-1.0, -0.0, 0.0],  # equal zeros of different bits
        [-8.0, 2.0, 0.5],
        [-torch.inf, -5.0, -torch.inf],
        [1.0, torch.inf, -torch.inf],
        [0.5, 4.0, 4.0],
    ]
    sampler, _, _ = make_sampler()
    sampler.bind(torch.tensor(rows, dtype=dtype))
    assert [sampler.draw(node, []) for node in range(len(rows))] == [1, 1, 1, 1, 1, 1]


def test_rows_give_the_lowest_of_equal_ids() -> None:
    scores = torch.tensor([[1.0, 5.0, 5.0], [2.0, 2.0, 2.0], [-torch.inf, -torch.inf, 0.0]])
    assert lowest_argmax_of_rows(scores).tolist() == [1, 0, 2]


# --- all nodes at once, as on an accelerator -----------------------------------------------------

RARE = {"typical_p": 0.8, "top_h": 0.9, "eta_cutoff": 0.02, "renormalize_logits": True}
NODES = ((0, []), (1, [7]), (2, [7, 8]), (3, [7, 9]))  # depths 0, 1, 2, 2


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
@pytest.mark.parametrize(
    "options", [*OPTIONS, {"temperature": 0.0}, RARE, {"repetition_penalty": 1.5}], ids=str
)
def test_draws_at_once_are_the_draws_along_the_walk(
    options: dict[str, Any], dtype: torch.dtype
) -> None:
    options = {"temperature": 1.0, **options}
    lazy, row, _ = make_sampler(**options)
    whole = TokenSampler(row, (), CPU, at_once=True)
    logits = LOGITS.to(dtype)
    lazy.bind(logits)
    whole.bind(logits, (0, 1, 2, 2))
    has_drawn = fetch([whole])
    assert has_drawn == ("repetition_penalty" not in options)
    assert whole.drawn is None or len(whole.drawn) == len(logits)
    for node, path in NODES:
        assert whole.draw(node, path) == lazy.draw(node, path)


def test_one_copy_brings_the_draws_of_all_rows(monkeypatch: pytest.MonkeyPatch) -> None:
    copies: list[int] = []
    tolist = torch.Tensor.tolist

    def spy(self: torch.Tensor) -> Any:
        copies.append(len(self))
        return tolist(self)

    samplers = [TokenSampler(make_sampler()[1], (), CPU, at_once=True) for _ in range(3)]
    for sampler, size in zip(samplers, (4, 1, 2), strict=True):
        sampler.bind(LOGITS[:size], range(size))
    monkeypatch.setattr(torch.Tensor, "tolist", spy)
    assert fetch(samplers)
    best = LOGITS.argmax(1)
    assert copies == [7]
    assert [sampler.drawn for sampler in samplers] == [tolist(best[:size]) for size in (4, 1, 2)]
    assert not fetch(samplers)


@pytest.mark.parametrize("options", [{}, {"temperature": 1.0, "top_p": 0.9}, {"temperature": 0.7}])
def test_the_loop_draws_at_once_what_it_draws_along_the_walk(
    options: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    jobs = [
        Job(prompt_ids(9 + i), SamplingParams(max_new_tokens=24, seed=i, **options))
        for i in range(3)
    ]
    lazy = run(target("llama"), registered("tr-jacobi"), jobs)
    fetched: list[int] = []
    monkeypatch.setattr(loop, "TokenSampler", lambda *args: TokenSampler(*args, at_once=True))
    monkeypatch.setattr(loop, "fetch", lambda s: (fetched.append(len(s)), fetch(s))[1])
    whole = run(target("llama"), registered("tr-jacobi"), jobs)
    assert [r.token_ids for r in whole] == [r.token_ids for r in lazy]
    assert fetched and fetched[0] == 3
