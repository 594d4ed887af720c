"""How many threads passes on the CPU run on, where nobody said it."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable

import torch

_ROUNDS = 5
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_DEFAULT = torch.get_num_threads()
_is_settled = any(os.environ.get(name) for name in _VARIABLES)

log = logging.getLogger("draftless")


def use_threads(count: int) -> None:
    """Set torch's threads, which are those of our passes, too; `choose_threads` leaves them as they are."""
    global _is_settled
    torch.set_num_threads(count)
    _is_settled = True


def choose_threads(run: Callable[[], object]) -> None:
    """Set the faster of torch's default and one thread for every processor, once in a process.

    Torch takes a thread for every core. Where two processors share a core (and a virtual machine may call
    that one core) a second thread can halve the time of a pass, or cost time. What `OMP_NUM_THREADS`,
    `torch.set_num_threads` or `use_threads` said before stays.

    Args:
        run: a short pass.
    """
    global _is_settled
    num_processors = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else 1
    if _is_settled or torch.get_num_threads() != _DEFAULT or num_processors <= _DEFAULT:
        return
    best = {count: float("inf") for count in (_DEFAULT, num_processors)}
    for _ in range(_ROUNDS):
        for count in best:
            torch.set_num_threads(count)
            run()  # the threads start, or wake
            begin = time.perf_counter()
            run()
            best[count] = min(best[count], time.perf_counter() - begin)
    use_threads(min(best, key=lambda count: best[count]))
    log.info("%d threads, by measurement: %s", torch.get_num_threads(), best)
