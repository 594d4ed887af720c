"""HumanEval and MBPP: does the completed function pass its tests?"""

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
    program = program_of(output, prompt, entry_point)
    return run_program(program, f"{test}\n\ncheck({entry_point})\n", limits or Limits())


def _definition(name: str, code: str) -> re.Match[str] | None:
    return re.search(rf"^(?:async )?def {re.escape(name)}\b", code, re.MULTILINE)


def _body(code: str) -> str:
    lines = []
    for line in code.split("\n"):
        if line.strip() and not line[0].isspace():
            break
        lines.append(line)
    return "\n".join(lines)
