"""What every peer's adapter speaks on stdin and stdout, one JSON object a line.

An adapter is a program that loads a model once and answers requests, one after another, and does
nothing between them. It needs the standard library and its own peer only, because it runs in the
peer's environment. What it or its library prints by itself goes to stderr.

    ready       {"ready": true, "load_s": seconds, "peak_memory_bytes": bytes, "version": text}
    request     {"method": text, "ids": [...], "max_new_tokens": n, "temperature": t, "top_p": p,
                 "seed": n, "eos_token_ids": [...]}
    answer      {"token_ids": [...], "wall_s": seconds, "prefill_s": seconds, "decode_s": seconds,
                 "decode_tokens": n, "steps": n, "load_s": seconds, "peak_memory_bytes": bytes}
    failure     {"error": text}

`wall_s` is the whole call. `decode_tokens` are the tokens that came in `decode_s`: one fewer than all
where the first one comes with the prefill. `steps` counts forward passes after the prompt's, the pass
that gave the first token included. `token_ids` may end with an EOS id.
"""

from __future__ import annotations

import json
import os
import resource
import sys
import time
from collections.abc import Callable, Mapping
from typing import IO, Any

Answer = dict[str, Any]
Answerer = Callable[[Mapping[str, Any]], Answer]


def serve(
    load: Callable[[], tuple[Answerer, str]], memory: Callable[[], int] | None = None
) -> None:
    """Load, say so, and answer until stdin ends.

    Args:
        load: returns what answers a request, and the peer's version.
        memory: peak bytes of the process that holds the model; None is this one.
    """
    peak = memory or own_peak_memory
    answers = os.fdopen(os.dup(sys.stdout.fileno()), "w", encoding="utf-8")
    os.dup2(sys.stderr.fileno(), sys.stdout.fileno())  # what libraries print is no answer
    begin = time.perf_counter()
    answer, version = load()
    load_s = time.perf_counter() - begin
    _write(
        answers,
        {"ready": True, "load_s": load_s, "peak_memory_bytes": peak(), "version": version},
    )
    for line in sys.stdin:
        try:
            found = answer(json.loads(line))
            found.update(load_s=load_s, peak_memory_bytes=peak())
        except Exception as error:  # noqa: BLE001 - one failed request is a result, too
            found = {"error": f"{type(error).__name__}: {error}"}
        _write(answers, found)


def own_peak_memory() -> int:
    """Most bytes of memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def until_eos(token_ids: list[int], eos_token_ids: list[int]) -> list[int]:
    """The ids up to the first EOS, that one included."""
    end = next((i for i, one in enumerate(token_ids) if one in eos_token_ids), len(token_ids))
    return token_ids[: end + 1]


def _write(answers: IO[str], value: Mapping[str, Any]) -> None:
    answers.write(json.dumps(value) + "\n")
    answers.flush()
