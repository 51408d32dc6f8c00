"""Callbacks: the schedule's state in every checkpoint, and what the user sees while it trains."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

from tqdm.auto import tqdm
from transformers import TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ExportableState, ProgressCallback, TrainerCallback

from ..convergence.schedule import ConvergenceSchedule
from ..report.tables import progress_line, progress_table, render

__all__ = ["ConvergenceCallback", "TableCallback"]


class ConvergenceCallback(TrainerCallback, ExportableState):
    """Carries a run's state into ``trainer_state.json``, returns weights, and holds still what is not in the loss.

    Args:
        schedule: The phases.
        run_state: What a checkpoint is to hold, as JSON values.
        roll_back: Returns to earlier weights, where the schedule says so.
        check_finite: Raises where the losses or the gradients of a step are not finite.
    """

    def __init__(
        self,
        schedule: ConvergenceSchedule,
        run_state: Callable[[], dict[str, Any]],
        roll_back: Callable[[], None],
        check_finite: Callable[[], None],
    ) -> None:
        self.schedule = schedule
        self._run_state = run_state
        self._roll_back = roll_back
        self._check_finite = check_finite

    def state(self) -> dict[str, Any]:
        """What the Trainer writes; it reads it back through `AsyncMTLTrainer`."""
        return {"args": {}, "attributes": self._run_state()}

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Return to the best weights of a task, where the last evaluation asks for it."""
        self._roll_back()

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze what is not in the loss: without a gradient there is neither momentum nor weight decay."""
        self._check_finite()
        model, in_loss = kwargs["model"], self.schedule.in_loss(state.global_step)
        if not any(in_loss.values()):
            model.zero_grad(set_to_none=True)
        for task, is_in_loss in in_loss.items():
            if not is_in_loss:
                model.heads[task].zero_grad(set_to_none=True)


class TableCallback(ProgressCallback):
    """The Trainer's progress bar, with one table an evaluation in the place of its dictionaries."""

    def __init__(self) -> None:
        super().__init__()
        self.description: str | None = None

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        self._max_steps, self._started = state.max_steps, time.monotonic()
        if not args.disable_tqdm:
            super().on_train_begin(args, state, control, **kwargs)

    def on_step_end(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        if self.training_bar is not None:
            super().on_step_end(args, state, control, **kwargs)

    def on_prediction_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if args.disable_tqdm:
            return
        super().on_prediction_step(args, state, control, **kwargs)
        if self.prediction_bar is not None and self.description is not None:
            self.prediction_bar.set_description(self.description)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Print nothing: numbers go to the table, to TensorBoard and the like."""

    def show(self, report: Mapping[str, Any], epoch: float | None) -> None:
        """Print the table of an evaluation above the progress bar; without a bar, print a line of progress too."""
        tqdm.write(render(progress_table(report, epoch), sys.stdout), file=sys.stdout)
        if self.training_bar is None:
            print(progress_line(report, self._max_steps, time.monotonic() - self._started), file=sys.stderr, flush=True)
