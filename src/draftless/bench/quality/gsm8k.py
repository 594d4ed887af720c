"""GSM8K: is the final number right?"""

from __future__ import annotations

import re
from decimal import Decimal

_MARK = "####"
# A minus right behind a digit or a word is a subtraction or a hyphen.
_NUMBER = re.compile(r"((?<![\w.])-)?\s?[$€£]?\s?(\d[\d,]*(?:\.\d+)?|\.\d+)")


def marked_answer(text: str) -> Decimal | None:
    """The first number in the line behind the first `####`; None if there is none."""
    _, mark, rest = text.partition(_MARK)
    numbers = _numbers(rest.lstrip(" ").split("\n", 1)[0]) if mark else []
    return numbers[0] if numbers else None


def last_number(text: str) -> Decimal | None:
    """The last number of a text; None if there is none."""
    numbers = _numbers(text)
    return numbers[-1] if numbers else None


def score(output: str, reference: str) -> dict[str, bool] | None:
    """Whether the answer is right, two ways.

    Args:
        output: what the model wrote.
        reference: a solution whose last line is `#### number`.

    Returns:
        `gsm8k`: the number behind `####`, or the last number where nothing is marked;
        `gsm8k_marked`: the marked number alone. None if the reference has no answer.
    """
    gold = marked_answer(reference)
    if gold is None:
        return None
    marked = marked_answer(output)
    found = last_number(output) if marked is None else marked
    return {"gsm8k": found == gold, "gsm8k_marked": marked == gold}


def _numbers(text: str) -> list[Decimal]:
    return [
        Decimal((minus or "") + digits.replace(",", "")) for minus, digits in _NUMBER.findall(text)
    ]
