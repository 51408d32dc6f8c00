"""Act on the evaluations of a run: move the phases, save snapshots, record teachers, return to earlier weights."""

from __future__ import annotations

import copy
import json
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from accelerate import Accelerator
from datasets import Dataset
from torch import Tensor
from transformers.utils import logging

from ..convergence.config import ScheduleConfig
from ..convergence.schedule import ConvergenceSchedule
from ..convergence.task import Event, TaskSpec
from ..data.dataset import TaskDataset
from ..data.sampler import draws_per_task
from ..diagnosis import diagnose
from ..distillation.external import load_external_teachers
from ..distillation.teachers import Teachers
from ..metrics import greater_is_better
from ..modeling.configuration_multitask import TaskConfig
from ..modeling.modeling_multitask import MultiTaskModel
from ..significance import bootstrap_values, paired_standard_error
from ..tasks.registry import TASK_TYPES
from ..utils import write_atomic
from ..validation import ConfigurationError
from .arguments import AsyncMTLTrainingArguments
from .distributed import broadcast_from_main, gather_examples
from .evaluation import TaskEvaluator
from .loss import MultiTaskLoss
from .state_dict import clone_state_dict, full_state_dict, load_weights
from .task_sets import TaskSets

logger = logging.get_logger(__name__)

Batches = Iterable[tuple[Tensor, Tensor]]
"""``example_ids`` ``[B]`` and the logits of their units ``[U, C]``, batch by batch; examples may occur twice."""


def new_schedule(
    tasks: Mapping[str, TaskConfig], args: AsyncMTLTrainingArguments, sizes: Mapping[str, int]
) -> ConvergenceSchedule:
    """Return the schedule that a run begins with. ``sizes``: task -> number of training examples."""
    teachers = args.distillation_config.teachers
    drawn = dict(zip(sizes, draws_per_task(list(sizes.values()), args.mixing_config), strict=True)) if sizes else {}
    specs = {
        name: TaskSpec(
            task.type,
            task.monitored,
            args.convergence_of(name),
            passes_per_epoch=drawn[name] / sizes[name] if name in drawn else 1.0,
            distilled_from_start=name in teachers,
            greater_is_better=greater_is_better(task.monitored),
            positive_label=TASK_TYPES[task.type].class_of_metric(task, task.monitored),
        )
        for name, task in tasks.items()
    }
    return ConvergenceSchedule(specs, args.final_evaluations, _join_order(args.schedule_config, list(tasks), sizes))


def _join_order(config: ScheduleConfig, tasks: Sequence[str], sizes: Mapping[str, int]) -> list[str] | None:
    """Return the order in which the tasks of a sequential run join; None where all join at once."""
    if config.mode == "joint":
        return None
    if isinstance(config.order, str):
        return sorted(tasks, key=lambda name: -sizes.get(name, 0))
    if sorted(config.order) != sorted(tasks):
        raise ConfigurationError(
            f"`schedule.order` must name each of {', '.join(tasks)} once; found {', '.join(config.order)}."
        )
    return list(config.order)


