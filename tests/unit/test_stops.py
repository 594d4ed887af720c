"""Stops per token, and text that is safe to show."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import pytest
import torch
from transformers.generation.stopping_criteria import StopStringCriteria

from draftless.engine import stops as module
from draftless.engine.stops import StopChecker, TextDecoder
from draftless.errors import ConfigError
from draftless.params import SamplingParams
from draftless.types import Row
from support.tokens import byte_ids, byte_tokenizer, fallback_tokenizer

CPU = torch.device("cpu")
PROMPT = [65, 66]


def make_checker(
    eos: Sequence[int] = (), max_positions: int | None = None, **options: Any
) -> StopChecker:
    row = Row(0, PROMPT, SamplingParams(**options), None)
    return StopChecker(row, eos, byte_tokenizer(), max_positions, CPU)


def push_all(checker: StopChecker, ids: Sequence[int]) -> tuple[int, str | None]:
    """Push until there is a reason: how many ids were taken, and the reason."""
    for count, token_id in enumerate(ids, start=1):
        reason = checker.push(token_id)
        if reason:
            return count, reason
    return len(ids), None


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (1, 3, 1), (2, 3), (1, 4), (5,)])
def test_the_text_of_a_stream_does_not_depend_on_where_steps_end(sizes: tuple[int, ...]) -> None:
    """Byte fallback: decoded at once, a whole character and a stray byte are three broken bytes."""
    checker = StopChecker(
        Row(0, PROMPT, SamplingParams(), None), (), fallback_tokenizer(), None, CPU
    )
    ids, text = [0, 1, 2, 3, 3], ""
    for size in sizes:
        for _ in range(size):
            checker.push(ids.pop(0))
        text += checker.take_text(is_last=not ids)
    assert text == "\u00e9\ufffdaa"


BROKEN = [
    [0, 1, 2, 3], [0, 1, 0], [0, 1, 0, 3], [2, 0, 1], [0, 1, 0, 1, 2], [0, 0, 0], [3, 0, 1, 2, 2, 3],
    [0, 1, 2, 0, 1],
]  # fmt: skip


@pytest.mark.parametrize("ids", BROKEN, ids=str)
def test_one_list_of_ids_has_one_text(ids: list[int]) -> None:
    """At once, step by step, and with a stop that never comes; whole characters stay whole."""
    texts = set()
    for size, stop in ((1, ()), (2, ()), (99, ()), (1, "zz"), (99, "zz")):
        row = Row(0, PROMPT, SamplingParams(stop=stop), None)
        checker = StopChecker(row, (), fallback_tokenizer(), None, CPU)
        shown = ""
        for begin in range(0, len(ids), size):
            for token_id in ids[begin : begin + size]:
                checker.push(token_id)
            if size < 99:
                shown += checker.take_text(is_last=begin + size >= len(ids))
        texts.add(checker.finish_text())
        assert shown in ("", checker.text)
    assert len(texts) == 1
    told = texts.pop()
    if ids[:2] == [0, 1]:
        assert told.startswith("\u00e9")


def final_text(checker: StopChecker) -> str:
    checker.take_text(is_last=True)
    return checker.text


# --- stop strings ------------------------------------------------------------------------------


@pytest.mark.parametrize(("include", "text"), [(False, "say "), (True, "say hello")])
def test_a_stop_string_over_several_tokens(include: bool, text: str) -> None:
    checker = make_checker(stop="hello", include_stop=include)
    assert push_all(checker, byte_ids("say hello there")) == (9, "stop")
    assert final_text(checker) == text


def test_a_stop_string_that_ends_inside_a_token() -> None:
    """`hell` is one token; the text is cut inside it, the ids are not."""
    checker = make_checker(stop="he")
    ids = byte_tokenizer()("a hello").input_ids
    count, reason = push_all(checker, ids)
    assert reason == "stop"
    assert byte_tokenizer().decode(ids[:count]) == "a hell"
    assert final_text(checker) == "a "


def test_the_first_of_several_stop_strings_cuts() -> None:
    checker = make_checker(stop=["ell", "hell"], max_new_tokens=50)
    assert push_all(checker, byte_tokenizer()("hell").input_ids) == (1, "stop")
    assert final_text(checker) == ""


def test_a_stop_string_in_the_prompt_does_not_count() -> None:
    checker = make_checker(stop=byte_tokenizer().decode(PROMPT) + "x")
    assert push_all(checker, byte_ids("x")) == (1, None)


def test_a_stop_string_needs_a_tokenizer() -> None:
    row = Row(0, PROMPT, SamplingParams(stop="x"), None)
    with pytest.raises(ConfigError, match="needs a tokenizer"):
        StopChecker(row, (), None, None, CPU)


TURN = byte_tokenizer().convert_tokens_to_ids("<turn>")


@pytest.mark.parametrize(
    ("stop", "count", "kept"),
    [
        ("<turn>", 3, "ab<turn>"),
        ("b<turn>", 3, "ab<turn>"),
        ("<turn>c", 4, "ab<turn>c"),
        ("b<turn>cd", 5, "ab<turn>cd"),
        ("<turn><turn>", 8, "abcd<turn><turn>"),
        ("urn>c", 4, "aburn>c"),  # begins inside a token that does not show
        (["d", "<turn>d"], 5, "abcd"),
        ("bcd", None, "abcde"),  # which no token sequence of these ids spells
    ],
)
@pytest.mark.parametrize("size", [1, 2, 9])
def test_a_stop_string_may_hold_special_tokens(
    stop: str | list[str], count: int | None, kept: str, size: int
) -> None:
    """They are looked for where `transformers` does, and in the text only as part of a kept stop."""
    ids = [*byte_ids("ab"), TURN, *byte_ids("cd"), TURN, TURN, *byte_ids("e")]
    ids = ids if stop != "<turn><turn>" else [*ids[:5], 5, TURN, TURN]
    kept = kept.replace("d<turn>", f"d{byte_tokenizer().decode([5])}<turn>")
    for include in (True, False):
        checker = make_checker(stop=stop, include_stop=include)
        text, pushed, reason = "", 0, None
        while pushed < len(ids) and reason is None:
            for token_id in ids[pushed : pushed + size]:
                pushed, reason = pushed + 1, checker.push(token_id)
                if reason:
                    break
            text += checker.take_text(is_last=reason is not None or pushed == len(ids))
        assert (pushed, reason) == ((count, "stop") if count else (len(ids), None))
        end = stop if isinstance(stop, str) else "d"
        wanted = kept if include or not count else kept.removesuffix(end)
        assert text == checker.finish_text() == wanted


def test_special_tokens_count_as_transformers_counts_them() -> None:
    ids = [*byte_ids("ab"), TURN, *byte_ids("cd")]
    for stop in ("<turn>", "b<turn>", "<turn>c", "b<turn>cd", "rn>cd", "bc", "abc"):
        criterion = StopStringCriteria(byte_tokenizer(), [stop])
        wanted = next(
            (n for n in range(1, 6) if criterion(torch.tensor([ids[:n]]), None)),  # type: ignore[arg-type]
            5,
        )
        assert push_all(make_checker(stop=stop), ids)[0] == wanted, stop


def test_a_stop_that_begins_in_the_prompt_stops_transformers_and_not_us() -> None:
    """We look at the answer alone, as other servers do: what is in the prompt was not written."""
    criterion = StopStringCriteria(byte_tokenizer(), ["ab"])
    (first, second) = byte_ids("ab")
    assert bool(criterion(torch.tensor([[first, second]]), None))  # type: ignore[arg-type]
    row = Row(0, [first], SamplingParams(stop="ab"), None)
    checker = StopChecker(row, (), byte_tokenizer(), None, CPU)
    assert checker.push(second) is None
    assert checker.finish_text() == "b"


# --- text --------------------------------------------------------------------------------------

TEXTS = ["plain", "naïve café", "日本語 €5", "👩‍🚀 to the moon", "  spaces   and\nlines ", "�"]


@pytest.mark.parametrize("text", TEXTS)
def test_pieces_join_to_the_whole(text: str) -> None:
    for ids in (byte_ids(text), byte_tokenizer()(text).input_ids):
        decoder = TextDecoder(byte_tokenizer())
        pieces = [decoder.push([i]) for i in ids]
        pieces.append(decoder.push([], is_last=True))
        assert "".join(pieces) == text == byte_tokenizer().decode(ids)


def test_an_unfinished_character_waits() -> None:
    decoder = TextDecoder(byte_tokenizer())
    assert [decoder.push([i]) for i in byte_ids("a€b")] == ["a", "", "", "€", "b"]


def test_an_unfinished_character_shows_at_the_end() -> None:
    checker = make_checker(max_new_tokens=2)
    assert push_all(checker, byte_ids("€")) == (2, "length")
    assert checker.take_text(is_last=False) == ""
    assert final_text(checker) == "\ufffd"


def test_text_that_may_begin_a_stop_is_held_back() -> None:
    checker = make_checker(stop=["abc", "xy"])
    shown = []
    for token_id in byte_ids("qababdx"):
        assert checker.push(token_id) is None
        shown.append(checker.take_text(is_last=False))
    assert shown == ["q", "", "", "ab", "", "abd", ""]
    assert checker.take_text(is_last=True) == "x"


def test_held_back_text_is_dropped_with_the_stop() -> None:
    checker = make_checker(stop="abc")
    shown = []
    for token_id in byte_ids("qabc"):
        reason = checker.push(token_id)
        shown.append(checker.take_text(is_last=reason is not None))
    assert shown == ["q", "", "", ""]
    assert checker.text == "q"


# --- other stops -------------------------------------------------------------------------------


def test_every_id_of_an_eos_list_stops() -> None:
    for eos in (7, 9):
        assert push_all(make_checker(eos=(7, 9)), [1, 2, eos, 3]) == (3, "stop")
    assert push_all(make_checker(eos=(7, 9), ignore_eos=True), [1, 7, 9]) == (3, None)


def test_the_limit_of_tokens_and_the_context() -> None:
    assert push_all(make_checker(max_new_tokens=3), range(9)) == (3, "length")
    full = make_checker(max_new_tokens=30, max_positions=len(PROMPT) + 4)
    assert full.num_left == 4
    assert push_all(full, range(9)) == (4, "length")


def test_an_eos_at_the_limit_is_a_stop() -> None:
    assert push_all(make_checker(eos=(7,), max_new_tokens=2), [1, 7]) == (2, "stop")


def test_the_users_criteria_see_prompt_and_output() -> None:
    seen: list[list[int]] = []

    def criterion(ids: torch.Tensor, _scores: Any) -> torch.Tensor:
        seen.append(ids[0].tolist())
        return torch.tensor([ids.shape[1] == 4])

    checker = make_checker(stopping_criteria=[lambda *_: False, criterion])
    assert push_all(checker, [5, 6, 7]) == (2, "criteria")
    assert seen == [[*PROMPT, 5], [*PROMPT, 5, 6]]


def test_time_runs_out_at_a_token(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = itertools.count(100.0, 10.0)
    monkeypatch.setattr(module.time, "perf_counter", lambda: next(clock))
    checker = make_checker(max_time_s=25.0)
    assert push_all(checker, range(9)) == (3, "time")


def test_without_a_tokenizer_there_is_no_text() -> None:
    checker = StopChecker(Row(0, PROMPT, SamplingParams(), None), (7,), None, None, CPU)
    assert push_all(checker, [1, 7]) == (2, "stop")
    assert final_text(checker) == ""
