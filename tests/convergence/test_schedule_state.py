"""The state of a schedule: out as JSON and in strictly; a resumed run decides as the uninterrupted one."""

import json
from typing import Any

import numpy as np
import pytest
from schedules import SEEDS, TASKS, as_json, feed, in_order, one_task, random_run

from hf_async_mtl.convergence.schedule import ConvergenceSchedule
from hf_async_mtl.convergence.task import TaskSpec


@pytest.mark.parametrize("seed", SEEDS)
def test_resumed_at_every_evaluation_equals_uninterrupted(seed: int) -> None:
    """Something that the future depends on, such as a patience counter, was not in the state."""
    run = random_run(seed)
    whole = ConvergenceSchedule(TASKS, final_evaluations=2)
    saved = [as_json(whole.state_dict())]
    seen: list[Any] = []
    for step, values in run:
        events = whole.observe(step, values)
        seen.append(
            (events, whole.finished, whole.phases, whole.snapshots_needed(), whole.improved(step), whole.report())
        )
        saved.append(as_json(whole.state_dict()))
    for start, state in enumerate(saved):
        resumed = ConvergenceSchedule(TASKS, final_evaluations=2)
        resumed.load_state_dict(state)
        assert resumed.state_dict() == state
        for (step, values), expected in zip(run[start:], seen[start:], strict=True):
            events = resumed.observe(step, values)
            assert expected == (
                events, resumed.finished, resumed.phases, resumed.snapshots_needed(), resumed.improved(step),
                resumed.report(),
            )  # fmt: skip
        assert resumed.events == whole.events
    assert len(whole.events) >= 2


def test_the_end_of_a_run_is_saved_with_it() -> None:
    """A finished run, loaded again, reported no final scores."""
    schedule, loaded = one_task(), one_task()
    feed(schedule, 0.5)
    schedule.finish(100)
    loaded.load_state_dict(as_json(schedule.state_dict()))
    assert loaded.report() == schedule.report()
    assert "final" in loaded.report()


def test_a_saved_state_is_a_copy() -> None:
    """The saved state shared its history with the schedule, so that a later evaluation changed it."""
    schedule = one_task()
    feed(schedule, 0.5)
    schedule.finish(100)
    state, report = schedule.state_dict(), schedule.report()
    texts = json.dumps(state), json.dumps(report)
    resumed = one_task()
    resumed.load_state_dict(state)
    report["final"]["tasks"].clear()
    assert schedule.report() == json.loads(texts[1])
    schedule.state_dict()["tasks"]["match"]["history"][0][0] = 9
    assert schedule.step == 100
    report = schedule.report()
    feed(schedule, 0.6)
    feed(resumed, 0.7)
    assert texts == (json.dumps(state), json.dumps(report))


def test_the_report_and_the_state_are_json() -> None:
    """`np.float32` and NaN came through to the file, where json raises or writes what is not JSON."""
    schedule = ConvergenceSchedule(TASKS, final_evaluations=1)
    for step, values in random_run(seed=0):
        schedule.observe(step, {name: np.float32(value) for name, value in values.items()})
        assert as_json(schedule.report()) == schedule.report()
        assert as_json(schedule.state_dict()) == schedule.state_dict()
    schedule.finish(schedule.step, dict.fromkeys(TASKS, np.float32("nan")))
    assert as_json(schedule.report()) == schedule.report()
    assert list(schedule.report()) == ["version", "step", "average", "tasks", "events", "final"]
    assert list(schedule.report()["events"][0]) == ["step", "task", "event", "teacher_step"]


def test_numpy_steps_do_not_reach_the_file() -> None:
    """A step read from an array made the state unwritable."""
    schedule = one_task(patience=1)
    steps: Any = np.arange(100, 300, 100)
    for step in steps:
        schedule.observe(step, {"match": 0.5})
    assert schedule.events
    as_json(schedule.state_dict())


def drop(state: dict[str, Any], *path: str) -> None:
    *parents, key = path
    for parent in parents:
        state = state[parent]
    del state[key]


@pytest.mark.parametrize(
    "path",
    [
        ("events",),
        ("tasks", "match"),
        ("tasks", "match", "phase"),
        ("tasks", "match", "converged_step"),
        ("tasks", "match", "criterion"),
        ("tasks", "match", "skipped"),
        ("tasks", "match", "distilled_from_start"),
        ("tasks", "category", "criterion", "state", "evaluations_without_improvement"),
    ],
)
def test_loading_half_a_state_names_the_missing_key_and_changes_nothing(path: tuple[str, ...]) -> None:
    """A half-written state was loaded with defaults, or half of it was loaded before the error."""
    source = ConvergenceSchedule(TASKS)
    feed(source, 0.5, 0.4, 0.3)
    state = source.state_dict()
    drop(state, *path)
    schedule = ConvergenceSchedule(TASKS)
    feed(schedule, 0.9)
    before = schedule.state_dict()
    with pytest.raises(ValueError, match=f"missing {path[-1]}"):
        schedule.load_state_dict(state)
    assert schedule.state_dict() == before


