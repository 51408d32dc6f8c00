"""The phases of tasks: a state machine that must be the same after every resume."""

import json
import math
import random
from collections.abc import Mapping
from typing import Any

import numpy as np
import pytest

from hf_async_mtl.convergence.criteria import CRITERIA, ConvergenceConfig, Criterion
from hf_async_mtl.convergence.schedule import ConvergenceSchedule, Event, TaskSpec

TASKS = {
    "match": TaskSpec("classification", "f1", ConvergenceConfig(patience=2)),
    "rating": TaskSpec("regression", "pearson", ConvergenceConfig(patience=1, min_delta=0.05, min_steps=500)),
    "tags": TaskSpec("token_classification", "seqeval_f1", ConvergenceConfig(patience=2, on_convergence="stop")),
    "category": TaskSpec("classification", "accuracy", ConvergenceConfig(patience=2, on_convergence="continue")),
}
SEEDS = range(5)


def one_task(final_evaluations: int | None = None, **settings: Any) -> ConvergenceSchedule:
    spec = TaskSpec("classification", "f1", ConvergenceConfig(**settings))
    return ConvergenceSchedule({"match": spec}, final_evaluations)


def feed(schedule: ConvergenceSchedule, *scores: float | None) -> list[Event]:
    """Observes scores that all tasks share, at the next steps 100 apart."""
    events = []
    for score in scores:
        events += schedule.observe(schedule.step + 100, dict.fromkeys(schedule.tasks, score))
    return events


def random_run(seed: int, evaluations: int = 15) -> list[tuple[int, dict[str, float]]]:
    rng = random.Random(seed)
    score = [math.nan, 0.1, 0.3, 0.5, 0.52, 0.7, -0.2]
    return [(100 * number, {name: rng.choice(score) for name in TASKS}) for number in range(1, evaluations + 1)]


def as_json(value: Any) -> Any:
    """Through a file and back; NaN and numpy's numbers do not pass."""
    return json.loads(json.dumps(value, allow_nan=False))


def test_life_of_a_task_that_distills() -> None:
    """The teacher moved on after the switch, although its logits are recorded, or the best of the run stood still."""
    schedule = one_task(patience=2)
    assert feed(schedule, 0.7, 0.8, 0.75, 0.8) == [Event(step=400, task="match", event="converged", teacher_step=200)]
    feed(schedule, 0.9, 0.85)
    task = schedule.report()["tasks"]["match"]
    assert task == {
        "type": "classification",
        "metric": "f1",
        "phase": "distilling",
        "teacher_value": 0.8,
        "teacher_step": 200,
        "converged_step": 400,
        "best": 0.9,
        "best_step": 500,
        "last": 0.85,
        "history": [[100, 0.7], [200, 0.8], [300, 0.75], [400, 0.8], [500, 0.9], [600, 0.85]],
    }


@pytest.mark.parametrize(
    ("action", "phase"), [("distill", "distilling"), ("stop", "stopped"), ("continue", "learning")]
)
def test_phase_after_convergence(action: str, phase: str) -> None:
    """A plain run (`continue`) lost its convergence step, or converged again at each later evaluation."""
    schedule = one_task(patience=1, on_convergence=action)
    events = feed(schedule, 0.8, 0.7, 0.9, 0.6, 0.5)
    assert events == schedule.events == [Event(step=200, task="match", teacher_step=100)]
    assert schedule.phases == {"match": phase}
    task = schedule.report()["tasks"]["match"]
    assert (task["converged_step"], task["teacher_step"], task["best_step"]) == (200, 100, 300)


def test_the_report_shows_the_candidate_before_convergence() -> None:
    """The table had no best score to show while a task learned."""
    schedule = one_task()
    feed(schedule, 0.5, 0.4)
    task = schedule.report()["tasks"]["match"]
    assert (task["teacher_value"], task["teacher_step"], task["converged_step"]) == (0.5, 100, None)


def test_a_tie_keeps_the_earlier_teacher() -> None:
    """Each equal score wrote another snapshot, of weights that are no better."""
    schedule = one_task()
    feed(schedule, 0.5, 0.5)
    assert schedule.improved(100) == ["match"]
    assert schedule.improved(200) == []


