"""Which phase each task is in: a state machine that sees scores and nothing else.

No weights, no trainer, no clock: with the same scores it makes the same decisions. Method: Lu et al., "Asynchronous
Convergence in Multi-Task Learning via Knowledge Distillation from Converged Tasks", NAACL 2022 Industry Track.
"""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, fields
from typing import Any

from .actions import Phase
from .criteria import check_state_keys
from .evaluation import Scores, check_values, evaluations_by_task
from .report import convergence_report, final_result
from .task import Event, TaskSpec, TaskTracker


class ConvergenceSchedule:
    """Follow every task from its labels to its own end of learning.

    The scores of one task change no other task's phase, with two exceptions. In an ``order``, a task joins when those
    before it have converged. And after a rollback, the other supervised tasks lose what they have reached since: their
    candidate is the step that the weights returned to, and their criterion starts again. All weights return to one step
    at an evaluation: of several tasks that would roll back, the one whose best came earliest does (of these, the first
    task), and the others go on learning.

    Args:
        tasks: The tasks by name. Their order is the order of events and reports.
        final_evaluations: The run is `finished` this number of evaluations after the last convergence. None: never.
        order: All tasks in the order in which they join; the first one learns from the start. A task waits until all
            tasks that have joined have converged. Its scores are kept, but do not count. None: all tasks learn from the
            start.

    Attributes:
        trackers: Task -> its `TaskTracker`.
        events: All events so far.

    Raises:
        ValueError: There is no task, ``final_evaluations`` is negative, or ``order`` does not name every task once.

    >>> from hf_async_mtl.convergence import ConvergenceConfig
    >>> config = ConvergenceConfig(criterion="plateau", patience=1, min_epochs=0)
    >>> schedule = ConvergenceSchedule({"match": TaskSpec("classification", "f1", config)}, final_evaluations=1)
    >>> schedule.observe(100, {"match": 0.9})
    []
    >>> schedule.observe(200, {"match": 0.8})
    [Event(step=200, task='match', event='converged', teacher_step=100)]
    >>> schedule.phases, schedule.finished
    ({'match': 'distilling'}, False)
    >>> schedule.observe(300, {"match": 0.95})
    []
    >>> schedule.finished
    True
    """

    def __init__(
        self,
        tasks: Mapping[str, TaskSpec],
        final_evaluations: int | None = None,
        order: Sequence[str] | None = None,
    ) -> None:
        if not tasks:
            raise ValueError("A schedule needs at least one task, and got none.")
        if final_evaluations is not None and final_evaluations < 0:
            raise ValueError(f"final_evaluations must be at least 0, or None for no end, not {final_evaluations}.")
        if order is not None and sorted(order) != sorted(tasks):
            raise ValueError(f"order must name each of the tasks {', '.join(tasks)} once, not {', '.join(order)}.")
        self.tasks = dict(tasks)
        self.final_evaluations = final_evaluations
        self.order = None if order is None else list(order)
        # The tasks that join one after the other.
        self._queue = [name for name in order or [] if not tasks[name].distilled_from_start]
        self.trackers = self._new_trackers()
        self.events: list[Event] = []
        self._final: dict[str, Any] | None = None

    @property
    def step(self) -> int:
        """The step of the last evaluation, 0 before the first."""
        return self.evaluated_steps[-1] if self.evaluated_steps else 0

    @property
    def phases(self) -> dict[str, Phase]:
        """The phase of each task."""
        return {name: tracker.state.phase for name, tracker in self.trackers.items()}

    @property
    def finished(self) -> bool:
        """Whether all tasks have left their labels and `final_evaluations` evaluations followed the last convergence.

        Tasks with an external teacher do not count; where there are no others, the budget ends the run.
        """
        trackers = [tracker for tracker in self.trackers.values() if not tracker.spec.distilled_from_start]
        if self.final_evaluations is None or not trackers or not all(tracker.is_converged for tracker in trackers):
            return False
        last_convergence = max(tracker.state.converged_step or 0 for tracker in trackers)
        return sum(step > last_convergence for step in self.evaluated_steps) >= self.final_evaluations

    @property
    def noise_references(self) -> dict[str, int | None]:
        """Task -> the step whose evaluation its next one is compared with, where its criterion needs a standard error.

        None before there is one.
        """
        return {
            name: tracker.noise_reference for name, tracker in self.trackers.items() if tracker.needs_standard_error
        }

    @property
    def in_loss(self) -> dict[str, bool]:
        """Task -> whether its loss counts."""
        return {name: tracker.is_in_loss for name, tracker in self.trackers.items()}

    def observe(
        self,
        step: int,
        values: Scores,
        *,
        standard_errors: Scores | None = None,
        epoch: float | None = None,
        constant: Collection[str] = (),
    ) -> list[Event]:
        """Record one evaluation of all tasks, and move their phases.

        Args:
            step: The optimizer step, greater than the last one.
            values: The monitored metric of every task, in its own direction. None, NaN and infinity are kept as None.
            standard_errors: Of some tasks, the standard error of the difference between this evaluation and that of
                their step in `noise_references`, in the units of the metric. Without it, there is no noise.
            epoch: Epochs trained so far, with fractions. Needed where a task has ``min_epochs``.
            constant: Tasks that gave every example the same prediction. Where a task has never done otherwise, it has
                not begun to learn: the evaluation uses up no patience and gives no teacher, however good its score
                (predicting "yes" for all has an F1 of 0.8 where two thirds are). This ends after three times the
                patience.

        Returns:
            What changed, in the order of the tasks; a task that joins comes last.

        Raises:
            ValueError: A task is missing or unknown, the step is not greater than the last, or the epoch is missing.
                Nothing has changed.
        """
        evaluations = evaluations_by_task(self._scores(values), step, standard_errors, epoch, constant)
        self._check_time(step, epoch)
        self._final = None  # it describes a run that had ended
        due = [name for name, tracker in self.trackers.items() if tracker.observe(evaluations[name])]
        events = self._converge(int(step), due)
        for event in events:
            if event.event == "rolled_back":
                for tracker in self.trackers.values():
                    tracker.reset_after_rollback(event.teacher_step)
        events += self._join_next(int(step), epoch or 0.0)
        self.events += events
        return events

    def _scores(self, values: Scores) -> dict[str, float | None]:
        """Return the scores of all tasks from the values of their metrics."""
        return {name: self.tasks[name].signed(value) for name, value in check_values(values, self.tasks).items()}

    def _check_time(self, step: int, epoch: float | None) -> None:
        if self.evaluated_steps and step <= self.step:
            raise ValueError(
                f"An evaluation must come after the last one, at step {self.step}, not at step {step}; "
                "observe each evaluation once."
            )
        timed = [
            name
            for name, spec in self.tasks.items()
            if spec.convergence.min_epochs > 0 and not spec.distilled_from_start
        ]
        if timed and epoch is None:
            raise ValueError(f"An evaluation must come with its epoch, for the min_epochs of {timed[0]}; give `epoch`.")

    def _converge(self, step: int, due: Sequence[str]) -> list[Event]:
        """Change the phases of the tasks whose criterion reports convergence, once all scores are known."""
        rolling = [name for name in due if self.trackers[name].action.rolls_back]
        first = min(rolling, key=lambda name: self.trackers[name].state.teacher_step or 0, default=None)
        converging = [name for name in due if name == first or name not in rolling]
        return [event for name in converging for event in self.trackers[name].converge(step)]

    def _join_next(self, step: int, epoch: float) -> list[Event]:
        waiting = [name for name in self._queue if self.trackers[name].state.phase == "waiting"]
        joined = [tracker.state for tracker in self.trackers.values() if tracker.state.phase != "waiting"]
        if not waiting or any(state.converged_step is None for state in joined):
            return []
        return self.trackers[waiting[0]].join(step, epoch)

    def teacher_step(self, task: str) -> int | None:
        """Return the step whose weights are a task's teacher, or its candidate while it learns from labels.

        None before its first score, and where its teacher is another model.
        """
        return self.trackers[task].state.teacher_step

    def snapshots_needed(self) -> set[int]:
        """Return the steps whose weights may yet become a teacher, or be rolled back to.

        Those of a task that has converged are not among them.
        """
        steps = {tracker.state.teacher_step for tracker in self.trackers.values() if tracker.keeps_snapshot}
        return {step for step in steps if step is not None}

    def improved(self, step: int) -> list[str]:
        """Return the tasks that need a snapshot of ``step``: it is their best step, and they may yet converge."""
        return [
            name
            for name, tracker in self.trackers.items()
            if tracker.keeps_snapshot and tracker.state.teacher_step == step
        ]

    def finish(self, step: int, values: Scores | None = None) -> None:
        """Record which weights the run ends with. A later `observe` deletes the record.

        Args:
            step: The step of the weights that are kept.
            values: Their metrics. None: those observed at ``step``.

        Raises:
            ValueError: Nothing was observed at ``step`` and no values are given, or a task is missing or unknown.
        """
        if values is not None:
            scores = self._scores(values)
        elif step in self.evaluated_steps:
            scores = {name: dict(tracker.state.history)[step] for name, tracker in self.trackers.items()}
        else:
            raise ValueError(
                f"The final step must be one that was evaluated, and step {step} was not; give its values."
            )
        self._final = final_result(self.trackers, int(step), scores)

    def report(self) -> dict[str, Any]:
        """Return the content of ``convergence.json``; see `hf_async_mtl.convergence.report.convergence_report`."""
        return convergence_report(self.trackers, self.events, self.step, self._final)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the future depends on, besides the constructor's arguments, as JSON values."""
        return {
            "tasks": {name: tracker.state_dict() for name, tracker in self.trackers.items()},
            "events": [asdict(event) for event in self.events],
            "final": copy.deepcopy(self._final),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned.

        Changed settings apply from then on, and a task that has converged keeps its phase. Weights that were not kept
        stay lost: with another action, a task may ask for a missing snapshot.

        Raises:
            ValueError: The state is of other tasks, of another monitored metric, of another criterion, of tasks that
                joined in another order, or its keys are not exactly those of `state_dict`. Nothing has changed.
        """
        check_state_keys(state, self.state_dict(), "The state of a schedule")
        check_state_keys(
            state["tasks"], self.tasks, "The tasks of a saved schedule", "resume with the tasks that it was saved with."
        )
        trackers = self._new_trackers()
        for name, tracker in trackers.items():
            tracker.load_state_dict(state["tasks"][name])
        self._check_order(trackers)
        for event in state["events"]:
            check_state_keys(event, [item.name for item in fields(Event)], "A saved event")
        self.events = [Event(**event) for event in state["events"]]
        self.trackers = trackers
        self._final = copy.deepcopy(state["final"])

    def _check_order(self, trackers: Mapping[str, TaskTracker]) -> None:
        """Check that the waiting tasks are the last ones of the order, and not all of it."""
        waiting = [name for name, tracker in trackers.items() if tracker.state.phase == "waiting"]
        joined = [name for name in trackers if name not in waiting] or ["none"]
        queue = self._queue
        if waiting and (len(waiting) == len(queue) or set(waiting) != set(queue[-len(waiting) :])):
            raise ValueError(
                f"The order must be one in which {', '.join(joined)} joined, and {', '.join(waiting)} still wait, "
                f"not {', '.join(self.order or ['none'])}; resume with the order of the saved run."
            )

    def _new_trackers(self) -> dict[str, TaskTracker]:
        return {name: TaskTracker(name, spec, waits=name in self._queue[1:]) for name, spec in self.tasks.items()}

    @property
    def evaluated_steps(self) -> list[int]:
        """The steps of all evaluations so far."""
        # Every task has a score at every evaluation.
        return [step for step, _ in next(iter(self.trackers.values())).state.history]