def test_loading_refuses_what_it_does_not_know() -> None:
    """The state of a newer version lost what this one does not know."""
    schedule = ConvergenceSchedule(TASKS)
    feed(schedule, 0.5, 0.4, 0.3)
    for path in [
        (),
        ("tasks", "match"),
        ("tasks", "match", "criterion"),
        ("tasks", "match", "criterion", "state"),
        ("events", 0),
    ]:
        state: Any = schedule.state_dict()
        place = state
        for key in path:
            place = place[key]
        place["novelty"] = 1
        with pytest.raises(ValueError, match="unexpected novelty"):
            ConvergenceSchedule(TASKS).load_state_dict(state)


def test_loading_the_state_of_other_tasks_names_them() -> None:
    """A run was resumed with other tasks, and its new task took over somebody's phase or none."""
    state = ConvergenceSchedule(TASKS).state_dict()
    others = {**TASKS, "rte": TASKS["match"]}
    del others["tags"]
    with pytest.raises(ValueError, match=r"missing rte, unexpected tags.*resume with the tasks"):
        ConvergenceSchedule(others).load_state_dict(state)


def test_loading_refuses_another_monitored_metric() -> None:
    """After a change of the metrics' order, the F1 of now was compared with the accuracy of before."""
    state = ConvergenceSchedule(TASKS).state_dict()
    changed = {**TASKS, "match": TaskSpec("classification", "accuracy")}
    with pytest.raises(ValueError, match=r"Task match .* monitored by, f1, not accuracy: name f1 first"):
        ConvergenceSchedule(changed).load_state_dict(state)


@pytest.mark.parametrize("order", [None, ["b", "c", "a"], ["c", "b", "a"]])
def test_resuming_refuses_an_order_that_the_joined_tasks_do_not_fit(order: list[str] | None) -> None:
    """A task that had joined was to join again, or one waited that nobody waits for."""
    source = in_order(["c", "a", "b"])
    feed(source, 0.5, 0.5)
    tasks = source.tasks
    with pytest.raises(ValueError, match=r"order must be one in which a, c joined, and b still wait.*resume with"):
        ConvergenceSchedule(tasks, order=order).load_state_dict(source.state_dict())
    ConvergenceSchedule(tasks, order=["a", "c", "b"]).load_state_dict(source.state_dict())
    feed(source, 0.5, 0.5)
    ConvergenceSchedule(tasks, order=order).load_state_dict(source.state_dict())


def test_resuming_refuses_a_state_in_which_all_wait() -> None:
    """Nobody learned, and nobody could converge for the next one to join."""
    schedule = in_order(["b", "a"])
    state = schedule.state_dict()
    state["tasks"]["b"]["phase"] = "waiting"
    with pytest.raises(ValueError, match="The order must be one in which none joined, and a, b still wait, not b, a;"):
        schedule.load_state_dict(state)


def test_a_task_is_resumed_as_it_began() -> None:
    """Resumed without its teacher from outside, a task was to distill for ever from one that it never had."""
    specs = [TaskSpec("classification", "f1", distilled_from_start=outside) for outside in (True, False)]
    for saved, resumed in (specs, specs[::-1]):
        state = ConvergenceSchedule({"match": saved}).state_dict()
        with pytest.raises(ValueError, match=r"must be resumed as it began, with(out)? an external teacher, not"):
            ConvergenceSchedule({"match": resumed}).load_state_dict(state)


def test_another_criterion_is_refused_on_resuming() -> None:
    """Bug: counters of one criterion are read by another whose keys are the same, and its references are missing."""
    state = one_task(patience=2).state_dict()
    with pytest.raises(ValueError, match="must be resumed with the criterion that it began with, plateau, not decline"):
        one_task(patience=2, criterion="decline").load_state_dict(state)


def test_a_stopped_task_stays_out_of_the_loss_under_changed_settings() -> None:
    """Resumed with `distill`, a task that had been stopped was in the loss again, with no teacher."""
    stopped, resumed = one_task(patience=1, on_convergence="stop"), one_task(patience=1)
    feed(stopped, 0.5, 0.4)
    resumed.load_state_dict(stopped.state_dict())
    assert not resumed.in_loss["match"]
