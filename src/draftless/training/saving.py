"""When a checkpoint is due: after so many minutes, and when Ctrl-C ends the run."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from types import FrameType
from typing import Any

import torch
from transformers import TrainerCallback

SAVE_SECONDS = 600.0
"""Wall-clock time between checkpoints where nobody gives a number of steps."""


class TrainingInterrupted(KeyboardInterrupt):
    """Ctrl-C ended training after a step; a checkpoint of that step is complete.

    Attributes:
        step: of the checkpoint.
    """

    def __init__(self, step: int) -> None:
        super().__init__(step)
        self.step = step


class SaveWhenDue(TrainerCallback):
    """Saves by the clock, and ends training after the current step on Ctrl-C.

    As a context it takes over SIGINT (in the main thread); a second Ctrl-C raises KeyboardInterrupt
    at once. All processes of a run decide alike.

    Args:
        seconds: between checkpoints; None leaves that to the trainer.
        on_interrupt: called at the first Ctrl-C.

    Attributes:
        is_interrupted: training has ended, with a checkpoint, because of Ctrl-C.
    """

    def __init__(
        self, seconds: float | None, on_interrupt: Callable[[], None] | None = None
    ) -> None:
        self.is_interrupted = False
        self._seconds = seconds
        self._on_interrupt = on_interrupt
        self._is_asked = False
        self._saved_at = time.monotonic()
        self._before: Any = None

    def __enter__(self) -> SaveWhenDue:
        self._saved_at = time.monotonic()
        if threading.current_thread() is threading.main_thread():
            self._before = signal.signal(signal.SIGINT, self._ask)
        return self

    def __exit__(self, *_: object) -> None:
        if self._before is not None:
            signal.signal(signal.SIGINT, self._before)

    def _ask(self, _: int, __: FrameType | None) -> None:
        if self._is_asked:
            raise KeyboardInterrupt
        self._is_asked = True
        if self._on_interrupt is not None:
            self._on_interrupt()

    def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        now = time.monotonic()
        is_due = self._seconds is not None and now - self._saved_at >= self._seconds
        is_asked, is_due = _any_process(self._is_asked, is_due)
        if is_due:
            control.should_save = True
        if is_asked and state.global_step < state.max_steps:
            self.is_interrupted = True
            control.should_save = control.should_training_stop = True
            control.should_evaluate = False

    def on_save(self, args: Any, state: Any, control: Any, **_: Any) -> None:  # noqa: ARG002
        self._saved_at = time.monotonic()


def _any_process(*flags: bool) -> tuple[bool, ...]:
    """Which flags are set in any process of the run: they must save together."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return flags
    is_cuda = torch.distributed.get_backend() == "nccl"
    both = torch.tensor(flags, dtype=torch.int32, device="cuda" if is_cuda else "cpu")
    torch.distributed.all_reduce(both, op=torch.distributed.ReduceOp.MAX)
    return tuple(bool(one) for one in both.tolist())
