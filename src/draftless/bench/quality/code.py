"""HumanEval and MBPP: does the completed function pass its tests?

Of the reference solutions, 164 of HumanEval's 164 and 495 of the 500 of MBPP's test tasks pass here; the
others are broken as published, or bring a helper behind the function.
"""

from __future__ import annotations

import re

from draftless.bench.quality.sandbox import Limits, Outcome, run_program
from draftless.bench.quality.text import fenced_block


def program_of(output: str, prompt: str, entry_point: str) -> str:
    """The program that an answer stands for.

    An answer that defines the function replaces the prompt's own, whose imports and helpers stay;
    any other answer is the function's body, up to the first line that is not indented.

    Args:
        output: what the model wrote, perhaps in a Markdown fence.
        prompt: Python text that ends with the head of the function.
        entry_point: name of the function.
    """
    block = fenced_block(output)
    code = output if block is None else block
    head = _definition(entry_point, prompt)
    if _definition(entry_point, code):
        return f"{prompt[: head.start()] if head else ''}\n{code}\n"
    return f"{prompt.rstrip()}\n{_body(code)}\n"


def passes(
    output: str, prompt: str, entry_point: str, test: str, limits: Limits | None = None
) -> Outcome:
    """Run the tests on an answer: `check(candidate)` of `test` must return.

    Raises:
        ConfigError: programs cannot be run on this machine.
    """
    # Bound first: two functions of MBPP are called `check` themselves.
    test = f"candidate_ = {entry_point}\n{test}\n\ncheck(candidate_)\n"
    return run_program(program_of(output, prompt, entry_point), test, limits or Limits())


def _definition(name: str, code: str) -> re.Match[str] | None:
    return re.search(rf"^(?:async )?def {re.escape(name)}\b", code, re.MULTILINE)


def _body(code: str) -> str:
    lines = []
    for line in code.split("\n"):
        if line.strip() and not line[0].isspace():
            break
        lines.append(line)
    return "\n".join(lines)