def test_the_best_score_is_the_teacher_even_below_min_delta() -> None:
    """The criterion's reference was taken for the teacher, and so a better snapshot was thrown away.

    Such a score can come with the very evaluation that ends the patience: its teacher is the model of that step.
    """
    schedule = one_task(patience=2, min_delta=0.1)
    assert feed(schedule, 0.5, 0.55, 0.58) == [Event(step=300, task="match", teacher_step=300)]


def test_a_task_without_any_score_cannot_converge() -> None:
    """A task whose metric was NaN from the start converged to a teacher that does not exist."""
    schedule = one_task(patience=1, final_evaluations=0)
    assert feed(schedule, math.nan, None, math.inf, -math.inf) == []
    assert schedule.phases == {"match": "learning"}
    assert schedule.snapshots_needed() == set()
    assert schedule.report()["tasks"]["match"]["history"] == [[100, None], [200, None], [300, None], [400, None]]
    assert feed(schedule, 0.1, math.nan) == [Event(step=600, task="match", teacher_step=500)]


def test_no_teacher_no_convergence_whatever_the_criterion_says(monkeypatch: pytest.MonkeyPatch) -> None:
    """A new criterion that converges by the step alone switched a task that never had a score."""

    class AtOnce(Criterion):
        def update(self, step: int, value: float | None) -> bool:
            return True

        def state_dict(self) -> dict[str, Any]:
            return {}

        def load_state_dict(self, state: Mapping[str, Any]) -> None:
            pass

    monkeypatch.setitem(CRITERIA, "at_once", AtOnce)
    schedule = one_task(criterion="at_once")
    assert feed(schedule, math.nan) == []
    assert feed(schedule, 0.2) == [Event(step=200, task="match", teacher_step=200)]


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("changed", TASKS)
def test_the_scores_of_one_task_never_move_another(seed: int, changed: str) -> None:
    """A counter, a best score or a phase was shared between tasks."""
    rng = random.Random(seed + 1000)
    schedule, other = ConvergenceSchedule(TASKS), ConvergenceSchedule(TASKS)
    for step, values in random_run(seed):
        schedule.observe(step, values)
        other.observe(step, {**values, changed: rng.random()})
        for name in TASKS:
            if name != changed:
                assert schedule.state_dict()["tasks"][name] == other.state_dict()["tasks"][name]
    assert schedule.state_dict()["tasks"][changed] != other.state_dict()["tasks"][changed]


@pytest.mark.parametrize("seed", SEEDS)
def test_nan_is_never_an_improvement(seed: int) -> None:
    """NaN compares false with everything: written the wrong way round, a comparison lets it become the best."""
    schedule = ConvergenceSchedule(TASKS)
    for step, values in random_run(seed, evaluations=30):
        before = schedule.report()["tasks"]
        schedule.observe(step, values)
        for name, task in schedule.report()["tasks"].items():
            if math.isnan(values[name]):
                for key in ("best", "best_step", "teacher_value", "teacher_step"):
                    assert task[key] == before[name][key]
            numbers = [score for _, score in task["history"] if score is not None]
            assert task["best"] == max(numbers, default=None)


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


def test_a_waiting_task_is_scored_and_nothing_else() -> None:
    """A task that has not joined used up its patience, and converged before it had learned anything."""
    schedule = one_task(patience=1)
    state = schedule.state_dict()
    state["tasks"]["match"]["phase"] = "waiting"
    schedule.load_state_dict(state)
    assert feed(schedule, 0.5, 0.4, 0.3) == []
    assert schedule.phases == {"match": "waiting"}
    assert schedule.snapshots_needed() == set()
    task = schedule.report()["tasks"]["match"]
    assert (task["best"], task["last"], task["teacher_step"]) == (0.5, 0.3, None)


def test_a_change_to_distillation_leaves_converged_tasks_alone() -> None:
    """Resumed with `distill` in place of `continue`, a converged task asked for a snapshot that nobody kept."""
    plain, resumed = one_task(patience=1, on_convergence="continue"), one_task(patience=1)
    feed(plain, 0.5, 0.4)
    resumed.load_state_dict(plain.state_dict())
    assert resumed.snapshots_needed() == set()
    assert feed(resumed, 0.9, 0.4) == []


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
    schedule = ConvergenceSchedule(
        {name: TaskSpec("regression", "pearson", ConvergenceConfig(patience=1)) for name in names}
    )
    schedule.observe(1, dict.fromkeys(sorted(names), 0.5))
    events = schedule.observe(2, dict.fromkeys(sorted(names), 0.5))
    assert [event.task for event in events] == names


