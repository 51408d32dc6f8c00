"""Tasks that return: to earlier weights, to their labels, or with a new teacher."""

import math

import pytest
from schedules import config_of, feed, in_order, one_task

from hf_async_mtl.convergence.actions import ACTIONS
from hf_async_mtl.convergence.schedule import ConvergenceSchedule
from hf_async_mtl.convergence.task import Event, TaskSpec


def rolling(**patiences: int) -> ConvergenceSchedule:
    """Tasks whose names begin with r roll back, the others distill."""
    return ConvergenceSchedule(
        {
            name: TaskSpec(
                "classification",
                "f1",
                config_of(patience=patience, on_convergence="rollback" if name.startswith("r") else "distill"),
            )
            for name, patience in patiences.items()
        }
    )


def test_after_a_rollback_the_others_have_full_patience() -> None:
    """A task converged at once with the patience that it had used up on weights that are gone."""
    schedule = rolling(r=2, other=3)
    assert feed(schedule, 0.9, 0.5, 0.5) == [
        Event(step=300, task="r", teacher_step=100),
        Event(step=300, task="r", event="rolled_back", teacher_step=100),
    ]
    assert schedule.phases == {"r": "stopped", "other": "learning"}
    assert feed(schedule, 0.5, 0.5) == []
    assert feed(schedule, 0.5) == [Event(step=600, task="other", teacher_step=100)]


def test_weights_return_to_one_place_the_earliest() -> None:
    """Two tasks rolled back at one evaluation: the second threw away what the first had returned to."""
    schedule = rolling(r1=1, r2=2, other=1, waits=9)
    schedule.observe(100, {"r1": 0.5, "r2": 0.9, "other": 0.5, "waits": 0.5})
    schedule.observe(200, {"r1": 0.6, "r2": 0.5, "other": 0.6, "waits": 0.5})
    events = schedule.observe(300, {"r1": 0.5, "r2": 0.5, "other": 0.5, "waits": 0.5})
    assert events == [
        Event(step=300, task="r2", teacher_step=100),
        Event(step=300, task="r2", event="rolled_back", teacher_step=100),
        Event(step=300, task="other", teacher_step=200),
    ]
    assert schedule.phases == {"r1": "learning", "r2": "stopped", "other": "distilling", "waits": "learning"}
    # What r1 had reached at 200 is gone with the weights of that step.
    assert schedule.snapshots_needed() == {100}
    assert schedule.teacher_step("r1") == 100
    assert feed(schedule, 0.4)[-1] == Event(step=400, task="r1", event="rolled_back", teacher_step=100)


def test_a_tie_of_rollbacks_goes_to_the_first_task() -> None:
    """Which of two tasks left was a matter of the order of a dict of scores."""
    schedule = rolling(r2=1, r1=1)
    schedule.observe(100, {"r1": 0.5, "r2": 0.5})
    assert [event.task for event in schedule.observe(200, {"r1": 0.5, "r2": 0.5})] == ["r2", "r2"]
    assert schedule.phases == {"r2": "stopped", "r1": "learning"}


def test_no_rollback_to_the_present_weights() -> None:
    """Weights were read back from a snapshot that is never written, and the others' patience was renewed for it."""
    schedule = ConvergenceSchedule(
        {
            "r": TaskSpec("classification", "f1", config_of(patience=1, min_delta=0.1, on_convergence="rollback")),
            "other": TaskSpec("classification", "f1", config_of(patience=2, min_delta=0.1)),
        }
    )
    assert feed(schedule, 0.5, 0.55) == [Event(step=200, task="r", teacher_step=200)]
    assert feed(schedule, 0.55) == [Event(step=300, task="other", teacher_step=200)]


@pytest.mark.parametrize("action", [name for name, action in ACTIONS.items() if action.phase != "learning"])
def test_a_returned_task_can_converge_again(action: str) -> None:
    """It converged at once for want of patience, or never, or to a teacher whose weights had been deleted."""
    schedule = one_task(patience=2, on_convergence=action, return_below=0.5, final_evaluations=0)
    feed(schedule, 0.8, 0.7, 0.7)
    needed = {100} if ACTIONS[action].needs_snapshot else set()
    assert schedule.finished
    assert schedule.snapshots_needed() == needed
    assert feed(schedule, 0.4) == []  # Exactly half of it.
    assert feed(schedule, 0.3) == [Event(step=500, task="match", event="returned")]
    task = schedule.report()["tasks"]["match"]
    assert (task["phase"], task["converged_step"], task["teacher_step"], task["teacher_value"]) == (
        "learning", None, 100, 0.8,
    )  # fmt: skip
    assert not schedule.finished
    assert schedule.snapshots_needed() == needed
    assert feed(schedule, 0.7) == []
    assert feed(schedule, 0.7)[0] == Event(step=700, task="match", teacher_step=100)
    assert schedule.finished
    assert feed(schedule, 0.1) == [Event(step=800, task="match", event="returned")]
    assert feed(schedule, 0.9) == []
    assert feed(schedule, 0.5, 0.5)[0] == Event(step=1100, task="match", teacher_step=900)


