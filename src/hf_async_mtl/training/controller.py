"""The part of the Trainer that decides: an evaluation moves the phases, keeps snapshots and records teachers."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from datasets import Dataset
from torch import Tensor
from transformers.trainer_utils import SaveStrategy
from transformers.utils import logging

from ..convergence.schedule import ConvergenceSchedule, Event
from ..data.dataset import TaskDataset
from ..distillation.external import load_external_teachers
from ..distillation.teachers import Teachers
from ..modeling.configuration_multitask import ConfigurationError
from ..significance import paired_standard_error
from ..tasks.registry import TASK_TYPES
from ..utils import write_atomic
from .distributed import agreed, gather_examples
from .evaluation import PerTaskTrainer
from .loss import MultiTaskLoss
from .state_dict import load_weights, present_weights, whole_weights

if TYPE_CHECKING:
    import optuna

__all__ = ["ConvergingTrainer"]

logger = logging.get_logger(__name__)


class ConvergingTrainer(PerTaskTrainer):
    """A Trainer whose tasks converge on their own, and learn on from their teachers.

    `AsyncMTLTrainer` makes one, and fills in what is declared here.
    """

    schedule: ConvergenceSchedule
    teachers: Teachers
    batch_loss: MultiTaskLoss
    encoded_train: dict[str, TaskDataset]
    # The training rows of the tasks that have a teacher from outside.
    _raw_train: dict[str, Dataset]
    # Where the run writes.
    _run_dir: Path

    def _evaluate(
        self,
        trial: optuna.Trial | dict[str, Any] | None,
        ignore_keys_for_eval: list[str] | None,
        skip_scheduler: bool = False,
    ) -> dict[str, float]:
        """An evaluation while training: the phases move here, before the checkpoint of the same step is written."""
        # All compute the same, but for the last digit where machines differ; what follows must not hang on it.
        metrics = agreed(super()._evaluate(None, ignore_keys_for_eval, skip_scheduler))
        # `eval_on_start` of a resumed run: the phases know of it.
        if not skip_scheduler or self.state.global_step == 0:
            self._observe(metrics)
        return metrics

    def _observe(self, metrics: dict[str, float]) -> None:
        """Move the phases by an evaluation, and do what follows from it."""
        step = self.state.global_step
        standard_errors, constant = agreed((self._standard_errors(), self._constant_tasks()))
        events = self.schedule.observe(
            step,
            {name: metrics[f"eval_{name}_{task.monitored}"] for name, task in self.tasks.items()},
            losses={name: metrics[f"eval_{name}_loss"] for name in self.tasks},
            standard_errors=standard_errors,
            epoch=self.state.epoch,
            constant=constant,
        )
        # All have read the reference that the first now replaces.
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            for name, reference_step in self.schedule.noise_references.items():
                if reference_step == step:
                    self.teachers.store.save_predictions(name, step, self._answers[name])
        if self.schedule.improved(step):
            self._save_snapshot(step)
        for event in events:
            if event.event in ("converged", "teacher_renewed") and self.schedule.phases[event.task] == "distilling":
                self._record_teacher(event)
        if self.args.should_save:
            self.teachers.store.keep_snapshots(self.schedule.snapshots_needed() | self._rolls_back_to())
        self._write_report()
        if self.is_world_process_zero():
            self._display.show(self.schedule.report(), self.state.epoch)
        if self.schedule.finished:
            self.control.should_training_stop = True
            # As at the end of the budget: the last weights may be the best.
            if self.args.save_strategy == SaveStrategy.STEPS:
                self.control.should_save = True

    def _constant_tasks(self) -> list[str]:
        """The tasks that gave every validation example the same answer."""
        return [name for name, task in self.tasks.items() if TASK_TYPES[task.type].is_constant(self._answers[name])]

    def _standard_errors(self) -> dict[str, float]:
        """Of the difference between this evaluation and the one that each noise-aware criterion compares it with."""
        found = {}
        for name, reference_step in self.schedule.noise_references.items():
            if reference_step is None:
                continue
            task, rows = self.tasks[name], self.eval_dataset[name].rows
            before = self.teachers.store.load_predictions(name, reference_step)
            found[name] = paired_standard_error(
                task.monitored,
                task.type,
                before,
                self._answers[name],
                TASK_TYPES[task.type].references(task, rows),
                task.label_names,
            )
        return found

    def _save_snapshot(self, step: int) -> None:
        weights = whole_weights(self.model, keep=self.args.should_save)
        if self.args.should_save:
            self.teachers.store.save_snapshot(step, weights)
        self.accelerator.wait_for_everyone()

    def _record_teacher(self, event: Event) -> None:
        """Run a task's best weights over its training set once, and put the present weights back."""
        step = self.schedule.teacher_step(event.task)
        assert step is not None  # the task has converged, so it had a score
        if event.teacher_step == self.schedule.report()["tasks"][event.task]["history"][0][0]:
            logger.warning(
                f"Task {event.task!r} has converged without an improvement on its first evaluation: that is its "
                "teacher. If it had not begun to learn by then, raise its `convergence.min_steps` or `patience`."
            )
        with ExitStack() as stack:
            if step != event.step:
                teacher, present = self.teachers.store.load_snapshot(step), present_weights(self.model)
                stack.callback(load_weights, self.model, present)
                load_weights(self.model, teacher)
            with self._writing(event.task, step) as put:
                self.record(self.encoded_train[event.task], put)

    @contextmanager
    def _writing(self, task: str, step: int) -> Iterator[Callable[[Tensor, Tensor], None]]:
        """Write a teacher's logits where files are written, and let the task learn from them on all processes."""
        if self.args.should_save:
            with self.teachers.writer(task, step) as writer:
                yield writer.write
        else:
            yield lambda example_ids, logits: None
        self.accelerator.wait_for_everyone()
        self.teachers.load([task])
        self.teachers.assess(task)

    def _record_external_teachers(self) -> None:
        """Ask the teachers from outside, and let them go; a resumed run has what they said, and needs them no more."""
        sources = self.args.distillation_config.teachers
        # All are looked at before the first is asked.
        teachers = load_external_teachers(self.tasks, sources, self._raw_train, self._tokenizer)
        ranks = self.accelerator
        try:
            for name, teacher in teachers.items():
                length, batch = self.tasks[name].max_length or self._max_length, self.args.per_device_eval_batch_size
                with self._writing(name, step=0) as put:
                    for answers in teacher.logits(
                        self._raw_train[name], length, batch, self.args.device, ranks.process_index, ranks.num_processes
                    ):
                        put(*gather_examples(ranks, *answers))
        except ConfigurationError:
            if self.args.should_save:
                self.teachers.store.clear()
            raise

    def _rolls_back_to(self) -> set[int]:
        """The step that the weights return to before the next one is taken, where they do."""
        return {
            event.teacher_step
            for event in self.schedule.events
            if event.event == "rolled_back" and event.step == self.state.global_step and event.teacher_step is not None
        }

    def _roll_back(self) -> None:
        """Return to the best weights of a task, if the evaluation before this step says so.

        Not at the evaluation itself: a checkpoint of that step holds the weights that were evaluated. The optimizer's
        moments belong to weights that are left, and start anew; the learning rate's schedule goes on.
        """
        for step in self._rolls_back_to():
            load_weights(self.model, self.teachers.store.load_snapshot(step))
            self.optimizer.state.clear()

    def report(self) -> dict[str, Any]:
        """The content of ``convergence.json``: `ConvergenceSchedule.report`, and what was measured on the way.

        ``conflicts`` is there once they have been measured.
        """
        report = self.schedule.report()
        conflicts = self.batch_loss.conflicts
        if conflicts is not None and conflicts.has_measured:
            report["conflicts"] = conflicts.report()
        return report

    def _write_report(self) -> None:
        if not self.is_world_process_zero():
            return
        report = json.dumps(self.report(), indent=2, allow_nan=False)
        write_atomic(self._run_dir / "convergence.json", report + "\n")
