"""Every method is timed and counted the same way, and does what its name says."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from draftless.bench import methods
from draftless.bench.methods import (
    PEER_EARLY_EXIT,
    PEER_LOOKUP,
    TRANSFORMERS,
    Method,
    Sampling,
    our_method,
    peer_methods,
    stock_copy,
    why_no_early_exit,
)
from draftless.bench.rows import Turn
from draftless.errors import ConfigError
from draftless.model import Draftless
from support.bench import bench_model, fresh_model, neox_model, wide_model

PROMPT = "the cat sat on the mat the cat"
MAX = 24
METHODS = bench_model().drafters


def all_methods(model: Draftless, sampling: Sampling = Sampling()) -> dict[str, Method]:  # noqa: B008
    """Peers and every drafter that the model can use."""
    found, _ = peer_methods(model, stock_copy(model.target.model), sampling, MAX)
    for name in model.drafters:
        found[name] = our_method(model.with_drafter(name), sampling, MAX)
    return found


def check_counts(turn: Turn) -> None:
    """What must hold for every turn of every method."""
    assert sum(turn.step_tokens) == turn.num_tokens == len(turn.token_ids)
    assert len(turn.step_tokens) == len(turn.step_drafted) == len(turn.step_s)
    assert all(
        1 <= tokens <= drafted + 1
        for tokens, drafted in zip(turn.step_tokens, turn.step_drafted, strict=True)
    )
    assert turn.step_s == sorted(turn.step_s)
    assert turn.prefill_s is not None
    assert 0 < turn.prefill_s <= turn.first_token_s == turn.step_s[0] <= turn.seconds
    assert turn.num_steps <= turn.num_forward_passes <= turn.num_steps + 1  # one for the prompt


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_counts_come_from_ids_for_everyone(temperature: float) -> None:
    model = bench_model()
    ids = model.encode(PROMPT)
    for name, method in all_methods(model, Sampling(temperature)).items():
        turn = method(ids, 3)
        check_counts(turn)
        assert turn.prompt_len == len(ids)
        assert turn.text == model.tokenizer.decode(turn.token_ids, skip_special_tokens=True), name
        if name in (TRANSFORMERS, "none"):
            assert turn.step_tokens == [1] * turn.num_tokens
            assert turn.step_drafted == [0] * turn.num_tokens
        if name in METHODS:
            assert len(turn.step_nodes) == turn.num_steps
            nodes = [
                nodes - 1 - d for nodes, d in zip(turn.step_nodes, turn.step_drafted, strict=True)
            ]
            # All but the root and the drafts are probes; they are no drafts.
            assert min(nodes) >= 0
            if name != "auto":  # which feeds some where they pay on this machine
                assert any(nodes) == (name == "sdsat")
            assert len(turn.sources) == turn.num_tokens
            assert set(turn.time_s) >= {"prefill", "propose", "forward", "verify"}
            assert "".join(turn.pieces) == (turn.text if any(turn.sources) else "")


def test_greedy_methods_write_what_generate_writes() -> None:
    model = bench_model()
    ids = model.encode(PROMPT)
    expected = model.generate(ids, max_new_tokens=MAX).token_ids
    turns = {name: method(ids, 0) for name, method in all_methods(model).items()}
    assert {name: turn.token_ids for name, turn in turns.items()} == dict.fromkeys(turns, expected)
    drafting = [PEER_LOOKUP, PEER_EARLY_EXIT, "prompt-lookup", "tr-jacobi"]
    # A method that quietly fell back to plain decoding would pass the line above.
    assert all(sum(turns[name].step_drafted) for name in drafting)


def test_no_method_emits_what_is_input_only() -> None:
    """The loops of `transformers` must be told; ours masks the logits itself."""
    ids = bench_model().encode(PROMPT)
    plain = fresh_model(adaptive_ids=()).generate(ids, max_new_tokens=MAX).token_ids
    model = fresh_model(adaptive_ids=(plain[3],))
    expected = model.generate(ids, max_new_tokens=MAX).token_ids
    assert plain[3] not in expected
    assert expected[:3] == plain[:3]
    for name, method in all_methods(model).items():
        assert method(ids, 0).token_ids == expected, name


def test_sampling_follows_the_seed() -> None:
    model = bench_model()
    ids = model.encode(PROMPT)
    options = {"temperature": 1.0, "top_k": 50, "top_p": 0.9, "min_p": 0.01}
    expected = model.generate(ids, max_new_tokens=MAX, seed=3, **options).token_ids
    state = torch.get_rng_state()
    for name, method in all_methods(model, Sampling(**options)).items():
        first, again, other = method(ids, 3), method(ids, 3), method(ids, 4)
        assert first.token_ids == again.token_ids != other.token_ids, name
        assert name not in METHODS or first.token_ids == expected
    assert torch.equal(state, torch.get_rng_state())


def test_an_eos_ends_all_alike() -> None:
    model = fresh_model()
    ids = model.encode(PROMPT)
    plain = model.generate(ids, max_new_tokens=MAX).token_ids
    end = next(i for i in range(4, MAX) if plain[i] not in plain[:i])
    model.target.model.generation_config.eos_token_id = [298, plain[end]]
    for name, method in all_methods(model).items():
        turn = method(ids, 0)
        assert turn.token_ids == plain[: end + 1], name
        assert turn.finish_reason == "stop"
        check_counts(turn)


def test_peers_ignore_what_a_checkpoint_adds() -> None:
    """Our loop takes no penalties from `generation_config.json`; a fair peer must not, either."""
    model = fresh_model()
    ids = model.encode(PROMPT)
    expected = model.generate(ids, max_new_tokens=MAX).token_ids
    model.target.model.generation_config.repetition_penalty = 5.0
    model.target.model.generation_config.no_repeat_ngram_size = 2
    for name, method in all_methods(model).items():
        assert method(ids, 0).token_ids == expected, name


def test_our_text_is_decoded_after_the_clock(monkeypatch: pytest.MonkeyPatch) -> None:
    """A decode per step would charge plain decoding more than drafting."""
    model = bench_model()
    ids = model.encode(PROMPT)
    calls: list[Any] = []
    clock: Iterator[float] = iter(range(10**6))
    monkeypatch.setattr(time, "perf_counter", lambda: calls.append("clock") or float(next(clock)))
    monkeypatch.setattr(methods, "decode_text", lambda *_: calls.append("decode") or "text")
    decode = type(model.tokenizer).decode
    monkeypatch.setattr(
        type(model.tokenizer),
        "decode",
        lambda self, *a, **k: calls.append("decode") or decode(self, *a, **k),
    )
    our_method(model.with_drafter("tr-jacobi"), Sampling(), MAX)(ids, 0)
    assert "decode" in calls
    assert "clock" not in calls[calls.index("decode") :]


def test_a_stock_copy_shares_the_weights_and_nothing_else() -> None:
    model = fresh_model().target.model
    stock = stock_copy(model)
    assert model.config._attn_implementation == "draftless"
    assert stock.config._attn_implementation == "sdpa"
    pairs = zip(model.parameters(), stock.parameters(), strict=True)
    assert all(ours is theirs for ours, theirs in pairs)
    exact = stock_copy(wide_model(torch.bfloat16), torch.float32)
    assert exact.dtype == torch.float32


def test_a_copy_in_another_dtype_leaves_the_model_alone() -> None:
    model = wide_model(torch.bfloat16)
    stock_copy(model, torch.float32)
    assert model.dtype == torch.bfloat16


def test_early_exit_runs_where_it_applies() -> None:
    assert why_no_early_exit(wide_model()) is None
    reason = why_no_early_exit(neox_model())
    assert reason is not None
    assert "GPTNeoX" in reason
    model = bench_model()
    _, skipped = peer_methods(model, stock_copy(model.target.model), Sampling(1.0), MAX)
    assert skipped == {PEER_EARLY_EXIT: "greedy only"}


def test_a_failure_leaves_the_model_whole(monkeypatch: pytest.MonkeyPatch) -> None:
    model = bench_model()
    stock = stock_copy(model.target.model)
    found, _ = peer_methods(model, stock, Sampling(), MAX)
    ids = model.encode(PROMPT)
    expected = found[TRANSFORMERS](ids, 0)

    def fail(*_: Any, **__: Any) -> Any:
        stock.config.num_hidden_layers = 1  # as inside an early exit
        raise RuntimeError("planted")

    with monkeypatch.context() as patch:
        patch.setattr(type(stock), "generate", fail)
        with pytest.raises(RuntimeError, match="planted"):
            found[PEER_EARLY_EXIT](ids, 0)
    after = found[TRANSFORMERS](ids, 0)
    assert after.token_ids == expected.token_ids
    assert after.num_forward_passes == expected.num_forward_passes
    assert not stock._forward_hooks
    assert not stock._forward_pre_hooks


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "greedy"),
        ({"temperature": 1.0}, "T=1"),
        (
            {"temperature": 0.7, "top_k": 40, "top_p": 0.95, "min_p": 0.1},
            "T=0.7 top-k=40 top-p=0.95 min-p=0.1",
        ),
    ],
)
def test_a_sampling_has_a_name(options: dict[str, Any], name: str) -> None:
    assert Sampling(**options).name == name


@pytest.mark.parametrize(
    "options", [{"temperature": -1.0}, {"top_p": 0.9}, {"temperature": 1.0, "top_p": 0.0}]
)
def test_a_sampling_that_cannot_be_is_refused(options: dict[str, Any]) -> None:
    with pytest.raises(ConfigError):
        Sampling(**options)
