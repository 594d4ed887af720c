"""How many threads passes on the CPU run on."""

from __future__ import annotations

import logging
import os
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch

_ROUNDS = 5
_VARIABLES = ("OMP_NUM_THREADS", "MKL_NUM_THREADS")
_DEFAULT = torch.get_num_threads()
_is_settled = any(os.environ.get(name) for name in _VARIABLES)

_of_passes: int | None = None

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


@contextmanager
def torch_on_one_thread(is_wanted: bool = True) -> Iterator[None]:
    """What torch computes between native passes, on one thread; the passes keep theirs.

    Torch's other threads spin for milliseconds after each operator, on the processors that the next pass needs: that
    made passes of sampled text 30 % slower (`docs/log.md`).
    """
    global _of_passes
    count = torch.get_num_threads()
    if not is_wanted or count == 1:
        yield
        return
    _of_passes = count
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(count)
        _of_passes = None


def threads_of_passes() -> int:
    """Of native passes: as many as torch has, or had before `torch_on_one_thread`."""
    return _of_passes or torch.get_num_threads()
