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


class RunInterrupted(Exception):  # noqa: N818 - not an error
    """The run received a signal and wrote a checkpoint. The argument is the step."""


class CheckpointOnSignal(TrainerCallback):
    """On SIGTERM or SIGINT to any process, finish the step, write a checkpoint and raise `RunInterrupted` on all.

    A second signal has its usual effect.
    """

    def __init__(self) -> None:
        self._received = False
        self._stops = False

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Handle the signals while the block runs."""
        signals = (signal.SIGTERM, signal.SIGINT)
        before = {number: signal.getsignal(number) for number in signals}

        def handle(number: int, _: Any) -> None:
            self._received = True
            signal.signal(number, before[signal.Signals(number)])

        for number in signals:
            signal.signal(number, handle)
        try:
            yield
        finally:
            for number in signals:
                signal.signal(number, before[number])

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        self._stops = any_rank(self._received)
        if self._stops:
            control.should_save = True

    def on_save(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        # A signal since the end of the step is known to one process only; at the next step all stop.
        if self._stops:
            # A launcher ends all processes when one ends, and the others may still be writing.
            PartialState().wait_for_everyone()
            raise RunInterrupted(state.global_step)