@pytest.mark.parametrize("scores", [[-0.1, -0.2, -0.9], [0.0, -0.1, -0.9], [0.5, 0.4, math.nan]])
def test_no_return_without_a_share(scores: list[float]) -> None:
    """A share of a best score of 0 or less, or of none, sent a task back whatever its score."""
    schedule = one_task(patience=1, return_below=0.9)
    assert [event.event for event in feed(schedule, *scores)] == ["converged"]


def test_by_default_no_task_returns_but_one_that_goes_again() -> None:
    """A distilled task that fell for one evaluation lost its recorded teacher without having been asked."""
    for action in ACTIONS:
        schedule = one_task(patience=1, on_convergence=action)
        kinds = [event.event for event in feed(schedule, 0.9, 0.8995, 0.8955, 0.895, 0.0)]
        assert ("returned" in kinds) == (action == "stop_and_go"), action
    schedule = one_task(patience=1, on_convergence="stop_and_go")
    feed(schedule, 0.9, 0.8, 0.8955)
    assert schedule.phases == {"match": "stopped"}
    feed(schedule, 0.8954)
    assert schedule.phases == {"match": "learning"}


def test_in_loss() -> None:
    """A stopped task was trained on, a waiting one from the start, or one that is to go now and then never."""
    tasks = {name: TaskSpec("classification", "f1", config_of(patience=1, on_convergence=name)) for name in ACTIONS}
    schedule = ConvergenceSchedule({**tasks, "outside": TaskSpec("classification", "f1", distilled_from_start=True)})
    assert all(all(schedule.in_loss(step).values()) for step in range(8))
    for step in range(1, 6):  # One rollback an evaluation.
        feed(schedule, 0.5 - step / 10**4)
    counted = {name: [schedule.in_loss(step)[name] for step in range(8)] for name in schedule.tasks}
    fourth = [True, False, False, False, True, False, False, False]
    assert counted == {
        "distill": [True] * 8,
        "stop": [False] * 8,
        "continue": [True] * 8,
        "rollback": [False] * 8,
        "stop_and_go": fourth,
        "outside": [True] * 8,
    }
    assert in_order(["b", "a"]).in_loss(0) == {"a": False, "b": True}


def test_a_teacher_is_renewed_by_more_than_min_delta() -> None:
    """A student that had outgrown its teacher was held back by it, or its teacher was recorded at every wiggle."""
    schedule = one_task(patience=1, min_delta=0.25, renew_teacher=True)
    feed(schedule, 0.25, 0.25)
    assert feed(schedule, 0.5) == []
    assert feed(schedule, 0.625) == [Event(step=400, task="match", event="teacher_renewed", teacher_step=400)]
    task = schedule.report()["tasks"]["match"]
    assert (task["teacher_value"], task["teacher_step"], task["converged_step"]) == (0.625, 400, 200)
    assert feed(schedule, 0.75, math.nan) == []
    assert schedule.teacher_step("match") == 400
    plain = one_task(patience=1)
    assert [event.event for event in feed(plain, 0.25, 0.25, 0.9)] == ["converged"]


def test_after_a_rollback_nobody_returns_to_the_branch_that_was_left() -> None:
    """Bug: a task's best on the abandoned branch stays its teacher, and its own rollback undoes the first one."""
    schedule = rolling(r=3, other=3)
    climbing = [0.70, 0.74, 0.76, 0.772]
    for step, (r, other) in enumerate(zip([0.9, 0.8, 0.8, 0.8], climbing, strict=True), start=1):
        schedule.observe(100 * step, {"r": r, "other": other})
    assert schedule.events[-1].event == "rolled_back"
    assert schedule.teacher_step("other") == 100
    # The same climb again, a little lower.
    for step, other in enumerate([0.737, 0.757, 0.769], start=5):
        assert schedule.observe(100 * step, {"r": 0.8, "other": other}) == []
    assert schedule.teacher_step("other") == 700
