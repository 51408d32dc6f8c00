"""Tasks that join one after the other, and the end of a run."""

import pytest
from schedules import config_of, feed, in_order, one_task

from hf_async_mtl.convergence.schedule import ConvergenceSchedule
from hf_async_mtl.convergence.task import Event, TaskSpec


def test_a_waiting_task_is_scored_and_nothing_else() -> None:
    """A task that has not joined used up its patience, and converged before it had learned anything."""
    schedule = in_order(["first", "later"])
    for step, score in [(100, 0.5), (200, 0.4), (300, 0.3)]:
        assert schedule.observe(step, {"first": step / 1000, "later": score}) == []
    assert schedule.phases == {"first": "learning", "later": "waiting"}
    assert schedule.snapshots_needed() == {300}
    assert schedule.improved(100) == []
    task = schedule.report()["tasks"]["later"]
    assert (task["best"], task["last"], task["teacher_step"]) == (0.5, 0.3, None)
    # Its patience is whole when it joins, and what it scored before is not its reference.
    assert feed(schedule, 0.2) == [
        Event(step=400, task="first", teacher_step=300),
        Event(step=400, task="later", event="joined"),
    ]
    assert feed(schedule, 0.2, 0.2) == [Event(step=600, task="later", teacher_step=500)]


def test_tasks_join_in_their_order() -> None:
    """The order of the tasks was taken for the order of joining, or two joined at once."""
    schedule = in_order(["c", "a", "b"], final_evaluations=0)
    assert schedule.phases == {"a": "waiting", "b": "waiting", "c": "learning"}
    feed(schedule, *[0.5] * 7)
    assert [(event.step, event.task, event.event) for event in schedule.events] == [
        (200, "c", "converged"), (200, "a", "joined"),
        (400, "a", "converged"), (400, "b", "joined"),
        (600, "b", "converged"),
    ]  # fmt: skip
    assert schedule.finished


def test_not_finished_while_a_task_waits() -> None:
    """The run ended when its first task had converged, before the others began."""
    schedule = in_order(["b", "a"], final_evaluations=0, on_convergence="stop")
    finished = []
    for _ in range(4):
        feed(schedule, 0.5)
        finished.append(schedule.finished)
    assert finished == [False, False, False, True]


@pytest.mark.parametrize("order", [[], ["a"], ["a", "b", "b"], ["a", "c"]])
def test_an_order_names_every_task_once(order: list[str]) -> None:
    """A task that the order forgot waited for ever."""
    tasks = dict.fromkeys(["a", "b"], TaskSpec("classification", "f1"))
    with pytest.raises(ValueError, match=f"order must name each of the tasks a, b once, not {', '.join(order)}"):
        ConvergenceSchedule(tasks, order=order)


def test_a_task_that_joins_late_has_its_own_minimum() -> None:
    """Bug: `min_steps` of the run are over when the second task joins, and its first evaluation may end it."""
    config = config_of(patience=1, min_steps=200)
    tasks = {name: TaskSpec("classification", "f1", config) for name in ("a", "b")}
    schedule = ConvergenceSchedule(tasks, order=["a", "b"])
    found = [
        (event.event, event.task, event.step)
        for step in range(100, 700, 100)
        for event in schedule.observe(step, {"a": 1 / step, "b": 1 / step})
    ]
    assert found == [("converged", "a", 200), ("joined", "b", 200), ("converged", "b", 400)]


@pytest.mark.parametrize("final_evaluations", [0, 1, 3])
def test_finished_so_many_evaluations_after_the_last_convergence(final_evaluations: int) -> None:
    """The run stopped at the switch of its last task, or counted from its first."""
    early = TaskSpec("classification", "f1", config_of(patience=1))
    late = TaskSpec("classification", "f1", config_of(patience=3, on_convergence="stop"))
    schedule = ConvergenceSchedule({"late": late, "early": early}, final_evaluations)
    finished = []
    for _ in range(8):
        feed(schedule, 0.5)
        finished.append(schedule.finished)
    assert [event.step for event in schedule.events] == [200, 400]
    assert finished.index(True) + 1 == 4 + final_evaluations
    assert all(finished[finished.index(True) :])


@pytest.mark.parametrize(("final_evaluations", "action"), [(None, "distill"), (0, "continue")])
def test_never_finished(final_evaluations: int | None, action: str) -> None:
    """A run that should use its whole budget ended with the last convergence."""
    schedule = one_task(final_evaluations, patience=1, on_convergence=action)
    feed(schedule, *[0.5] * 10)
    assert schedule.events
    assert not schedule.finished


def test_the_budget_ends_a_run_in_which_no_task_can_converge() -> None:
    """All tasks with teachers from outside "had converged" at step 0, and the run ended before it had begun."""
    schedule = ConvergenceSchedule({"out": TaskSpec("classification", "f1", distilled_from_start=True)}, 0)
    assert not schedule.finished
    feed(schedule, 0.5, 0.5)
    assert not schedule.finished
