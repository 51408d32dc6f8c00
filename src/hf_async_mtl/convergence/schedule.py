"""Which phase each task is in: a state machine that sees scores and nothing else.

No weights, no trainer, no clock: fed the same scores, it takes the same turns. Method: Lu et al., "Asynchronous
Convergence in Multi-Task Learning via Knowledge Distillation from Converged Tasks", NAACL 2022 Industry Track.
"""

import copy
import math
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, SupportsFloat

from hf_async_mtl.convergence.criteria import CRITERIA, ConvergenceConfig, OnConvergence, check_keys

__all__ = ["ConvergenceSchedule", "Event", "Phase", "TaskSpec"]

Phase = Literal["waiting", "learning", "distilling", "stopped"]
_PHASE_AFTER: dict[OnConvergence, Phase] = {"distill": "distilling", "stop": "stopped", "continue": "learning"}


@dataclass(frozen=True)
class TaskSpec:
    """What the schedule knows of a task: its type and its monitored metric, for the report, and when it converges."""

    type: str
    metric: str
    convergence: ConvergenceConfig = field(default_factory=ConvergenceConfig)


@dataclass(frozen=True, kw_only=True)
class Event:
    """A task converged at `step`; its teacher is the model of `teacher_step`, which can be `step` itself."""

    step: int
    task: str
    event: Literal["converged"] = "converged"
    teacher_step: int


@dataclass
class _TaskState:
    """What the report shows of a task, in its order. None: not yet, or not a number."""

    phase: Phase = "learning"
    teacher_value: float | None = None
    teacher_step: int | None = None
    converged_step: int | None = None
    best: float | None = None
    best_step: int | None = None
    last: float | None = None
    history: list[list[Any]] = field(default_factory=list)

    @property
    def seeks_teacher(self) -> bool:
        """Whether a better score would be its teacher. After convergence it has one, even where it learns on."""
        return self.phase == "learning" and self.converged_step is None


