"""Which phase each task is in: a state machine that sees scores and nothing else.

No weights, no trainer, no clock: fed the same scores, it takes the same turns. Method: Lu et al., "Asynchronous
Convergence in Multi-Task Learning via Knowledge Distillation from Converged Tasks", NAACL 2022 Industry Track.
"""

import copy
import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, fields
from typing import Any, Literal, SupportsFloat

from hf_async_mtl.convergence.actions import ACTIONS, Action, Phase
from hf_async_mtl.convergence.criteria import CRITERIA, ConvergenceConfig, Criterion, check_keys

__all__ = ["ConvergenceSchedule", "Event", "Phase", "TaskSpec"]

_CONSTANT_EVALUATIONS = 3
"""Times its patience, a task may give every example the same answer before that counts as all it can do."""


@dataclass(frozen=True)
class TaskSpec:
    """What the schedule knows of a task.

    Args:
        type: Its type, for the report.
        metric: The name of its monitored metric, for the report.
        convergence: When it converges, and what happens then.
        distilled_from_start: Whether it has a teacher from outside and distills from step 0. Then it never waits,
            converges or returns, and its teacher is not renewed.
    """

    type: str
    metric: str
    convergence: ConvergenceConfig = field(default_factory=ConvergenceConfig)
    distilled_from_start: bool = False


@dataclass(frozen=True, kw_only=True)
class Event:
    """What became of a task at the evaluation of `step`.

    * `converged`: it did; its best was at `teacher_step`, which can be `step` itself.
    * `rolled_back`: right after its `converged`: all weights return to those of `teacher_step`, before the next step.
      Where there is none, the run ends with the weights that were evaluated.
    * `returned`: its score fell below `return_below`, and it goes back to its labels. `teacher_step` is None.
    * `teacher_renewed`: the present weights are its teacher from now on; `teacher_step` is `step`.
    * `joined`: it waited, and learns from now on. `teacher_step` is None.
    """

    step: int
    task: str
    event: Literal["converged", "rolled_back", "returned", "teacher_renewed", "joined"] = "converged"
    teacher_step: int | None = None


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

    @property
    def has_left_labels(self) -> bool:
        return self.phase in ("distilling", "stopped")


