"""Rollbacks, and which tasks are in the loss."""

from schedules import config_of, feed, in_order

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


def test_in_loss() -> None:
    """A stopped task was trained on, or a waiting one from the start."""
    tasks = {name: TaskSpec("classification", "f1", config_of(patience=1, on_convergence=name)) for name in ACTIONS}
    schedule = ConvergenceSchedule({**tasks, "outside": TaskSpec("classification", "f1", distilled_from_start=True)})
    assert all(schedule.in_loss.values())
    feed(schedule, 0.5, 0.4)
    assert schedule.in_loss == {"distill": True, "stop": False, "continue": True, "rollback": False, "outside": True}
    assert in_order(["b", "a"]).in_loss == {"a": False, "b": True}


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
