"""The adapter for lm-eval, against a stand-in of its base class: lm-eval is not installed here."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from draftless.errors import ConfigError, InputError
from support.bench import bench_model

NAME = "draftless.bench.quality.lm_eval_adapter"


class StandIn:
    """What `lm_eval.api.model.LM` gives to its subclasses, as far as the adapter uses it."""

    def __init__(self) -> None:
        self.cached: list[Any] = []
        self.cache_hook = SimpleNamespace(add_partial=lambda *call: self.cached.append(call))


@pytest.fixture
def adapter(monkeypatch: pytest.MonkeyPatch) -> Iterator[ModuleType]:
    api = ModuleType("lm_eval.api.model")
    api.LM = StandIn  # type: ignore[attr-defined]
    for name, module in (
        ("lm_eval", ModuleType("lm_eval")),
        ("lm_eval.api", ModuleType("lm_eval.api")),
        ("lm_eval.api.model", api),
    ):
        monkeypatch.setitem(sys.modules, name, module)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    yield importlib.import_module(NAME)
    sys.modules.pop(NAME, None)


def request(*arguments: Any) -> Any:
    return SimpleNamespace(args=arguments)


def ids_of(text: str) -> list[int]:
    tokenizer = bench_model().tokenizer
    assert tokenizer is not None
    return list(tokenizer.encode(text))


def log_probs(ids: list[int]) -> torch.Tensor:
    """`[len - 1]` log-probabilities of every id behind the first."""
    with torch.inference_mode():
        logits = bench_model().target.model(torch.tensor([ids]), use_cache=False).logits[0]
        logits[:, list(bench_model().target.input_only_ids)] = -torch.inf  # it never says them
    return logits[:-1].log_softmax(-1).gather(1, torch.tensor(ids[1:])[:, None])[:, 0]


def test_without_lm_eval_the_way_out_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lm_eval.api.model", None)
    monkeypatch.delitem(sys.modules, NAME, raising=False)
    with pytest.raises(ConfigError, match="pip install lm-eval"):
        importlib.import_module(NAME)


def test_answers_are_those_of_the_engine_without_their_stops(adapter: ModuleType) -> None:
    lm = adapter.DraftlessLM(bench_model(), batch_size=2)
    texts = ["the cat", "print(a", "on the mat"]
    whole = [bench_model().generate(text, max_new_tokens=12).text for text in texts]
    stop = whole[1][4:6]
    options = [{"max_gen_toks": 12}, {"max_gen_toks": 12, "until": [stop]}, {"max_gen_toks": 3}]
    options[0] |= {"do_sample": False, "temperature": 0.7}
    options[2] |= {"until": "never there", "temperature": 0.0}
    answers = lm.generate_until([request(t, o) for t, o in zip(texts, options, strict=True)])
    assert answers[0] == whole[0], "do_sample=False is greedy, whatever the temperature says"
    assert answers[1] == whole[1].split(stop)[0]
    assert answers[2] == bench_model().generate(texts[2], max_new_tokens=3).text
    assert [call[0] for call in lm.cached] == ["generate_until"] * 3


def test_unknown_generation_options_are_refused(adapter: ModuleType) -> None:
    lm = adapter.DraftlessLM(bench_model())
    with pytest.raises(ConfigError, match="num_beams"):
        lm.generate_until([request("the cat", {"num_beams": 4})])


def test_options_that_change_nothing_and_other_names_of_the_length(adapter: ModuleType) -> None:
    lm = adapter.DraftlessLM(bench_model())
    (short,) = lm.generate_until([request("the cat", {"max_gen_toks": 5})])
    for name in ("max_new_tokens", "max_tokens", "max_completion_tokens"):
        ask = {name: 5, "num_beams": 1, "early_stopping": False, "use_cache": True}
        assert lm.generate_until([request("the cat", ask)]) == [short]


def test_long_prompts_lose_their_beginning_to_leave_room(
    adapter: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = bench_model()
    text = "the cat sat on the mat and the dog sat on the log " * 2
    ids = ids_of(text)
    monkeypatch.setattr(model.target, "max_positions", len(ids) + 3)
    lm = adapter.DraftlessLM(model, max_gen_toks=8)
    for cut in (ids, ids + ids[1:]):
        expected = model.generate(cut[-(len(ids) - 5) :], max_new_tokens=8)
        assert len(expected.token_ids) == 8
        prompt = text if cut is ids else text + text
        assert ids_of(prompt)[-len(ids) + 5 :] == cut[-len(ids) + 5 :]
        assert lm.generate_until([request(prompt, {})]) == [expected.text]
    with pytest.raises(ConfigError, match="max_gen_toks=999 must be below the model's context"):
        lm.generate_until([request(text, {"max_gen_toks": 999})])


def test_sampling_is_repeatable(adapter: ModuleType) -> None:
    lm = adapter.DraftlessLM(bench_model())
    ask = [request("the cat", {"do_sample": True, "temperature": 1.0, "max_gen_toks": 12})]
    assert lm.generate_until(ask) == lm.generate_until(ask)
    assert lm.generate_until(ask) != lm.generate_until([request("the cat", {"max_gen_toks": 12})])


def test_likelihoods_are_sums_over_the_continuation(adapter: ModuleType) -> None:
    lm = adapter.DraftlessLM(bench_model())
    before, both = ids_of("the cat"), ids_of("the cat sat on")
    expected = float(log_probs(both)[len(before) - 1 :].sum())
    pairs = [request("the cat", " sat on"), request("the cat ", "sat on")]
    for value, is_greedy in lm.loglikelihood(pairs):
        assert value == pytest.approx(expected, rel=1e-5)
        assert is_greedy is False


def test_the_greedy_continuation_is_told(adapter: ModuleType) -> None:
    lm = adapter.DraftlessLM(bench_model())
    with torch.inference_mode():
        logits = bench_model().target.model(torch.tensor([ids_of("the cat")])).logits[0, -1]
    assert bench_model().tokenizer is not None
    best = bench_model().tokenizer.decode([int(logits.argmax())])
    assert ids_of("the cat" + best) == [*ids_of("the cat"), int(logits.argmax())]
    ((_, is_greedy),) = lm.loglikelihood([request("the cat", best)])
    assert is_greedy


def test_an_empty_context_begins_with_bos(adapter: ModuleType) -> None:
    lm = adapter.DraftlessLM(bench_model())
    ((value, _),) = lm.loglikelihood([request("", "the cat")])
    assert value == pytest.approx(float(log_probs([0, *ids_of("the cat")]).sum()), rel=1e-5)
    (rolled,) = lm.loglikelihood_rolling([request("the cat")])
    assert rolled == pytest.approx(value)


def test_long_texts_keep_their_end_and_roll_with_full_context(
    adapter: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As lm-eval describes it: every token once, the last window as full as it can be."""
    lm = adapter.DraftlessLM(bench_model())
    text, end = "the cat sat on the mat and the dog sat", " on the log"
    ids = [0, *ids_of(text)]
    monkeypatch.setattr(bench_model().target, "max_positions", 4)
    assert len(ids) % 4 != 1, "the last window is not just filled"
    parts = [log_probs(ids[:5])]
    for start in range(5, len(ids), 4):
        stop = min(len(ids), start + 4)
        parts.append(log_probs(ids[stop - 5 : stop])[-(stop - start) :])
    assert sum(map(len, parts)) == len(ids) - 1
    (rolled,) = lm.loglikelihood_rolling([request(text)])
    assert rolled == pytest.approx(float(torch.cat(parts).sum()), rel=1e-5)
    count = len(ids_of(text + end)) - len(ids_of(text))
    ((value, _),) = lm.loglikelihood([request(text, end)])
    expected = log_probs(ids_of(text + end)[-5:])[-count:]
    assert value == pytest.approx(float(expected.sum()), rel=1e-5)
    with pytest.raises(InputError, match="context"):
        lm.loglikelihood([request("the", text)])


def test_a_model_without_tokenizer_is_refused(adapter: ModuleType) -> None:
    model = SimpleNamespace(tokenizer=None)
    with pytest.raises(ConfigError, match="tokenizer"):
        adapter.DraftlessLM(model)