def test_snapshots_needed_are_those_that_may_become_a_teacher() -> None:
    """A snapshot was deleted that a task still needed, or kept for ever for a task that had none to expect."""
    schedule = ConvergenceSchedule(TASKS)
    assert schedule.snapshots_needed() == set()
    schedule.observe(100, {"match": 0.5, "rating": 0.5, "tags": 0.5, "category": 0.5})
    assert schedule.snapshots_needed() == {100}
    assert schedule.improved(100) == ["match", "rating"]  # The others are never distilled.
    schedule.observe(200, {"match": 0.4, "rating": 0.6, "tags": 0.6, "category": 0.6})
    assert schedule.snapshots_needed() == {100, 200}
    assert schedule.improved(200) == ["rating"]
    schedule.observe(300, {"match": 0.4, "rating": 0.7, "tags": 0.5, "category": 0.5})
    assert schedule.phases["match"] == "distilling"
    assert schedule.snapshots_needed() == {300}
    schedule.observe(400, {"match": 0.9, "rating": 0.7, "tags": 0.5, "category": 0.5})
    assert schedule.improved(400) == []
    schedule.observe(500, {"match": 0.9, "rating": 0.7, "tags": 0.5, "category": 0.5})
    assert schedule.snapshots_needed() == set()


@pytest.mark.parametrize("final_evaluations", [0, 1, 3])
def test_finished_so_many_evaluations_after_the_last_convergence(final_evaluations: int) -> None:
    """The run stopped at the switch of its last task, or counted from its first."""
    early = TaskSpec("classification", "f1", ConvergenceConfig(patience=1))
    late = TaskSpec("classification", "f1", ConvergenceConfig(patience=3, on_convergence="stop"))
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


def test_finish_needs_scores() -> None:
    """The report claimed scores for weights that were never evaluated."""
    schedule = one_task()
    feed(schedule, 0.5)
    with pytest.raises(ValueError, match="step 150 was not; give its values"):
        schedule.finish(150)
    with pytest.raises(ValueError, match="missing match"):
        schedule.finish(150, {})


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
        ("tasks", "category", "criterion", "evaluations_without_improvement"),
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
    for path in [(), ("tasks", "match"), ("tasks", "match", "criterion"), ("events", 0)]:
        state: Any = schedule.state_dict()
        place = state
        for key in path:
            place = place[key]
        place["novelty"] = 1
        with pytest.raises(ValueError, match="unexpected novelty"):
            ConvergenceSchedule(TASKS).load_state_dict(state)


def test_loading_the_state_of_other_tasks_names_them() -> None:
    """A run was resumed with another bundle, and its new task took over somebody's phase or none."""
    state = ConvergenceSchedule(TASKS).state_dict()
    others = {**TASKS, "rte": TASKS["match"]}
    del others["tags"]
    with pytest.raises(ValueError, match=r"missing rte, unexpected tags.*resume with the tasks"):
        ConvergenceSchedule(others).load_state_dict(state)


def test_loading_refuses_another_monitored_metric() -> None:
    """After a change of the metrics' order, the F1 of now was compared with the accuracy of before."""
    state = ConvergenceSchedule(TASKS).state_dict()
    changed = {**TASKS, "match": TaskSpec("classification", "accuracy")}
    with pytest.raises(ValueError, match=r"Task match .* monitored by, f1, not accuracy: put f1 first"):
        ConvergenceSchedule(changed).load_state_dict(state)


def test_the_constructor_refuses_nonsense() -> None:
    """No tasks at all are "all converged"; a negative number of final evaluations ends a run before its end."""
    with pytest.raises(ValueError, match="at least one task"):
        ConvergenceSchedule({})
    with pytest.raises(ValueError, match="final_evaluations must be at least 0, or None for no end, not -1"):
        one_task(final_evaluations=-1)