class ConvergenceSchedule:
    """Follows every task from true labels to its own end of learning.

    The scores of one task move no other's phase, with two exceptions. In an `order`, a task joins when those before it
    have converged. And after a rollback, what the other tasks that learn have reached since is gone: their candidate is
    the step that the weights returned to, and their criterion begins anew.
    Weights return to one place at an evaluation: of several tasks that would roll back, the one whose best came
    earliest does (of these, the first task), and the others go on learning.

    Args:
        tasks: The tasks by name. Their order is the order of events and reports.
        final_evaluations: So many evaluations after the last convergence the run is `finished`. None: never.
        order: Every task once, in the order in which they join; the first learns from the start. A task waits until all
            that have joined have converged. Its scores are kept, but neither use up its patience nor make its teacher.
            None: all learn from the start.

    Raises:
        ValueError: There is no task, `final_evaluations` is negative, or `order` does not name every task once.

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
        self.events: list[Event] = []
        self._states = {
            name: _TaskState(phase="distilling", converged_step=0) if spec.distilled_from_start else _TaskState()
            for name, spec in self.tasks.items()
        }
        for name in self._queue()[1:]:
            self._states[name].phase = "waiting"
        self._criteria = {name: _new_criterion(spec) for name, spec in self.tasks.items()}
        # Task -> its best score among the evaluations that counted, and how many did not.
        self._counted_best: dict[str, float | None] = dict.fromkeys(self.tasks)
        self._constant = dict.fromkeys(self.tasks, 0)
        # Task -> the step and the epoch at which it began to learn.
        self._joined: dict[str, list[float]] = {name: [0, 0.0] for name in self.tasks}
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
        """Whether no task learns or waits any more and `final_evaluations` evaluations followed the last convergence.

        Tasks that distill from the start do not count; where there are no others, the budget ends the run.
        """
        states = [self._states[name] for name, spec in self.tasks.items() if not spec.distilled_from_start]
        if self.final_evaluations is None or not states:
            return False
        last_convergence = 0
        for state in states:
            if state.converged_step is None or state.phase == "learning":
                return False
            last_convergence = max(last_convergence, state.converged_step)
        return sum(step > last_convergence for step in self._evaluated_steps()) >= self.final_evaluations

    @property
    def noise_references(self) -> dict[str, int | None]:
        """Learning task -> the step whose evaluation its next one is compared with, where its criterion reads a
        standard error. None before there is one.

        A task that converged at the last evaluation and may return is among them: that evaluation can be the one that
        it will be compared with then.
        """
        return {
            name: self._criteria[name].reference_step
            for name, state in self._states.items()
            if self._criteria[name].needs_standard_error
            and (state.seeks_teacher or (state.converged_step == self.step and self._may_return(name)))
        }

    def in_loss(self, step: int) -> dict[str, bool]:
        """Whether each task's loss counts in an optimizer step.

        Args:
            step: How many optimizer steps were made before it.
        """
        return {name: self._counts(name, step) for name in self.tasks}

    def _counts(self, name: str, step: int) -> bool:
        phase, action = self._states[name].phase, self._action(name)
        if phase in ("learning", "distilling"):
            return True
        return phase == action.phase and action.loss_every > 0 and step % action.loss_every == 0

    def observe(
        self,
        step: int,
        values: Mapping[str, SupportsFloat | None],
        *,
        losses: Mapping[str, SupportsFloat | None] | None = None,
        standard_errors: Mapping[str, SupportsFloat | None] | None = None,
        epoch: float | None = None,
        constant: Collection[str] = (),
    ) -> list[Event]:
        """Takes one whole evaluation in.

        Args:
            step: The optimizer step, greater than the last one.
            values: The monitored metric of every task, higher is better. None, NaN and infinity are kept as None.
            losses: The supervised validation loss of some tasks. Without it, no loss has risen.
            standard_errors: Of some tasks, the standard error of the difference between this evaluation and that of
                their step in `noise_references`, in the units of the metric. Without it, there is no noise.
            epoch: Epochs trained so far, with fractions. Needed where a task has `min_epochs`.
            constant: Tasks that gave every example the same answer. One that has never done otherwise has not begun to
                learn: the evaluation uses up no patience, and is nobody's teacher, however good its score (all "yes"
                has an F1 of 0.8 where two thirds are). After three times its patience this is over. Nor does a
                constant student become its own teacher.

        Returns:
            What became of tasks, in their order; a task that joins comes last.

        Raises:
            ValueError: A task is missing or unknown, the step is not greater than the last, or the epoch is missing.
                Nothing has changed.
        """
        scores = self._scores(values)
        known_losses = self._partial("losses", losses)
        known_errors = self._partial("standard errors", standard_errors)
        steps = self._evaluated_steps()
        if steps and step <= steps[-1]:
            raise ValueError(
                f"An evaluation must come after the last one, at step {steps[-1]}, not at step {step}; "
                "observe each evaluation once."
            )
        timed = [name for name, spec in self.tasks.items() if spec.convergence.min_epochs > 0]
        if timed and epoch is None:
            raise ValueError(f"An evaluation must come with its epoch, for the min_epochs of {timed[0]}; give `epoch`.")
        self._final = None  # It speaks of a run that has ended, and this one goes on.
        step = int(step)
        due = []
        for name, score in scores.items():
            self._note(name, step, score)
            if self._states[name].seeks_teacher and not self._spared(name, name in constant):
                self._consider(name, step, score)
                converged = self._criteria[name].update(
                    step, score, loss=known_losses.get(name), standard_error=known_errors.get(name)
                )
                if converged and self._may_converge(name, step, epoch):
                    due.append(name)
        events = self._move(step, due, constant)
        for event in events:
            if event.event == "joined":
                self._joined[event.task] = [step, epoch or 0.0]
        self.events += events
        return events

    def _note(self, name: str, step: int, score: float | None) -> None:
        state = self._states[name]
        state.last = score
        state.history.append([step, score])
        if _is_better(score, state.best):
            state.best, state.best_step = score, step

    def _spared(self, name: str, is_constant: bool) -> bool:
        """Whether an evaluation is none yet for the criterion: the task has not begun to learn."""
        limit = _CONSTANT_EVALUATIONS * self.tasks[name].convergence.patience
        if not is_constant or self._states[name].teacher_step is not None or self._constant[name] >= limit:
            return False
        self._constant[name] += 1
        return True

    def _consider(self, name: str, step: int, score: float | None) -> None:
        """Make a score the candidate for the task's teacher if it is its best. Of equal ones the earlier stays."""
        if score is not None:
            self._note_counted(name, score)
            if _is_better(score, self._states[name].teacher_value):
                self._set_candidate(name, step, score)

    def _note_counted(self, name: str, score: float) -> None:
        if _is_better(score, self._counted_best[name]):
            self._counted_best[name] = score

    def _set_candidate(self, name: str, step: int | None, score: float | None) -> None:
        self._states[name].teacher_step, self._states[name].teacher_value = step, score

    def _may_converge(self, name: str, step: int, epoch: float | None) -> bool:
        config = self.tasks[name].convergence
        # Without one finite score there is nobody to teach, whatever the criterion says.
        has_teacher = self._states[name].teacher_step is not None
        first_step, first_epoch = self._joined[name]
        has_time = step - first_step >= config.min_steps and (epoch or 0) - first_epoch >= config.min_epochs
        return has_teacher and has_time

    def _move(self, step: int, due: list[str], constant: Collection[str]) -> list[Event]:
        """Change the phases, once all scores are in. `due`: the tasks whose criterion says that they have converged."""
        rolling = [name for name in due if self._action(name).rolls_back]
        first = min(rolling, key=lambda name: self._states[name].teacher_step or 0, default=None)
        events = []
        for name in self.tasks:
            if name in due and (name == first or name not in rolling):
                events += self._converge(name, step)
            else:
                events += self._reconsider(name, step, name in constant)
        for event in events:
            if event.event == "rolled_back":
                self._forget_since(event.teacher_step)
        return events + self._join(step)

    def _forget_since(self, step: int | None) -> None:
        """After a rollback: what the tasks that learn have reached since is gone, and is no one's teacher."""
        for name, state in self._states.items():
            if state.seeks_teacher:
                had = dict(state.history).get(step)
                kept = had is not None and state.teacher_step is not None
                self._set_candidate(name, *((step, had) if kept else (None, None)))
                self._criteria[name] = _new_criterion(self.tasks[name])
                # One that compares predictions has none of that step, and takes the next evaluation for its first.
                if kept and step is not None and not self._criteria[name].needs_standard_error:
                    self._criteria[name].update(step, had)

    def _converge(self, name: str, step: int) -> list[Event]:
        state, action = self._states[name], self._action(name)
        state.converged_step = step
        state.phase = action.phase
        events = [Event(step=step, task=name, teacher_step=state.teacher_step)]
        # The present weights need no rollback to themselves.
        if action.rolls_back and state.teacher_step != step:
            events.append(Event(step=step, task=name, event="rolled_back", teacher_step=state.teacher_step))
        return events

    def _reconsider(self, name: str, step: int, is_constant: bool) -> list[Event]:
        """A converged task returns to its labels, or has outgrown its teacher, or neither."""
        state, config = self._states[name], self.tasks[name].convergence
        score, share = state.last, self._return_below(name)
        if score is None or not state.has_left_labels or self.tasks[name].distilled_from_start:
            return []
        best = self._counted_best[name]
        if share is not None and best is not None and best > 0 and score < share * best:
            state.phase, state.converged_step = "learning", None
            self._criteria[name].renew()
            return [Event(step=step, task=name, event="returned")]
        if is_constant:
            return []
        self._note_counted(name, score)
        taught, teacher_value = state.phase == "distilling", state.teacher_value
        if not config.renew_teacher or not taught or teacher_value is None:
            return []
        if score <= teacher_value + config.min_delta:
            return []
        self._set_candidate(name, step, score)
        return [Event(step=step, task=name, event="teacher_renewed", teacher_step=step)]

    def _join(self, step: int) -> list[Event]:
        waiting = [name for name in self._queue() if self._states[name].phase == "waiting"]
        joined = [state for state in self._states.values() if state.phase != "waiting"]
        if not waiting or any(state.converged_step is None for state in joined):
            return []
        self._states[waiting[0]].phase = "learning"
        return [Event(step=step, task=waiting[0], event="joined")]

    def teacher_step(self, task: str) -> int | None:
        """The step whose weights are a task's teacher, or its candidate while it learns from labels.

        None before its first score, and where its teacher is another model.
        """
        return self._states[task].teacher_step

    def snapshots_needed(self) -> set[int]:
        """The steps whose weights a task may yet be taught by or roll back to.

        Those of a task that has converged are not among them, unless it may return to its labels: read them after
        `observe`, before all others are deleted.
        """
        return {step for name in self._keeping() if (step := self.teacher_step(name)) is not None}

    def improved(self, step: int) -> list[str]:
        """The tasks that need a snapshot of `step`: it is their best one, and they may yet converge."""
        return [name for name in self._keeping() if self.teacher_step(name) == step]

    def _keeping(self) -> list[str]:
        return [
            name
            for name, state in self._states.items()
            if self._action(name).needs_snapshot and (state.seeks_teacher or self._may_return(name))
        ]

    def _may_return(self, name: str) -> bool:
        outside = self.tasks[name].distilled_from_start
        return self._states[name].has_left_labels and self._return_below(name) is not None and not outside

    def _action(self, name: str) -> Action:
        return ACTIONS[self.tasks[name].convergence.on_convergence]

    def _return_below(self, name: str) -> float | None:
        own = self.tasks[name].convergence.return_below
        return self._action(name).return_below if own is None else own

    def _queue(self) -> list[str]:
        """The tasks that join one after the other."""
        return [name for name in self.order or [] if not self.tasks[name].distilled_from_start]

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
                    "distilled_from_start": spec.distilled_from_start,
                    **asdict(self._states[name]),
                    "counted_best": self._counted_best[name],
                    "constant": self._constant[name],
                    "joined": list(self._joined[name]),
                    "criterion": {"name": spec.convergence.criterion, "state": self._criteria[name].state_dict()},
                }
                for name, spec in self.tasks.items()
            },
            "events": [asdict(event) for event in self.events],
            "final": copy.deepcopy(self._final),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned.

        Changed settings apply from then on, and a task that has converged keeps its phase. Weights that were not kept
        stay gone: with another action, or with a `return_below` that is new, a task may ask for a missing snapshot.

        Raises:
            ValueError: The state is of other tasks, of another monitored metric, of another criterion, of tasks that
                joined in another order, or its keys are not exactly those of `state_dict`. Nothing has changed.
        """
        other_version = "was it saved by another version?"
        check_keys(state, self.state_dict(), "The state of a schedule", other_version)
        check_keys(
            state["tasks"], self.tasks, "The tasks of a saved schedule", "resume with the tasks that it was saved with."
        )
        names = [item.name for item in fields(_TaskState)]
        own = ["counted_best", "constant", "joined"]
        keys = ["metric", "distilled_from_start", *names, *own, "criterion"]
        states = {}
        criteria = {}
        kept: dict[str, dict[str, Any]] = {key: {} for key in own}
        for name, spec in self.tasks.items():
            saved = copy.deepcopy(state["tasks"][name])
            check_keys(saved, keys, f"The saved state of task {name}", other_version)
            if saved["metric"] != spec.metric:
                raise ValueError(
                    f"Task {name} must be resumed with the metric that it was monitored by, {saved['metric']}, "
                    f"not {spec.metric}: put {saved['metric']} first in its metrics."
                )
            if saved["distilled_from_start"] != spec.distilled_from_start:
                raise ValueError(
                    f"Task {name} must be resumed as it began, {_began(saved['distilled_from_start'])}, not "
                    f"{_began(spec.distilled_from_start)}: give the `distillation.teachers` of the first run."
                )
            states[name] = _TaskState(**{key: saved[key] for key in names})
            criterion = spec.convergence.criterion
            check_keys(saved["criterion"], ["name", "state"], f"The saved criterion of task {name}", other_version)
            if saved["criterion"]["name"] != criterion:
                raise ValueError(
                    f"Task {name} must be resumed with the criterion that it began with, "
                    f"{saved['criterion']['name']}, not {criterion}: its counters and references are of that one."
                )
            criteria[name] = _new_criterion(spec)
            criteria[name].load_state_dict(saved["criterion"]["state"])
            for key in own:
                kept[key][name] = saved[key]
        self._check_order(states)
        for event in state["events"]:
            check_keys(event, [item.name for item in fields(Event)], "A saved event", other_version)
        self.events = [Event(**event) for event in state["events"]]
        self._states, self._criteria = states, criteria
        self._counted_best, self._constant, self._joined = kept["counted_best"], kept["constant"], kept["joined"]
        self._final = copy.deepcopy(state["final"])

    def _check_order(self, states: Mapping[str, _TaskState]) -> None:
        """Requires that those that wait are the last of the order, and not all of it."""
        waiting = [name for name, state in states.items() if state.phase == "waiting"]
        joined = [name for name in states if name not in waiting] or ["none"]
        queue = self._queue()
        if waiting and (len(waiting) == len(queue) or set(waiting) != set(queue[-len(waiting) :])):
            raise ValueError(
                f"The order must be one in which {', '.join(joined)} joined, and {', '.join(waiting)} still wait, "
                f"not {', '.join(self.order or ['none'])}; resume with the order of the saved run."
            )

    def _evaluated_steps(self) -> list[int]:
        # Every task has a score at every evaluation, so any task's history tells.
        return [step for step, _ in next(iter(self._states.values())).history]

    def _scores(self, values: Mapping[str, SupportsFloat | None]) -> dict[str, float | None]:
        check_keys(values, self.tasks, "The values of an evaluation", "evaluate every task each time.")
        return {name: _finite(values[name]) for name in self.tasks}

    def _partial(self, what: str, values: Mapping[str, SupportsFloat | None] | None) -> dict[str, float | None]:
        values = values or {}
        unknown = [str(name) for name in values if name not in self.tasks]
        if unknown:
            raise ValueError(f"The {what} must be of the tasks {', '.join(self.tasks)}, not of {', '.join(unknown)}.")
        return {name: _finite(value) for name, value in values.items()}


def _new_criterion(spec: TaskSpec) -> Criterion:
    return CRITERIA[spec.convergence.criterion](spec.convergence)


def _began(distilled_from_start: bool) -> str:
    return f"with{'' if distilled_from_start else 'out'} a teacher from outside"


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
