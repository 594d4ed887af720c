"""Answers as programs, judged by their tests."""

from __future__ import annotations

import sys

import pytest

from draftless.bench.quality.code import passes, program_of
from draftless.bench.quality.sandbox import Limits, Outcome

if sys.platform == "win32":
    pytest.skip("needs POSIX", allow_module_level=True)

QUICK = Limits(wall_s=60.0, cpu_s=1)
PROMPT = (
    "import math\n\ndef helper(x):\n    return x * 2\n\n"
    'def twice(x: int) -> int:\n    """Double it."""\n'
)
TEST = "def check(candidate):\n    assert candidate(2) == 4\n    assert candidate(0) == 0\n"


@pytest.mark.parametrize(
    "output",
    [
        "    return 2 * x\n",
        "    return helper(x)",
        "\n    return 2 * x\n\ndef other():\n    return (\n",
        "    return 2 * x\nThat is all.",
        "```python\n    return 2 * x\n```",
        "Here it is:\n```python\ndef twice(x):\n    return helper(x)\n```\nIt doubles x.",
        "```\ndef twice(x):\n    return int(math.floor(2 * x))",
        "def twice(x):\n    return 2 * x",
    ],
)
def test_right_answers_pass(output: str) -> None:
    assert passes(output, PROMPT, "twice", TEST, QUICK) == Outcome(True, "passed")


@pytest.mark.parametrize(
    "output", ["", "    return x\n", "    pass", "return 2 * x", "I cannot do that.", "    exit(0)"]
)
def test_wrong_and_malformed_answers_fail(output: str) -> None:
    assert not passes(output, PROMPT, "twice", TEST, QUICK).passed


def test_a_function_called_check_is_tested_not_the_test_itself() -> None:
    prompt, test = "def check(n):\n", "def check(candidate):\n    assert candidate(1) == 2\n"
    assert passes("    return n + 1", prompt, "check", test, QUICK).passed
    assert not passes("    return n", prompt, "check", test, QUICK).passed


def test_a_redefinition_keeps_the_imports_and_helpers() -> None:
    program = program_of("def twice(x):\n    return 3", PROMPT, "twice")
    assert "import math" in program
    assert program.count("def twice") == 1