class ConvergenceSchedule:
    """Follows every task from true labels to its own end of learning.

    Args:
        tasks: The tasks by name. Their order is the order of events and reports.
        final_evaluations: So many evaluations after the last convergence the run is `finished`. None: never.

    Raises:
        ValueError: There is no task, or `final_evaluations` is negative.

    >>> config = ConvergenceConfig(patience=1)
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

    def __init__(self, tasks: Mapping[str, TaskSpec], final_evaluations: int | None = None) -> None:
        if not tasks:
            raise ValueError("A schedule needs at least one task, and got none.")
        if final_evaluations is not None and final_evaluations < 0:
            raise ValueError(f"final_evaluations must be at least 0, or None for no end, not {final_evaluations}.")
        self.tasks = dict(tasks)
        self.final_evaluations = final_evaluations
        self.events: list[Event] = []
        self._states = {name: _TaskState() for name in self.tasks}
        self._criteria = {name: CRITERIA[spec.convergence.criterion](spec.convergence) for name, spec in tasks.items()}
        self._final: dict[str, Any] | None = None

    @property
    def step(self) -> int:
        """The step of the last evaluation, 0 before the first."""
        steps = self._evaluated_steps()
        return steps[-1] if steps else 0

    @property
    def phases(self) -> dict[str, Phase]:
        """The phase of each task."""
        return {name: state.phase for name, state in self._states.items()}

    @property
    def finished(self) -> bool:
        """Whether no task learns any more and `final_evaluations` evaluations followed the last convergence."""
        if self.final_evaluations is None:
            return False
        last_convergence = 0
        for state in self._states.values():
            if state.converged_step is None or state.phase == "learning":
                return False
            last_convergence = max(last_convergence, state.converged_step)
        return sum(step > last_convergence for step in self._evaluated_steps()) >= self.final_evaluations

    def observe(self, step: int, values: Mapping[str, SupportsFloat | None]) -> list[Event]:
        """Takes one whole evaluation in.

        Args:
            step: The optimizer step, greater than the last one.
            values: The monitored metric of every task, higher is better. None, NaN and infinity are kept as None.

        Returns:
            The convergences of this evaluation, in the order of the tasks.

        Raises:
            ValueError: A task is missing or unknown, or the step is not greater than the last. Nothing has changed.
        """
        scores = self._scores(values)
        steps = self._evaluated_steps()
        if steps and step <= steps[-1]:
            raise ValueError(
                f"An evaluation must come after the last one, at step {steps[-1]}, not at step {step}; "
                "observe each evaluation once."
            )
        self._final = None  # It speaks of a run that has ended, and this one goes on.
        events = [event for name, score in scores.items() if (event := self._observe_task(name, int(step), score))]
        self.events += events
        return events

    def _observe_task(self, name: str, step: int, score: float | None) -> Event | None:
        state = self._states[name]
        state.last = score
        state.history.append([step, score])
        if _is_better(score, state.best):
            state.best, state.best_step = score, step
        if not state.seeks_teacher:
            return None
        if _is_better(score, state.teacher_value):
            state.teacher_value, state.teacher_step = score, step
        converged = self._criteria[name].update(step, score)
        # Without one finite score there is nobody to teach, whatever the criterion says.
        if not converged or state.teacher_step is None:
            return None
        state.converged_step = step
        state.phase = _PHASE_AFTER[self.tasks[name].convergence.on_convergence]
        return Event(step=step, task=name, teacher_step=state.teacher_step)

    def snapshots_needed(self) -> set[int]:
        """The steps whose weights may yet become a teacher: the best so far of each task that is to distill."""
        return {step for step in self._candidates().values() if step is not None}

    def improved(self, step: int) -> list[str]:
        """The tasks whose best score so far came at `step`, among those that are to distill and still learn."""
        return [name for name, teacher_step in self._candidates().items() if teacher_step == step]

    def _candidates(self) -> dict[str, int | None]:
        return {
            name: state.teacher_step
            for name, state in self._states.items()
            if state.seeks_teacher and self.tasks[name].convergence.on_convergence == "distill"
        }

    def finish(self, step: int, values: Mapping[str, SupportsFloat | None] | None = None) -> None:
        """Notes which weights the run ends with. A later `observe` takes the note back.

        Args:
            step: The step of the weights that are kept.
            values: Their scores. Left out, they are those observed at `step`.

        Raises:
            ValueError: Nothing was observed at `step` and no values are given, or a task is missing or unknown.
        """
        if values is None:
            if step not in self._evaluated_steps():
                raise ValueError(
                    f"The final step must be one that was evaluated, and step {step} was not; give its values."
                )
            values = {name: dict(state.history)[step] for name, state in self._states.items()}
        scores = self._scores(values)
        self._final = {
            "step": int(step),
            "average": _mean(scores.values()),
            "tasks": {
                name: {"value": score, "retention": _retention(score, self._states[name].best)}
                for name, score in scores.items()
            },
        }

    def report(self) -> dict[str, Any]:
        """The content of `convergence.json`, version 1. It shares nothing with the schedule.

        Before convergence, `teacher_value` and `teacher_step` are the candidate's. The average is None where the last
        value of any task is. `final` is there after `finish` only.
        """
        report: dict[str, Any] = {
            "version": 1,
            "step": self.step,
            "average": _mean(state.last for state in self._states.values()),
            "tasks": {
                name: {"type": spec.type, "metric": spec.metric, **asdict(self._states[name])}
                for name, spec in self.tasks.items()
            },
            "events": [asdict(event) for event in self.events],
        }
        if self._final is not None:
            report["final"] = copy.deepcopy(self._final)
        return report

    def state_dict(self) -> dict[str, Any]:
        """All that the future depends on, besides the constructor's arguments, as JSON values."""
        return {
            "tasks": {
                name: {
                    "metric": spec.metric,
                    **asdict(self._states[name]),
                    "criterion": self._criteria[name].state_dict(),
                }
                for name, spec in self.tasks.items()
            },
            "events": [asdict(event) for event in self.events],
            "final": copy.deepcopy(self._final),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned. Changed settings then apply to the tasks that still learn.

        Raises:
            ValueError: The state is of other tasks, of another monitored metric, or its keys are not exactly those of
                `state_dict`. Nothing has changed.
        """
        other_version = "was it saved by another version?"
        check_keys(state, self.state_dict(), "The state of a schedule", other_version)
        check_keys(
            state["tasks"], self.tasks, "The tasks of a saved schedule", "resume with the tasks that it was saved with."
        )
        names = [item.name for item in fields(_TaskState)]
        states = {}
        criteria = {}
        for name, spec in self.tasks.items():
            saved = copy.deepcopy(state["tasks"][name])
            check_keys(saved, ["metric", *names, "criterion"], f"The saved state of task {name}", other_version)
            if saved["metric"] != spec.metric:
                raise ValueError(
                    f"Task {name} must be resumed with the metric that it was monitored by, {saved['metric']}, "
                    f"not {spec.metric}: put {saved['metric']} first in its metrics."
                )
            states[name] = _TaskState(**{key: saved[key] for key in names})
            criteria[name] = CRITERIA[spec.convergence.criterion](spec.convergence)
            criteria[name].load_state_dict(saved["criterion"])
        for event in state["events"]:
            check_keys(event, [item.name for item in fields(Event)], "A saved event", other_version)
        self.events = [Event(**event) for event in state["events"]]
        self._states, self._criteria = states, criteria
        self._final = copy.deepcopy(state["final"])

    def _evaluated_steps(self) -> list[int]:
        # Every task has a score at every evaluation, so any task's history tells.
        return [step for step, _ in next(iter(self._states.values())).history]

    def _scores(self, values: Mapping[str, SupportsFloat | None]) -> dict[str, float | None]:
        check_keys(values, self.tasks, "The values of an evaluation", "evaluate every task each time.")
        return {name: _finite(values[name]) for name in self.tasks}


def _finite(value: SupportsFloat | None) -> float | None:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None


def _is_better(score: float | None, best: float | None) -> bool:
    return score is not None and (best is None or score > best)


def _mean(scores: Iterable[float | None]) -> float | None:
    known = []
    for score in scores:
        if score is None:
            return None
        known.append(score)
    return math.fsum(known) / len(known)


def _retention(score: float | None, best: float | None) -> float | None:
    if score is None or best is None or score <= 0 or best <= 0:
        return None
    return score / best
