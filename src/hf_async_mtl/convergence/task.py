"""The state machine of one task: from labels to its teacher.

It sees the scores of its own task only. What depends on other tasks (who joins, whose rollback wins) is decided by
`hf_async_mtl.convergence.schedule.ConvergenceSchedule`, which calls the methods that change the phase.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal

from .actions import ACTIONS, Action, Phase
from .config import ConvergenceConfig
from .criteria import CRITERIA, Criterion, check_state_keys
from .evaluation import Evaluation

_CONSTANT_EVALUATIONS = 3
"""Multiple of the patience for which evaluations with one prediction for every example are skipped."""


@dataclass(frozen=True)
class TaskSpec:
    """What convergence depends on, besides scores.

    Args:
        type: The type of the task, for the report.
        metric: The name of its monitored metric, for the report.
        convergence: When the task converges, and what happens then.
        distilled_from_start: Whether the task has an external teacher and distills from step 0. Such a task never
            waits or converges.
        greater_is_better: The direction of the metric. The *scores* that decisions are made on are always better when
            greater: they are the values of the metric, negated where it is better when smaller.
        passes_per_epoch: Number of times that an epoch of the run draws each of the task's training examples; 1 with
            proportional mixing.
        positive_label: The class that the metric is that of, for the report; None for a metric of all classes.
    """

    type: str
    metric: str
    convergence: ConvergenceConfig = field(default_factory=ConvergenceConfig)
    distilled_from_start: bool = False
    greater_is_better: bool = True
    passes_per_epoch: float = 1.0
    positive_label: str | None = None

    def signed(self, value: float | None) -> float | None:
        """Return the score of a value of the metric, or the value of a score."""
        return value if value is None or self.greater_is_better else -value


@dataclass(frozen=True, kw_only=True)
class Event:
    """A change of a task at the evaluation of ``step``.

    * ``converged``: Its best score was at ``teacher_step``, which can be ``step`` itself.
    * ``rolled_back``: Follows its ``converged``. All weights return to those of ``teacher_step`` before the next step.
      If the run ends here, it ends with the weights that were evaluated.
    * ``joined``: It waited, and learns from now on. ``teacher_step`` is None.
    """

    step: int
    task: str
    event: Literal["converged", "rolled_back", "joined"] = "converged"
    teacher_step: int | None = None


@dataclass
class TaskState:
    """The fields of a task in the report, in their order, with scores. None: not yet, or not a finite number."""

    phase: Phase = "learning"
    teacher_value: float | None = None
    teacher_step: int | None = None
    converged_step: int | None = None
    best: float | None = None
    best_step: int | None = None
    last: float | None = None
    history: list[list[Any]] = field(default_factory=list)


class TaskTracker:
    """Follow one task through its phases; until convergence the teacher in its ``state`` is the candidate."""

    def __init__(self, name: str, spec: TaskSpec, *, waits: bool = False) -> None:
        self.name = name
        self.spec = spec
        self.state = TaskState(phase="waiting" if waits else "learning")
        if spec.distilled_from_start:
            self.state = TaskState(phase="distilling", converged_step=0)
        self._criterion = self._new_criterion()
        # The steps of the evaluations that did not count.
        self._skipped: list[int] = []
        # The step and the epoch at which the task began to learn.
        self._joined: list[float] = [0, 0.0]

    @property
    def action(self) -> Action:
        """What happens at convergence, and afterwards."""
        return ACTIONS[self.spec.convergence.on_convergence]

    @property
    def is_supervised(self) -> bool:
        """Whether the task learns from its labels and has not converged: a better score would be its teacher's."""
        return self.state.phase == "learning" and self.state.converged_step is None

    @property
    def is_converged(self) -> bool:
        """Whether the task has left its labels. False with ``continue``, which never does."""
        return self.state.phase in ("distilling", "stopped")

    @property
    def is_in_loss(self) -> bool:
        """Whether the task's loss counts."""
        return self.state.phase in ("learning", "distilling")

    @property
    def keeps_snapshot(self) -> bool:
        """Whether the weights of the best step may be needed yet."""
        return self.action.needs_snapshot and self.is_supervised

    @property
    def noise_reference(self) -> int | None:
        """The step whose evaluation the next one is compared with; None before there is one."""
        return self._criterion.reference_step

    @property
    def needs_standard_error(self) -> bool:
        """Whether the next evaluation is compared with an earlier one by a standard error."""
        return self._criterion.needs_standard_error and self.is_supervised

    @property
    def first_counted_step(self) -> int | None:
        """The step of the first evaluation that the criterion was given; None before there is one."""
        return next((step for step, _ in self.state.history if step not in self._skipped), None)

    def observe(self, evaluation: Evaluation) -> bool:
        """Record an evaluation, and return whether the task is due to converge. The phase does not change yet."""
        state, step, score = self.state, evaluation.step, evaluation.score
        state.last = score
        state.history.append([step, score])
        if score is not None and _is_better(score, state.best):
            state.best, state.best_step = score, step
        if not self.is_supervised or self._skip(evaluation):
            return False
        if score is not None and _is_better(score, state.teacher_value):  # of equal scores, the earlier one stays
            state.teacher_step, state.teacher_value = step, score
        converged = self._criterion.update(step, score, standard_error=evaluation.standard_error)
        return converged and self._may_converge(step, evaluation.epoch)

    def converge(self, step: int) -> list[Event]:
        """Leave the labels, or go on with them, as the action says."""
        self.state.converged_step = step
        self.state.phase = self.action.phase
        teacher_step = self.state.teacher_step
        events = [Event(step=step, task=self.name, teacher_step=teacher_step)]
        # The present weights need no rollback to themselves.
        if self.action.rolls_back and teacher_step != step:
            events.append(Event(step=step, task=self.name, event="rolled_back", teacher_step=teacher_step))
        return events

    def join(self, step: int, epoch: float) -> list[Event]:
        """Begin to learn, after waiting."""
        self.state.phase = "learning"
        self._joined = [step, epoch]
        return [Event(step=step, task=self.name, event="joined")]

    def reset_after_rollback(self, step: int | None) -> None:
        """Forget what a supervised task has reached after ``step``, to whose weights all tasks return."""
        if not self.is_supervised:
            return
        score = dict(self.state.history).get(step)
        counted = self.state.teacher_step is not None and step not in self._skipped
        has_candidate = score is not None and counted
        self.state.teacher_step, self.state.teacher_value = (step, score) if has_candidate else (None, None)
        self._criterion = self._new_criterion()
        # A criterion that compares predictions has none of that step: the next evaluation is its first.
        if has_candidate and step is not None and not self._criterion.needs_standard_error:
            self._criterion.update(step, score)

    def state_dict(self) -> dict[str, Any]:
        """Return all that the future depends on, besides the constructor's arguments, as JSON values."""
        return {
            "metric": self.spec.metric,
            "distilled_from_start": self.spec.distilled_from_start,
            **asdict(self.state),
            "skipped": list(self._skipped),
            "joined": list(self._joined),
            "criterion": {"name": self.spec.convergence.criterion, "state": self._criterion.state_dict()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; a `ValueError` if it is of another task has changed nothing."""
        check_state_keys(state, self.state_dict(), f"The saved state of task {self.name}")
        state = copy.deepcopy(dict(state))
        self._check_same_task(state)
        criterion = self._new_criterion()
        criterion.load_state_dict(state["criterion"]["state"])
        self._criterion = criterion
        self.state = TaskState(**{item.name: state[item.name] for item in fields(TaskState)})
        self._skipped, self._joined = state["skipped"], state["joined"]

    def _check_same_task(self, state: Mapping[str, Any]) -> None:
        name, spec, criterion = self.name, self.spec, self.spec.convergence.criterion
        if state["metric"] != spec.metric:
            raise ValueError(
                f"Task {name} must be resumed with the metric that it was monitored by, {state['metric']}, "
                f"not {spec.metric}: name {state['metric']} first in its metrics."
            )
        if state["distilled_from_start"] != spec.distilled_from_start:
            raise ValueError(
                f"Task {name} must be resumed as it began, {_start(state['distilled_from_start'])}, not "
                f"{_start(spec.distilled_from_start)}: give the `distillation.teachers` of the first run."
            )
        check_state_keys(state["criterion"], ["name", "state"], f"The saved criterion of task {name}")
        if state["criterion"]["name"] != criterion:
            raise ValueError(
                f"Task {name} must be resumed with the criterion that it began with, {state['criterion']['name']}, "
                f"not {criterion}: its counters and references are of that one."
            )

    def _new_criterion(self) -> Criterion:
        config = self.spec.convergence
        return CRITERIA[config.criterion](config)

    def _skip(self, evaluation: Evaluation) -> bool:
        """Return whether the criterion skips an evaluation, because the task has hardly begun to learn."""
        if self.state.teacher_step is not None or (evaluation.score is None and not evaluation.is_constant):
            return False
        skips_first, first_step = self._criterion.skips_first, self._joined[0]
        most = _CONSTANT_EVALUATIONS * self.spec.convergence.patience if evaluation.is_constant else int(skips_first)
        is_untrained = skips_first and evaluation.step <= first_step
        if not is_untrained and sum(step > first_step for step in self._skipped) >= most:
            return False
        self._skipped.append(evaluation.step)
        return True

    def _may_converge(self, step: int, epoch: float) -> bool:
        config, (first_step, first_epoch) = self.spec.convergence, self._joined
        # Without one finite score there is no teacher, whatever the criterion says.
        has_teacher = self.state.teacher_step is not None
        passes = (epoch - first_epoch) * self.spec.passes_per_epoch
        return has_teacher and step - first_step >= config.min_steps and passes >= config.min_epochs


def _is_better(score: float, best: float | None) -> bool:
    return best is None or score > best


def _start(distilled_from_start: bool) -> str:
    return f"with{'' if distilled_from_start else 'out'} an external teacher"
