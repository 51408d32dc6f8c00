"""What a schedule reports: events, averages and what the final weights retain."""

import math
from typing import Any

import pytest
from schedules import TASKS, as_json, config_of, feed, one_task

from hf_async_mtl.convergence.schedule import ConvergenceSchedule
from hf_async_mtl.convergence.task import Event, TaskSpec


def test_the_report_shows_the_candidate_before_convergence() -> None:
    """The table had no best score to show while a task learned."""
    schedule = one_task()
    feed(schedule, 0.5, 0.4)
    task = schedule.report()["tasks"]["match"]
    assert (task["teacher_value"], task["teacher_step"], task["converged_step"]) == (0.5, 100, None)


def test_average_is_over_all_tasks_or_none() -> None:
    """The average skipped a task without a score: the checkpoint where a task broke looked best."""
    schedule = ConvergenceSchedule({"a": TASKS["match"], "b": TASKS["match"]})
    assert schedule.report()["average"] is None
    schedule.observe(1, {"a": 0.25, "b": 0.75})
    assert schedule.report()["average"] == 0.5
    schedule.observe(2, {"a": 0.9, "b": math.nan})
    assert schedule.report()["average"] is None


def test_events_come_in_the_order_of_the_tasks() -> None:
    """The order of the metrics dict decided which teacher is recorded first: ranks and resumed runs differed."""
    names = ["zebra", "apple", "mango"]
    schedule = ConvergenceSchedule({name: TaskSpec("regression", "pearson", config_of(patience=1)) for name in names})
    schedule.observe(1, dict.fromkeys(sorted(names), 0.5))
    events = schedule.observe(2, dict.fromkeys(sorted(names), 0.5))
    assert [event.task for event in events] == names


def test_final_tells_what_was_kept_of_each_best() -> None:
    """Retention was taken against the teacher and not against the best of the run, or divided by 0."""
    schedule = ConvergenceSchedule(dict.fromkeys(["a", "b", "c"], TASKS["match"]))
    schedule.observe(100, {"a": 0.5, "b": -0.1, "c": 0.2})
    schedule.observe(200, {"a": 0.8, "b": 0.0, "c": math.nan})
    assert "final" not in schedule.report()
    schedule.finish(100)
    assert schedule.report()["final"] == {
        "step": 100,
        "average": pytest.approx(0.2),
        "tasks": {
            "a": {"value": 0.5, "retention": 0.625},
            "b": {"value": -0.1, "retention": None},
            "c": {"value": 0.2, "retention": 1.0},
        },
    }
    schedule.finish(200)
    assert schedule.report()["final"]["average"] is None
    assert schedule.report()["final"]["tasks"]["c"] == {"value": None, "retention": None}
    schedule.finish(250, {"a": 0.4, "b": 0.3, "c": -0.1})
    assert schedule.report()["final"]["tasks"] == {
        "a": {"value": 0.4, "retention": 0.5},
        "b": {"value": 0.3, "retention": None},
        "c": {"value": -0.1, "retention": None},
    }


def test_final_goes_when_the_run_goes_on() -> None:
    """A run continued after its end reported the final weights of its first part."""
    schedule = one_task()
    feed(schedule, 0.5)
    schedule.finish(100)
    feed(schedule, 0.6)
    assert "final" not in schedule.report()


def test_finish_needs_scores() -> None:
    """The report claimed scores for weights that were never evaluated."""
    schedule = one_task()
    feed(schedule, 0.5)
    with pytest.raises(ValueError, match="step 150 was not; give its values"):
        schedule.finish(150)
    with pytest.raises(ValueError, match="missing match"):
        schedule.finish(150, {})


@pytest.mark.parametrize(
    ("step", "values", "message"),
    [
        (200, {"match": 0.5}, "missing rating, tags, category"),
        (200, {**dict.fromkeys(TASKS, 0.5), "rte": 0.5}, "unexpected rte"),
        (100, dict.fromkeys(TASKS, 0.5), "must come after the last one, at step 100, not at step 100"),
        (50, dict.fromkeys(TASKS, 0.5), "must come after the last one, at step 100, not at step 50"),
    ],
)
def test_half_an_evaluation_is_refused_and_changes_nothing(step: int, values: dict[str, float], message: str) -> None:
    """`evaluate` on one task, or twice at one step, moved patience counters."""
    schedule = ConvergenceSchedule(TASKS)
    feed(schedule, 0.5)
    before = schedule.state_dict()
    with pytest.raises(ValueError, match=message):
        schedule.observe(step, values)
    assert schedule.state_dict() == before


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"standard_errors": {"rte": 0.5}}, "The standard errors must be of the tasks match, not of rte"),
        ({"epoch": None}, "must come with its epoch, for the min_epochs of match; give `epoch`"),
    ],
)
def test_wrong_companions_of_an_evaluation_are_refused_and_change_nothing(given: dict[str, Any], message: str) -> None:
    """The loss of a misspelt task never reached it; without an epoch, a task never converged."""
    schedule = one_task(min_epochs=1)
    before = schedule.state_dict()
    with pytest.raises(ValueError, match=message):
        schedule.observe(100, {"match": 0.5}, **{"epoch": 0.5, **given})
    assert schedule.state_dict() == before


def test_an_evaluation_before_the_first_step_is_one() -> None:
    """Step 0 (`eval_on_start`) was refused, or taken for "no evaluation yet"."""
    schedule = one_task(patience=1, final_evaluations=0)
    schedule.observe(0, {"match": 0.5})
    assert schedule.snapshots_needed() == {0}
    assert schedule.improved(0) == ["match"]
    with pytest.raises(ValueError, match="at step 0"):
        schedule.observe(0, {"match": 0.5})
    assert schedule.observe(1, {"match": 0.5}) == [Event(step=1, task="match", teacher_step=0)]
    assert schedule.finished


def test_a_metric_that_is_better_when_smaller() -> None:
    """A rising loss was an improvement: the task never converged, or its worst weights were its teacher."""
    settings = {"patience": 1, "min_delta": 0.05}
    tasks = {
        "loss": TaskSpec("classification", "log_loss", config_of(**settings), greater_is_better=False),
        "score": TaskSpec("classification", "f1", config_of(**settings)),
    }
    schedule = ConvergenceSchedule(tasks)
    for step, value in enumerate([0.6, 0.4, 0.38, 0.475], start=1):
        schedule.observe(step, {"loss": value, "score": -value})
    kinds = [(event.step, event.task, event.event, event.teacher_step) for event in schedule.events]
    assert kinds == [(3, task, "converged", 3) for task in tasks]
    report = schedule.report()["tasks"]["loss"]
    assert report["history"] == [[1, 0.6], [2, 0.4], [3, 0.38], [4, 0.475]]
    assert (report["best"], report["best_step"], report["teacher_value"], report["last"]) == (0.38, 3, 0.38, 0.475)
    restored = ConvergenceSchedule(tasks)
    restored.load_state_dict(as_json(schedule.state_dict()))
    assert restored.report() == schedule.report()
    schedule.finish(4)
    final = schedule.report()["final"]
    assert final["tasks"]["loss"] == {"value": 0.475, "retention": pytest.approx(0.8)}
    assert final["tasks"]["score"] == {"value": -0.475, "retention": None}
    assert final["average"] == -0.475
    schedule.finish(6, {"loss": 0.0, "score": 0.0})
    assert schedule.report()["final"]["tasks"]["loss"] == {"value": 0.0, "retention": None}
