"""The state machine of one task, without the other tasks."""

import json
from functools import partial
from typing import Any

import pytest

from hf_async_mtl.convergence import ConvergenceConfig, Event, TaskSpec, TaskTracker
from hf_async_mtl.convergence.evaluation import Evaluation

config_of = partial(ConvergenceConfig, criterion="plateau", min_epochs=0)


def tracker_of(**settings: Any) -> TaskTracker:
    return TaskTracker("match", TaskSpec("classification", "f1", config_of(**settings)))


def feed(tracker: TaskTracker, *scores: float | None) -> list[bool]:
    """Observe scores at the next steps 100 apart."""
    first = len(tracker.state.history) + 1
    return [tracker.observe(Evaluation(step=100 * step, score=score)) for step, score in enumerate(scores, first)]


def test_the_phase_changes_only_when_it_is_told_to() -> None:
    """Bug: a task leaves its labels although the rollback of another task comes first."""
    tracker = tracker_of(patience=1)
    assert feed(tracker, 0.5, 0.4, 0.3) == [False, True, True]
    assert (tracker.is_supervised, tracker.is_converged, tracker.keeps_snapshot) == (True, False, True)
    assert tracker.converge(300) == [Event(step=300, task="match", teacher_step=100)]
    assert (tracker.is_supervised, tracker.is_converged, tracker.keeps_snapshot) == (False, True, False)
    assert feed(tracker, 0.2) == [False]


def test_with_continue_a_task_neither_leaves_its_labels_nor_converges_again() -> None:
    """Bug: a task that has converged is due at every evaluation, or counts as one that distills."""
    tracker = tracker_of(patience=1, on_convergence="continue")
    feed(tracker, 0.5, 0.4)
    tracker.converge(200)
    assert feed(tracker, 0.3) == [False]
    assert (tracker.is_supervised, tracker.is_converged, tracker.state.phase) == (False, False, "learning")
    assert tracker.is_in_loss


def test_a_waiting_task_counts_its_steps_from_when_it_joins() -> None:
    """Bug: `min_steps` is over before the task has learned for one step."""
    config = config_of(patience=1, min_steps=200)
    tracker = TaskTracker("match", TaskSpec("classification", "f1", config), waits=True)
    assert feed(tracker, 0.5, 0.4, 0.3) == [False] * 3
    assert (tracker.state.teacher_step, tracker.is_in_loss) == (None, False)
    assert tracker.join(300, 0.0) == [Event(step=300, task="match", event="joined")]
    assert feed(tracker, 0.3, 0.2) == [False, True]


def test_the_state_of_a_task_is_strict_and_complete() -> None:
    """Bug: a half-written state is loaded with defaults, or the tracker goes on otherwise after a resume."""
    tracker, other = tracker_of(patience=2), tracker_of(patience=2)
    feed(tracker, 0.5, 0.4)
    state = json.loads(json.dumps(tracker.state_dict(), allow_nan=False))
    for key in state:
        with pytest.raises(ValueError, match=f"saved state of task match must have .*missing {key}"):
            other.load_state_dict({name: value for name, value in state.items() if name != key})
    assert other.state_dict() == tracker_of(patience=2).state_dict()
    with pytest.raises(ValueError, match="unexpected novelty"):
        other.load_state_dict({**state, "novelty": 1})
    other.load_state_dict(state)
    assert feed(other, 0.3) == feed(tracker, 0.3) == [True]
    assert other.state_dict() == tracker.state_dict()
