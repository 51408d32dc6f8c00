"""A run that receives a signal to stop writes a checkpoint first."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from accelerate import PartialState
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import TrainerCallback

from ..training.distributed import any_rank

__all__ = ["CheckpointOnSignal", "RunInterrupted"]


class RunInterrupted(Exception):  # noqa: N818 - not an error
    """The run received a signal and wrote a checkpoint. The argument is the step."""


class CheckpointOnSignal(TrainerCallback):
    """On SIGTERM or SIGINT to any process, finish the step, write a checkpoint and raise `RunInterrupted` on all.

    A second signal has its usual effect.
    """

    def __init__(self) -> None:
        self.told = False
        self._agreed = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Handle the signals while the block runs."""
        signals = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.getsignal(number) for number in signals}

        def tell(number: int, _: Any) -> None:
            self.told = True
            signal.signal(number, before[signal.Signals(number)])

        for number in signals:
            signal.signal(number, tell)
        try:
            yield
        finally:
            for number in signals:
                signal.signal(number, before[number])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._agreed = any_rank(self.told)
        if self._agreed:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # Told since the step's end, one process alone must not go: at the next step all know.
        if self._agreed:
            # A launcher ends the others as soon as one has gone, and they may still be writing.
            PartialState().wait_for_everyone()
            raise RunInterrupted(state.global_step)