@dataclass(eq=False)
class ConvergenceController:
    """Observe the evaluations of a run and act on them. All ranks call each method together."""

    args: AsyncMTLTrainingArguments
    model: MultiTaskModel
    accelerator: Accelerator
    schedule: ConvergenceSchedule
    teachers: Teachers
    evaluator: TaskEvaluator
    loss: MultiTaskLoss
    logits_of: Callable[[TaskDataset], Batches]
    _last_step: int = field(default=-1, init=False)
    _resamples: dict[int, dict[str, np.ndarray]] = field(default_factory=dict, init=False)
    _diagnosis: dict[str, Any] | None = field(default=None, init=False)

    def begin(self, step: int) -> None:
        """Begin a run at a step, -1 for a new one; an evaluation of that step has been observed before."""
        self._last_step = step
        self._resamples = self.teachers.store.load_resamples(self.schedule.evaluated_steps)
        self._diagnosis = None

    def observe(self, step: int, epoch: float | None, metrics: Mapping[str, float]) -> bool:
        """Move the phases by an evaluation, and do what follows; return False for a step that was observed before."""
        if step <= self._last_step:
            return False
        self._last_step = step
        self._resamples[step] = self.resample()
        standard_errors, constant = broadcast_from_main((self.standard_errors(step), self.constant_tasks()))
        tasks = self.schedule.tasks
        events = self.schedule.observe(
            step,
            {name: metrics[f"eval_{name}_{task.metric}"] for name, task in tasks.items()},
            standard_errors=standard_errors,
            epoch=epoch,
            constant=constant,
        )
        if self.args.should_save:
            self.teachers.store.save_resamples(self._resamples)
        if self.schedule.improved(step):
            self._save_snapshot(step)
        for event in events:
            if event.event == "converged" and self.schedule.phases[event.task] == "distilling":
                self._record_teacher(event)
        if self.args.should_save:
            self.teachers.store.keep_snapshots(self.schedule.snapshots_needed() | self._rolls_back_to(step))
        self.write_report()
        return True

    def finish(self, step: int, evaluate: Callable[[], Mapping[str, float]]) -> None:
        """Report the weights that the run ended with, evaluated if need be, and remove the teachers."""
        values = None
        if step not in self.schedule.evaluated_steps:
            metrics = evaluate()
            values = {name: metrics[f"eval_{name}_{task.metric}"] for name, task in self.schedule.tasks.items()}
            self._resamples[step] = self.resample()
        self.schedule.finish(step, values)
        self._diagnosis = broadcast_from_main(diagnose(self.schedule.report(), self._resamples))
        self.write_report()
        self.accelerator.wait_for_everyone()
        if self.args.should_save:
            self.teachers.store.clear()

    def report(self) -> dict[str, Any]:
        """Return the content of ``convergence.json``, with ``conflicts`` and ``diagnosis`` once they are known."""
        report = self.schedule.report()
        if self._diagnosis is not None:
            report["diagnosis"] = copy.deepcopy(self._diagnosis)
        conflicts = self.loss.conflicts
        if conflicts is not None and conflicts.has_measured:
            report["conflicts"] = conflicts.report()
        return report

    def write_report(self) -> None:
        """Write ``convergence.json`` into the output folder."""
        if self.accelerator.is_main_process:
            text = json.dumps(self.report(), indent=2, allow_nan=False)
            write_atomic(Path(self.args.output_dir, "convergence.json"), text + "\n")

    def constant_tasks(self) -> list[str]:
        """Return the tasks with the same prediction for every validation example."""
        predictions = self.evaluator.predictions
        return [
            name for name, task in self.schedule.tasks.items() if TASK_TYPES[task.type].is_constant(predictions[name])
        ]

    def resample(self) -> dict[str, np.ndarray]:
        """Return the monitored metric of each task's last evaluation, on resamples of its validation examples."""
        found = {}
        for name, given in self.evaluator.predictions.items():
            dataset = self.evaluator.validation[name]
            task, kind = dataset.task, TASK_TYPES[dataset.task.type]
            references = kind.in_metric_order(task, kind.references(task, dataset.rows))
            found[name] = np.array(bootstrap_values(task.monitored, task.type, given, references, task.label_names))
        return found

    def standard_errors(self, step: int) -> dict[str, float]:
        """Return the standard errors of the differences that noise-aware criteria look at, by task."""
        return {
            name: paired_standard_error(self._resamples[reference][name], self._resamples[step][name])
            for name, reference in self.schedule.noise_references.items()
            if reference is not None
        }

    def _save_snapshot(self, step: int) -> None:
        weights = full_state_dict(self.model, keep=self.args.should_save)
        if self.args.should_save:
            self.teachers.store.save_snapshot(step, weights)
        self.accelerator.wait_for_everyone()

    def _record_teacher(self, event: Event) -> None:
        """Run a task's best weights over its training set once, and restore the present weights."""
        step = event.teacher_step
        assert step is not None  # the task has converged, so it had a score
        if step == self.schedule.trackers[event.task].first_counted_step:
            logger.warning(
                f"Task {event.task!r} has converged without an improvement on its first evaluation that counts: that "
                "is its teacher. If it had not begun to learn by then, raise its `convergence.min_steps` or `patience`."
            )
        with ExitStack() as stack:
            if step != event.step:
                teacher, present = self.teachers.store.load_snapshot(step), clone_state_dict(self.model)
                stack.callback(load_weights, self.model, present)
                load_weights(self.model, teacher)
            self.record(event.task, step, self.logits_of(self.teachers.train[event.task]))

    def record(self, task: str, step: int, batches: Batches) -> None:
        """Write a teacher's logits, the same on all ranks, and let the task learn from them. External: step 0."""
        if self.args.should_save:
            with self.teachers.writer(task, step) as writer:
                for example_ids, logits in batches:
                    writer.write(example_ids, logits)
        else:
            deque(batches, maxlen=0)  # the ranks run the model together
        self.accelerator.wait_for_everyone()
        self.teachers.load([task])
        self.teachers.assess(task)

    def record_external(self, rows: Mapping[str, Dataset], sets: TaskSets) -> None:
        """Record the external teachers of a new run, which needs the models only here."""
        teachers = load_external_teachers(sets.tasks, self.args.distillation_config.teachers, rows, sets.tokenizer)
        batch_size, device, ranks = self.args.per_device_eval_batch_size, self.args.device, self.accelerator
        try:
            for name, teacher in teachers.items():
                batches = teacher.logits(
                    rows[name], sets.length_of(name), batch_size, device, ranks.process_index, ranks.num_processes
                )
                self.record(name, 0, (gather_examples(ranks, *batch) for batch in batches))
        except ConfigurationError:
            if self.args.should_save:
                self.teachers.store.clear()
            raise

    def _rolls_back_to(self, step: int) -> set[int]:
        """Return the step whose weights replace those of a step before the next one is taken, if there is one."""
        return {
            event.teacher_step
            for event in self.schedule.events
            if event.event == "rolled_back" and event.step == step and event.teacher_step is not None
        }

    def roll_back(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Return to the best weights of a task if the evaluation of this step has decided so.

        Not at the evaluation itself: a checkpoint of that step holds the weights that were evaluated. The state of the
        optimizer belongs to the weights that are left, and is reset; the learning-rate schedule is not.
        """
        for best_step in self._rolls_back_to(step):
            load_weights(self.model, self.teachers.store.load_snapshot(best_step))
            optimizer.state.clear()
