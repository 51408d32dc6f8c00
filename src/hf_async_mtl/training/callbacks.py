"""Callbacks: what a run does at the Trainer's events, and what the user sees while it trains."""

from __future__ import annotations

import itertools
import shutil
import sys
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch.utils.data import DataLoader
from tqdm.auto import tqdm
from transformers import PrinterCallback, Trainer, TrainerControl, TrainerState, TrainingArguments
from transformers.trainer_callback import ProgressCallback, TrainerCallback
from transformers.trainer_utils import HubStrategy

from ..data.sampler import MultiTaskSampler
from ..report.tables import progress_table, render
from .arguments import AsyncMTLTrainingArguments
from .checkpoint import RunCheckpoint
from .controller import ConvergenceController
from .loss import MultiTaskLoss


def build_sampler(sizes: Sequence[int], args: AsyncMTLTrainingArguments) -> MultiTaskSampler:
    """Return the sampler of a run. ``sizes``: training examples of each task."""
    multiple = 1 if args.world_size == 1 else args.world_size * args.per_device_train_batch_size
    return MultiTaskSampler(sizes, args.seed, args.mixing_config, multiple)


@dataclass(eq=False)
class RunCallback(TrainerCallback):
    """Call the parts of a run at the Trainer's events."""

    sampler: MultiTaskSampler
    controller: ConvergenceController
    checkpoint: RunCheckpoint
    loss: MultiTaskLoss
    write_card: Callable[[], None]
    _epochs: Iterator[int] = field(default_factory=itertools.count, init=False)
    _first_step: int = field(default=0, init=False)

    def on_train_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Find the first epoch, and name the best checkpoint of a resumed run, which may have come from elsewhere."""
        batches: DataLoader = kwargs["train_dataloader"]
        # As the Trainer counts: the step is exact, while the state's epoch may be of another batch size.
        steps_per_epoch = max(1, -(-len(batches) // args.gradient_accumulation_steps))
        self._epochs = itertools.count(state.global_step // steps_per_epoch)
        self._first_step = state.global_step
        if self.checkpoint.best is not None:
            state.best_model_checkpoint = str(self.checkpoint.best)

    def on_epoch_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Choose the order of the epoch: on several ranks the Trainer does not reach the sampler of a resumed epoch.

        A resumed run that was over takes no further step; see `AsyncMTLTrainer.get_batch_samples`.
        """
        self.sampler.set_epoch(next(self._epochs))
        if self.loss.schedule.finished or state.global_step >= state.max_steps:
            control.should_training_stop = True

    def on_epoch_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Evaluate and save nothing after an epoch without a step, as at the end of a resumed run that was over."""
        self.loss.finite.flush(self.loss.accelerator)
        if state.global_step == self._first_step:
            control.should_evaluate = control.should_save = False

    def on_step_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Return to the best weights of a task if the last evaluation has decided so."""
        self.controller.roll_back(state.global_step, kwargs["optimizer"])

    def on_pre_optimizer_step(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Freeze what is not in the loss: without a gradient there is neither momentum nor weight decay."""
        model, in_loss = kwargs["model"], self.loss.schedule.in_loss
        if not any(in_loss.values()):
            model.zero_grad(set_to_none=True)
        for task, is_in_loss in in_loss.items():
            if not is_in_loss:
                model.heads[task].zero_grad(set_to_none=True)

    def on_push_begin(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        """Add the modeling code and a card to a push in the middle of a run: without them the model does not load."""
        checkpoint = Path(args.output_dir, f"checkpoint-{state.global_step}")
        if state.is_world_process_zero and args.hub_strategy != HubStrategy.END and checkpoint.is_dir():
            for code in checkpoint.glob("*.py"):
                shutil.copy(code, args.output_dir)
            self.write_card()


class TableCallback(ProgressCallback):
    """The Trainer's progress bar, with one table per evaluation in place of its dictionaries."""

    def replace_others(self, trainer: Trainer) -> None:
        """Take the place of the Trainer's own, whose dictionaries would bury the tables; a notebook's bar stays."""
        trainer.remove_callback(PrinterCallback)
        for callback in [c for c in trainer.callback_handler.callbacks if type(c) is ProgressCallback]:
            trainer.remove_callback(callback)
        trainer.add_callback(self)

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
        if self.prediction_bar is not None:
            self.prediction_bar.set_description(f"Evaluating {kwargs['eval_dataloader'].dataset.name}")
            if self.prediction_bar.n >= self.prediction_bar.total:
                # `on_evaluate` comes once, after all sets.
                super().on_evaluate(args, state, control)

    def on_train_end(
        self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any
    ) -> None:
        if self.training_bar is not None:
            super().on_train_end(args, state, control, **kwargs)

    def on_log(self, args: TrainingArguments, state: TrainerState, control: TrainerControl, **kwargs: Any) -> None:
        """Print nothing: numbers go to the table and to the trackers."""

    def show(self, report: Mapping[str, Any], epoch: float | None) -> None:
        """Print the table of an evaluation to stdout, above the progress bar if there is one."""
        table = progress_table(report, epoch, self._max_steps, time.monotonic() - self._started)
        tqdm.write(render(table, sys.stdout))
        sys.stdout.flush()
