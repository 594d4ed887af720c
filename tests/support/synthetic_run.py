"""Rows of runs that never took place: small ones with round numbers, and large ones for pages."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from draftless.bench.rows import Case, Margin, Row, Turn

CATEGORIES = (
    "code",
    "dialogue",
    "instruct",
    "math",
    "prose",
    "sql",
    "story",
    "summary",
    "translation",
)
# What a method's steps commit in the mean, and the cost of its step.
METHODS = {
    "transformers": (1.0, 1.0),
    "none": (1.0, 1.04),
    "prompt-lookup": (1.6, 1.1),
    "recycling": (2.3, 1.2),
    "tr-jacobi": (2.6, 1.25),
}
WORDS = (
    "the ",
    "cat ",
    "sat ",
    "<b>",
    "& ",
    "ä",
    "\n",
    "def ",
    "日本",
    "x = ",
    "log ",
    "\u202e",
    "{{ ",
)


def make_case(method: str, model: str = "msn", sampling: str = "greedy") -> Case:
    return Case(model, method, sampling, "bfloat16")


def make_row(
    case: Case,
    category: str,
    number: int,
    *,
    tokens: int = 100,
    steps: int = 100,
    seconds: float = 1.0,
    repeat: int = 0,
) -> Row:
    """A question of one turn with round numbers: equal steps, 0.1 s of prefill."""
    each = [tokens // steps] * steps
    each[-1] += tokens - sum(each)
    decode_s = seconds - 0.1
    turn = Turn(
        prompt_len=10,
        token_ids=list(range(tokens)),
        seconds=seconds,
        prefill_s=0.1,
        first_token_s=0.1 + decode_s / steps,
        step_tokens=each,
        step_drafted=[7 * (case.method not in ("none", "transformers"))] * steps,
        step_s=[0.1 + decode_s * (i + 1) / steps for i in range(steps)],
    )
    if not case.method.startswith("transformers"):
        stages = {"propose": 0.04, "forward": 0.9, "verify": 0.03, "commit": 0.02, "observe": 0.01}
        turn.time_s = {"prefill": 0.1, **{k: v * decode_s for k, v in stages.items()}}
    return Row(case, category, f"{category}-{number}", repeat, [turn])


NUM = 6
PLAIN = {"none": 1.0, "transformers": 0.9}


def rows_of(
    speeds: dict[str, float], *, spread: float = 0.1, sampling: str = "greedy"
) -> list[Row]:
    """Six questions; a drafter's speed varies by `spread` around its number."""
    return [
        make_row(
            make_case(method, sampling=sampling),
            "sql",
            i,
            steps=50,
            seconds=1.0 / (speed * (1 + (spread * (i % 3 - 1) if method not in PLAIN else 0))),
        )
        for i in range(NUM)
        for method, speed in speeds.items()
    ]


def make_run(
    models: Sequence[str] = ("msn",),
    samplings: Sequence[str] = ("greedy", "T=1"),
    categories: Sequence[str] = CATEGORIES,
    methods: Sequence[str] = tuple(METHODS),
    questions: int = 4,
    tokens: int = 64,
) -> list[Row]:
    """A run like a real one: noise everywhere, near-ties, loops, sources and pieces of text."""
    generator = np.random.default_rng(1)
    rows = []
    for number in range(questions):
        for index, category in enumerate(categories):
            for model in models:
                for sampling in samplings:
                    ids = generator.integers(len(WORDS), size=tokens).tolist()
                    for method in methods:
                        row = _noisy_row(generator, Case(model, method, sampling, "bfloat16"), ids)
                        row.category, row.question_id = category, f"{category}-{number}"
                        if method not in ("none", "transformers") and (index + number) % 7 == 6:
                            row.turns[0].margin = Margin(5, 7, 8, ulps=1.5, is_near_tie=True)
                        if number == 1 and index == 0:
                            row.turns[0].num_looping = tokens
                        rows.append(row)
    return rows


def _noisy_row(generator: np.random.Generator, case: Case, ids: list[int]) -> Row:
    name = case.method.split("(")[0]
    length, cost = METHODS.get(name, (2.0, 1.2))
    is_plain = name in ("none", "transformers")
    turn = Turn(prompt_len=20, token_ids=ids, text="".join(WORDS[i] for i in ids))
    clock = turn.prefill_s = 0.05
    while sum(turn.step_tokens) < len(ids):
        room = len(ids) - sum(turn.step_tokens)
        count = min(room, 1 + (0 if is_plain else int(generator.poisson(length - 1))))
        clock += 0.02 * cost * float(generator.uniform(0.9, 1.1))
        turn.step_tokens.append(count)
        turn.step_drafted.append(0 if is_plain else int(generator.integers(3, 40)))
        turn.step_s.append(clock)
    turn.seconds, turn.first_token_s = clock, turn.step_s[0]
    if not case.method.startswith("transformers"):
        decode_s = clock - turn.prefill_s
        shares = {"propose": 0.03, "forward": 0.93, "verify": 0.02, "commit": 0.01, "observe": 0.01}
        turn.time_s = {"prefill": 0.05, **{k: v * decode_s for k, v in shares.items()}}
        names = ("retrieval", "denoised", "noise", "recycled", "draft")
        for count in turn.step_tokens:
            turn.sources += [str(n) for n in generator.choice(names, size=count - 1)] + [""]
        turn.pieces = [] if is_plain else [WORDS[i] for i in ids]
    return Row(case, "", "", 0, [turn], load=1.5)
