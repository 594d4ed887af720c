"""Order, conditions and arguments of the processors, compared with `transformers`' own."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList

from draftless.drafters.ngram import NullDrafter
from draftless.engine.processors import make_processors, make_rare_warpers
from draftless.errors import ConfigError
from draftless.params import SamplingParams
from support.driving import Job, run
from support.models import VOCAB_SIZE, stock_model, target

CPU = torch.device("cpu")
PROMPT_LEN = 4
EOS = (2, 5)


class Own(LogitsProcessor):
    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        return scores + input_ids.shape[1] * torch.arange(scores.shape[1])


OPTIONS: dict[str, dict[str, Any]] = {
    "nothing": {},
    "bias": {"sequence_bias": [[[3, 4], 2.0], [[7], -1.5]]},
    "penalty": {"repetition_penalty": 1.3},
    "ngram": {"no_repeat_ngram_size": 2},
    "bad words": {"bad_words_ids": [[3], [4, 5], [2]]},
    "least length": {"min_new_tokens": 3},
    "forced": {"forced_bos_token_id": 1, "forced_eos_token_id": 2},
    "invalid": {"remove_invalid_values": True},
    "decay": {"exponential_decay_length_penalty": (1, 1.5)},
    "suppress": {"suppress_tokens": [3, 4], "begin_suppress_tokens": [6, 7]},
    "begin after a forced start": {"begin_suppress_tokens": [6], "forced_bos_token_id": 1},
}
OPTIONS["several ends"] = {"forced_eos_token_id": [2, 5]}
OPTIONS["everything"] = {k: v for options in OPTIONS.values() for k, v in options.items()}
RARE: dict[str, dict[str, Any]] = {
    "top-h": {"top_h": 0.5},
    "typical": {"typical_p": 0.5, "temperature": 0.7},
    "epsilon": {"epsilon_cutoff": 0.01, "top_k": 9},
    "eta": {"eta_cutoff": 0.01, "top_p": 0.9},
    "normal": {"renormalize_logits": True, "min_p": 0.1},
    "all": {
        "top_h": 0.9, "typical_p": 0.8, "epsilon_cutoff": 0.01, "eta_cutoff": 0.02,
        "temperature": 0.7, "top_k": 9, "top_p": 0.9, "min_p": 0.1, "renormalize_logits": True,
    },
}  # fmt: skip


def stock_list(prompt_len: int, **options: Any) -> LogitsProcessorList:
    """What `transformers.generate` would run for these options."""
    model = stock_model("llama")
    config = GenerationConfig(max_new_tokens=6, eos_token_id=list(EOS), **options)
    config.max_length = prompt_len + 6
    config.min_length = 0
    config.top_k = options.get("top_k", 0)
    model._prepare_special_tokens(config, True, CPU)
    return model._get_logits_processor(
        generation_config=config,
        input_ids_seq_length=prompt_len,
        encoder_input_ids=torch.zeros(1, prompt_len, dtype=torch.long),
        prefix_allowed_tokens_fn=None,
        logits_processor=LogitsProcessorList(),
        device="cpu",
    )


@pytest.mark.parametrize("prompt_len", [1, PROMPT_LEN])
@pytest.mark.parametrize("name", OPTIONS)
def test_processors_are_those_of_transformers(name: str, prompt_len: int) -> None:
    params = SamplingParams(max_new_tokens=6, **OPTIONS[name])
    ours = make_processors(params, prompt_len, EOS, CPU)
    stock = stock_list(prompt_len, **OPTIONS[name])
    assert_same(ours, stock, prompt_len)


@pytest.mark.parametrize("name", RARE)
def test_rare_warpers_are_those_of_transformers(name: str) -> None:
    params = SamplingParams(**{"temperature": 1.0, **RARE[name]})
    assert params.has_rare_warpers
    stock = stock_list(PROMPT_LEN, do_sample=True, **RARE[name])
    assert_same(make_rare_warpers(params, CPU), stock, PROMPT_LEN)


def assert_same(ours: LogitsProcessorList, stock: LogitsProcessorList, prompt_len: int) -> None:
    """The same classes in the same order, and the same scores at every length."""
    assert [type(p) for p in ours] == [type(p) for p in stock]
    generator = torch.Generator().manual_seed(0)
    for length in range(prompt_len, prompt_len + 6):
        ids = torch.randint(8, (1, length), generator=generator)
        scores = torch.randn(1, 61, generator=generator)
        assert ours(ids, scores.clone()).equal(stock(ids, scores.clone()))


def test_the_users_processors_come_last_in_their_order() -> None:
    first, second = Own(), Own()
    params = SamplingParams(repetition_penalty=1.3, logits_processors=[first, second])
    found = make_processors(params, PROMPT_LEN, (), CPU)
    assert list(found)[-2:] == [first, second]
    assert params.has_processors


def test_allowed_tokens_are_asked_with_the_whole_prefix() -> None:
    asked: list[list[int]] = []

    def allowed(_row: int, ids: torch.Tensor) -> list[int]:
        asked.append(ids.tolist())
        return [2, 3]

    found = make_processors(SamplingParams(prefix_allowed_tokens_fn=allowed), 1, (), CPU)
    scores = found(torch.tensor([[4, 5]]), torch.zeros(1, 6))
    assert asked == [[4, 5]]
    assert scores.isfinite().nonzero()[:, 1].tolist() == [2, 3]


def test_nothing_runs_where_nothing_is_asked_for() -> None:
    assert not SamplingParams(temperature=0.7, top_k=4, top_p=0.4, min_p=0.1).has_processors
    assert not SamplingParams(temperature=0.7, top_k=4, top_p=0.4, min_p=0.1).has_rare_warpers
    assert all(SamplingParams(**o).has_processors for n, o in OPTIONS.items() if n != "nothing")


@pytest.mark.parametrize(
    "options",
    [
        {"bad_words_ids": [[3, VOCAB_SIZE]]},
        {"sequence_bias": [[[-1], 2.0]]},
        {"suppress_tokens": [VOCAB_SIZE]},
        {"begin_suppress_tokens": [1, VOCAB_SIZE]},
        {"forced_bos_token_id": VOCAB_SIZE},
        {"forced_eos_token_id": VOCAB_SIZE},
        {"forced_eos_token_id": [1, VOCAB_SIZE]},
        {"eos_token_ids": VOCAB_SIZE},
    ],
)
def test_ids_that_the_model_lacks_are_refused_before_any_work(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError, match=f"{next(iter(options))} holds token id .* outside"):
        run(target("llama"), NullDrafter(), [Job([1, 2], SamplingParams(seed=0, **options))])


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_h": 0.5}])
def test_a_request_that_excludes_every_token_is_told_so(sampling: dict[str, Any]) -> None:
    everything = SamplingParams(seed=0, suppress_tokens=range(VOCAB_SIZE), **sampling)  # type: ignore[arg-type]
    with pytest.raises(ConfigError, match="exclude every token at position 2"):
        run(target("llama"), NullDrafter(), [Job([1, 2], everything)])
    all_but_one = SamplingParams(
        seed=0, suppress_tokens=range(1, VOCAB_SIZE), max_new_tokens=2, **sampling  # type: ignore[arg-type]
    )  # fmt: skip
    (result,) = run(target("llama"), NullDrafter(), [Job([1, 2], all_but_one)])
    assert result.token_ids == [0, 0]


@pytest.mark.parametrize("sampling", [{}, {"temperature": 1.0}, {"temperature": 1.0, "top_h": 0.5}])
@pytest.mark.parametrize("width", [1, VOCAB_SIZE])
def test_a_processor_that_gives_nan_is_told_so(sampling: dict[str, Any], width: int) -> None:
    """Where `transformers` raises when it samples, and takes some id when it does not."""

    def broken(ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        if ids.shape[1] > 3:
            scores[:, -width:] = torch.nan
        return scores

    params = SamplingParams(seed=0, logits_processors=[broken], **sampling)  # type: ignore[list-item]
    with pytest.raises(ConfigError, match="give NaN at position 4"):
        run(target("llama"), NullDrafter(), [Job([1, 2], params)])
