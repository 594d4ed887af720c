"""Streams of requests: the same questions in orders that switch between categories more or less often.

Source: KNN-SSD (Findings of EACL 2026), section 4: the mix ratio is the chance of another task after
each request. Differs from the paper's code, where a switch may be impossible at the end of the stream
because only one task is left: a switch goes to one of the categories that have the most left, so that
ratio 1 always switches wherever the numbers of questions allow it.
"""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import replace

from draftless.bench.questions import Question


def make_streams(
    questions: Sequence[Question], mixes: Sequence[float], seed: int
) -> list[Question]:
    """One stream after the other, each of all the questions.

    Args:
        questions: within a category they keep their order in every stream.
        mixes: ratios from 0 (category by category) to 1 (another category every time).
        seed: the same questions, ratio and seed make the same stream.

    Returns:
        The questions with `mix` and `position` filled in.
    """
    return [
        replace(question, mix=mix, position=position)
        for mix in mixes
        for position, question in enumerate(_mixed(questions, mix, random.Random(seed)))
    ]


def _mixed(questions: Sequence[Question], mix: float, draws: random.Random) -> list[Question]:
    left: dict[str, list[Question]] = {}
    for question in questions:
        left.setdefault(question.category, []).append(question)
    order: list[Question] = []
    category = ""
    while left:
        if category not in left or (len(left) > 1 and draws.random() < mix):
            others = {name: len(own) for name, own in left.items() if name != category}
            most = max(others.values())
            category = draws.choice([name for name, num in others.items() if num == most])
        order.append(left[category].pop(0))
        if not left[category]:
            del left[category]
    return order
