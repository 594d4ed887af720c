"""The suites of the benchmark on real models, from files that are public and not shipped.

| suite | file, anywhere below `--data` that `draftless.bench.questions` looks | what is asked |
|---|---|---|
| `spec-bench` | `spec_bench_question.jsonl` of Spec-Bench (Apache-2.0) | first turns, 10 of each of 13 categories |
| `humaneval` | `HumanEval.jsonl.gz` of OpenAI's human-eval (MIT) | complete this function, 40 |
| `mt-bench` | `mt_bench_question.jsonl` of FastChat (Apache-2.0) | second turns, 20 |

The prompt of a second turn holds the model's own greedy answer to the first. It is made once and kept,
so that all methods get the same ids.
"""

from __future__ import annotations

from pathlib import Path

from draftless.bench.questions import Question, balanced, read_questions
from draftless.errors import InputError

SPEC_BENCH = "spec-bench"
HUMAN_EVAL = "humaneval"
MT_BENCH = "mt-bench"


FILES = {
    SPEC_BENCH: ("spec_bench_question.jsonl", "question.jsonl"),
    HUMAN_EVAL: ("HumanEval.jsonl.gz", "HumanEval.jsonl"),
    MT_BENCH: ("mt_bench_question.jsonl",),
}
FOLDERS = ("", "eval", "data")
SOURCES = {
    SPEC_BENCH: "https://github.com/hemingkx/Spec-Bench (data/spec_bench/question.jsonl)",
    HUMAN_EVAL: "https://github.com/openai/human-eval (data/HumanEval.jsonl.gz)",
    MT_BENCH: "https://github.com/lm-sys/FastChat (fastchat/llm_judge/data/mt_bench/question.jsonl)",
}
LIMITS = {SPEC_BENCH: 130, HUMAN_EVAL: 40, MT_BENCH: 20}
"""Questions of a suite, if nobody says how many."""

CODE_REQUEST = "Complete this Python function. Answer with the code only.\n\n```python\n{}```"


def load_suite(suite: str, data: Path, limit: int | None = None) -> list[Question]:
    """Questions of a suite, one of every category in turn.

    Args:
        suite: a name of `FILES`.
        data: folder with the suite's file.
        limit: most questions; None is the suite's own number.

    Raises:
        InputError: the suite is unknown, its file is missing, or a line is not a question.
    """
    if suite not in FILES:
        raise InputError(f"suite must be one of {', '.join(FILES)}, got {suite!r}")
    places = [data / folder / name for name in FILES[suite] for folder in FOLDERS]
    file = next((place for place in places if place.is_file()), None)
    if file is None:
        raise InputError(
            f"{data} must hold {' or '.join(FILES[suite])} for the suite {suite}; "
            f"take it from {SOURCES[suite]}"
        )
    questions = read_questions(file, category="humaneval" if suite == HUMAN_EVAL else None)
    if suite == MT_BENCH:
        questions = [question for question in questions if len(question.turns) > 1]
    if suite == HUMAN_EVAL:
        questions = [
            Question(one.question_id, one.category, (CODE_REQUEST.format(one.turns[0]),))
            for one in questions
        ]
    return balanced(questions, LIMITS[suite] if limit is None else limit)


def messages_of(suite: str, question: Question, first_answer: str | None) -> list[dict[str, str]]:
    """What is said to the model.

    Args:
        suite: of the question.
        question: with two turns in `mt-bench`.
        first_answer: the model's answer to the first turn; None asks the first turn.
    """
    first = {"role": "user", "content": question.turns[0]}
    if suite != MT_BENCH or first_answer is None:
        return [first]
    return [
        first,
        {"role": "assistant", "content": first_answer},
        {"role": "user", "content": question.turns[1]},
    ]
