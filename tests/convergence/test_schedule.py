"""The phases of tasks: a state machine that must be the same after every resume."""

import json
import math
import random
from functools import partial
from typing import Any

import numpy as np
import pytest

from hf_async_mtl.convergence.actions import ACTIONS
from hf_async_mtl.convergence.config import ConvergenceConfig
from hf_async_mtl.convergence.criteria import CRITERIA, Criterion
from hf_async_mtl.convergence.schedule import ConvergenceSchedule
from hf_async_mtl.convergence.task import Event, TaskSpec

config_of = partial(ConvergenceConfig, criterion="plateau", watch="either")
TASKS = {
    "match": TaskSpec("classification", "f1", config_of(patience=2)),
    "rating": TaskSpec("regression", "pearson", config_of(patience=1, min_delta=0.05, min_steps=500)),
    "tags": TaskSpec("token_classification", "seqeval_f1", config_of(patience=2, on_convergence="stop")),
    "category": TaskSpec("classification", "accuracy", config_of(patience=2, on_convergence="continue")),
}
SEEDS = range(5)


def one_task(final_evaluations: int | None = None, **settings: Any) -> ConvergenceSchedule:
    spec = TaskSpec("classification", "f1", config_of(**settings))
    return ConvergenceSchedule({"match": spec}, final_evaluations)


def in_order(order: list[str], final_evaluations: int | None = None, **settings: Any) -> ConvergenceSchedule:
    spec = TaskSpec("classification", "f1", config_of(**{"patience": 1, **settings}))
    return ConvergenceSchedule(dict.fromkeys(sorted(order), spec), final_evaluations, order)


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
        state_names = ()

        def update(
            self, step: int, value: float | None, *, loss: float | None = None, standard_error: float | None = None
        ) -> bool:
            return True

        def reset_patience(self) -> None:
            pass

    monkeypatch.setitem(CRITERIA, "plateau", AtOnce)
    schedule = one_task(criterion="plateau")
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
        ("tasks", "match", "counted_best"),
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


def test_the_constructor_refuses_nonsense() -> None:
    """No tasks at all are "all converged"; a negative number of final evaluations ends a run before its end."""
    with pytest.raises(ValueError, match="at least one task"):
        ConvergenceSchedule({})
    with pytest.raises(ValueError, match="final_evaluations must be at least 0, or None for no end, not -1"):
        one_task(final_evaluations=-1)


def test_min_steps_delays_but_earlier_evaluations_count() -> None:
    """The patience began at min_steps, or min_steps was ignored, or was taken as exclusive."""
    for min_steps, step in [(0, 300), (700, 700), (701, 800)]:
        schedule = one_task(patience=2, min_steps=min_steps)
        feed(schedule, 0.9, *[0.5] * 9)
        assert [event.step for event in schedule.events] == [step]


@pytest.mark.parametrize("name", CRITERIA)
def test_min_epochs_delays_every_criterion(name: str) -> None:
    """A new criterion did not know of min_epochs, or the patience began there, or it was taken as exclusive."""
    for min_epochs, step in [(0, 300), (1.25, 500), (1.3, 600)]:
        schedule = one_task(criterion=name, patience=2, min_epochs=min_epochs)
        for number, score in enumerate([0.9] + [0.5] * 9, start=1):
            schedule.observe(100 * number, {"match": score}, epoch=number / 4)
        assert [event.step for event in schedule.events] == [step]


# -- every criterion with every action ---------------------------------------------------------------------------------


def mixed(criterion: str, action: str, order: list[str] | None = None) -> ConvergenceSchedule:
    """Three tasks of one criterion, two of them with one action, which can do all that the action allows."""
    settings: dict[str, Any] = {"criterion": criterion, "patience": 2, "min_delta": 0.02, "z": 0.5}
    if ACTIONS[action].phase != "learning":
        settings["return_below"] = 0.5
    own = config_of(**settings, on_convergence=action, renew_teacher=True, min_epochs=0.2)
    tasks = {
        "a": TaskSpec("classification", "f1", own),
        "b": TaskSpec("classification", "f1", own),
        "c": TaskSpec("classification", "f1", config_of(criterion=criterion, patience=2)),
        "outside": TaskSpec("classification", "f1", distilled_from_start=True),
    }
    return ConvergenceSchedule(tasks, 2, order)


def random_evaluations(seed: int, number: int = 25) -> list[tuple[int, dict[str, Any]]]:
    """Keyword arguments of `observe`, some of them missing, some no numbers."""
    rng = random.Random(seed)

    def some(values: list[float]) -> dict[str, float]:
        return {name: rng.choice(values) for name in ["a", "b", "c"] if rng.random() < 0.8}

    return [
        (
            100 * index,
            {
                # The last of them grows, or no teacher would be outgrown.
                "values": {
                    name: rng.choice([math.nan, 0.3, 0.5, 0.7, 0.8, 0.8 + index / 200])
                    for name in ["a", "b", "c", "outside"]
                },
                "losses": some([math.nan, 0.1, 0.2, 0.3, 0.4]),
                "standard_errors": some([math.nan, 0.0, 0.05, 0.3]),
                "epoch": index / 10,
            },
        )
        for index in range(1, number + 1)
    ]


def seen_of(schedule: ConvergenceSchedule, step: int, events: list[Event]) -> tuple[Any, ...]:
    teachers = {name: schedule.teacher_step(name) for name in schedule.tasks}
    return (
        events, schedule.finished, schedule.phases, schedule.snapshots_needed(), schedule.improved(step), teachers,
        schedule.noise_references, schedule.in_loss(step), schedule.in_loss(step + 1), schedule.report(),
    )  # fmt: skip


@pytest.mark.parametrize("order", [None, ["c", "outside", "b", "a"]])
@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_every_criterion_with_every_action_resumes(criterion: str, action: str, order: list[str] | None) -> None:
    """A new criterion or action kept something outside the state, and a resumed run took other turns."""
    happened = set()
    for seed in SEEDS:
        run = random_evaluations(seed)
        whole = mixed(criterion, action, order)
        saved = [as_json(whole.state_dict())]
        seen = []
        for step, given in run:
            seen.append(seen_of(whole, step, whole.observe(step, **given)))
            saved.append(as_json(whole.state_dict()))
        for start, state in enumerate(saved):
            resumed = mixed(criterion, action, order)
            resumed.load_state_dict(state)
            assert resumed.state_dict() == state
            for (step, given), expected in zip(run[start:], seen[start:], strict=True):
                assert seen_of(resumed, step, resumed.observe(step, **given)) == expected
        happened |= {event.event for event in whole.events if event.task in "ab"}
    expected_events = {"converged"}
    if ACTIONS[action].rolls_back:
        expected_events.add("rolled_back")
    if ACTIONS[action].phase != "learning":
        expected_events.add("returned")
    if ACTIONS[action].phase == "distilling":
        expected_events.add("teacher_renewed")
    if order:
        expected_events.add("joined")
    assert happened == expected_events


@pytest.mark.parametrize("action", ACTIONS)
@pytest.mark.parametrize("criterion", CRITERIA)
def test_what_holds_after_every_evaluation(criterion: str, action: str) -> None:
    """Weights were to return to two places, or to a snapshot that had not been kept; a teacher had no weights."""
    for seed in SEEDS:
        schedule = mixed(criterion, action)
        on_disk: set[int] = set()
        for step, given in random_evaluations(seed):
            events = schedule.observe(step, **given)
            # What the trainer does.
            if schedule.improved(step):
                on_disk.add(step)
            kinds = [event.event for event in events]
            assert kinds.count("rolled_back") <= 1
            for index, event in enumerate(events):
                own = ACTIONS[schedule.tasks[event.task].convergence.on_convergence]
                if event.event in ("converged", "teacher_renewed"):
                    assert schedule.teacher_step(event.task) == event.teacher_step
                    if own.records_teacher and event.teacher_step != step:
                        assert event.teacher_step in on_disk
                if event.event == "rolled_back":
                    assert event.teacher_step in on_disk - {step}
                    assert events[index - 1] == Event(step=step, task=event.task, teacher_step=event.teacher_step)
            assert schedule.snapshots_needed() <= on_disk
            on_disk &= schedule.snapshots_needed()
            assert [list(item) for item in schedule.report()["events"]] == [
                ["step", "task", "event", "teacher_step"] for _ in schedule.events
            ]


@pytest.mark.parametrize("action", [name for name, action in ACTIONS.items() if not action.rolls_back])
@pytest.mark.parametrize("criterion", CRITERIA)
def test_without_rollback_and_order_no_score_moves_another_task(criterion: str, action: str) -> None:
    """A new criterion or action shared something between tasks."""
    rng = random.Random(7)
    schedule, other = mixed(criterion, action), mixed(criterion, action)
    for step, given in random_evaluations(seed=3):
        schedule.observe(step, **given)
        changed = {key: {**given[key], "a": rng.random()} for key in ("values", "losses", "standard_errors")}
        other.observe(step, **{**given, **changed})
        for name in ("b", "c", "outside"):
            assert schedule.state_dict()["tasks"][name] == other.state_dict()["tasks"][name]
    assert schedule.state_dict()["tasks"]["a"] != other.state_dict()["tasks"]["a"]


# -- rollback ----------------------------------------------------------------------------------------------------------


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


# -- back to the labels, and new teachers ------------------------------------------------------------------------------


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


def test_a_stopped_task_stays_out_of_the_loss_under_changed_settings() -> None:
    """Resumed with `distill`, a task that had been stopped was in the loss again, with no teacher."""
    stopped, resumed = one_task(patience=1, on_convergence="stop"), one_task(patience=1)
    feed(stopped, 0.5, 0.4)
    resumed.load_state_dict(stopped.state_dict())
    assert not any(resumed.in_loss(step)["match"] for step in range(8))


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


# -- one after the other -----------------------------------------------------------------------------------------------


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


@pytest.mark.parametrize(("fall_at", "joined"), [(400, {"a": 200, "b": 500}), (500, {"a": 200, "b": 400})])
def test_a_task_that_returns_holds_up_those_that_have_not_joined(fall_at: int, joined: dict[str, int]) -> None:
    """A task joined beside one that was back at its labels, or was sent away again for it."""
    schedule = in_order(["c", "a", "b"], return_below=0.5)
    for step in range(100, 800, 100):
        schedule.observe(step, {"a": 0.5, "b": step / 1000, "c": 0.1 if step == fall_at else 0.5})
    assert {event.task: event.step for event in schedule.events if event.event == "joined"} == joined
    assert "waiting" not in schedule.phases.values()


@pytest.mark.parametrize("order", [[], ["a"], ["a", "b", "b"], ["a", "c"]])
def test_an_order_names_every_task_once(order: list[str]) -> None:
    """A task that the order forgot waited for ever."""
    tasks = dict.fromkeys(["a", "b"], TaskSpec("classification", "f1"))
    with pytest.raises(ValueError, match=f"order must name each of the tasks a, b once, not {', '.join(order)}"):
        ConvergenceSchedule(tasks, order=order)


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


# -- teachers from outside, several teachers, noise --------------------------------------------------------------------


def test_a_task_with_a_teacher_from_outside() -> None:
    """It asked for a snapshot, converged to a teacher of its own, or held the others up."""
    outside = TaskSpec("classification", "f1", config_of(patience=1, return_below=0.9, renew_teacher=True), True)
    schedule = ConvergenceSchedule({"out": outside, "in": TASKS["match"]}, 1, ["out", "in"])
    assert schedule.phases == {"out": "distilling", "in": "learning"}
    assert feed(schedule, 0.5, 0.6, 0.1) == []
    task = schedule.report()["tasks"]["out"]
    assert (task["converged_step"], task["teacher_step"], task["teacher_value"], task["best"]) == (0, None, None, 0.6)
    assert schedule.teacher_step("out") is None
    assert schedule.improved(200) == ["in"]
    assert feed(schedule, 0.1) == [Event(step=400, task="in", teacher_step=200)]
    assert not schedule.finished
    feed(schedule, 0.1)
    assert schedule.finished


def test_the_budget_ends_a_run_in_which_no_task_can_converge() -> None:
    """All tasks with teachers from outside "had converged" at step 0, and the run ended before it had begun."""
    schedule = ConvergenceSchedule({"out": TaskSpec("classification", "f1", distilled_from_start=True)}, 0)
    assert not schedule.finished
    feed(schedule, 0.5, 0.5)
    assert not schedule.finished


def test_a_task_is_resumed_as_it_began() -> None:
    """Resumed without its teacher from outside, a task was to distill for ever from one that it never had."""
    specs = [TaskSpec("classification", "f1", distilled_from_start=outside) for outside in (True, False)]
    for saved, resumed in (specs, specs[::-1]):
        state = ConvergenceSchedule({"match": saved}).state_dict()
        with pytest.raises(ValueError, match=r"must be resumed as it began, with(out)? an external teacher, not"):
            ConvergenceSchedule({"match": resumed}).load_state_dict(state)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_candidate_is_the_earliest_best(seed: int) -> None:
    """A tie threw out the earlier of two equal scores, or the last one was kept in place of the best."""
    schedule = ConvergenceSchedule({"match": TaskSpec("classification", "f1", config_of(patience=99))})
    rng = random.Random(seed)
    for _ in range(20):
        feed(schedule, rng.choice([math.nan, 0.1, 0.2, 0.3, 0.4]))
        known = [(-value, step) for step, value in schedule.report()["tasks"]["match"]["history"] if value is not None]
        assert schedule.teacher_step("match") == (min(known)[1] if known else None)
        task = schedule.report()["tasks"]["match"]
        assert (task["teacher_value"], task["teacher_step"]) == (task["best"], task["best_step"])
        assert schedule.improved(schedule.step) == (["match"] if task["best_step"] == schedule.step else [])


def test_noise_references() -> None:
    """Noise was measured for tasks that do not read it, or against another evaluation than the criterion's."""
    tasks = {
        name: TaskSpec("classification", "f1", config_of(criterion=name, patience=2, min_delta=0.1))
        for name in CRITERIA
    }
    schedule = ConvergenceSchedule(tasks)
    assert schedule.noise_references == {"decline": None, "significant": None}
    feed(schedule, 0.5, 0.55)
    assert schedule.noise_references == {"decline": 200, "significant": 100}
    feed(schedule, 0.5)
    assert schedule.noise_references == {"decline": 200}  # The other has converged.


def test_the_noise_reference_of_a_task_that_may_return() -> None:
    """A loss ended a task at its best evaluation, whose answers nobody kept for the day that it returned."""
    schedule = one_task(criterion="decline", patience=1, return_below=0.9)
    schedule.observe(100, {"match": 0.5}, losses={"match": 0.5})
    assert schedule.observe(200, {"match": 0.6}, losses={"match": 0.6})
    assert schedule.noise_references == {"match": 200}
    feed(schedule, 0.6)
    assert schedule.noise_references == {}
    feed(schedule, 0.5)
    assert schedule.noise_references == {"match": 200}


def test_losses_and_noise_reach_the_criterion_of_their_task() -> None:
    """A loss was taken for another task's, or `np.float32` reached the file."""
    spec = TaskSpec("classification", "f1", config_of(criterion="decline", patience=1, z=2))
    schedule = ConvergenceSchedule({"a": spec, "b": spec, "c": spec})
    schedule.observe(100, dict.fromkeys("abc", 0.5), losses={"a": np.float32(0.25), "b": 0.5})
    events = schedule.observe(
        200,
        {"a": 0.5, "b": 0.25, "c": 0.25},
        losses={"a": np.float32(0.5), "b": None},
        standard_errors={"b": np.float32(0.25), "c": 0.0625, "a": None},
    )
    assert [event.task for event in events] == ["a", "c"]
    as_json(schedule.state_dict())


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"losses": {"rte": 0.5}}, "The losses must be of the tasks match, not of rte"),
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


def test_a_task_that_answers_all_alike_does_not_converge() -> None:
    """Bug: a task that has not begun to learn is on a plateau at once, and its teacher says the same to everything."""
    schedule = one_task(patience=2)
    name = next(iter(schedule.tasks))
    for step in (10, 20, 30, 40):
        assert schedule.observe(step, {name: 0.8}, constant=[name]) == []
    assert schedule.teacher_step(name) is None
    assert schedule.report()["tasks"][name]["best"] == 0.8
    # Below the score of saying "yes" to all, and still its own first real answer.
    assert schedule.observe(50, {name: 0.7}) == []
    assert schedule.observe(60, {name: 0.7}) == []
    (event,) = schedule.observe(70, {name: 0.6})
    assert (event.event, event.teacher_step) == ("converged", 50)


def test_a_distilling_task_may_answer_all_alike() -> None:
    """Bug: an evaluation after the switch is left out of what may send a task back to its labels."""
    schedule = one_task(patience=1, return_below=0.9)
    name = next(iter(schedule.tasks))
    schedule.observe(10, {name: 0.8})
    schedule.observe(20, {name: 0.8})
    (event,) = schedule.observe(30, {name: 0.1}, constant=[name])
    assert event.event == "returned"


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


def test_constant_answers_are_spared_for_a_while_only() -> None:
    """Bug: a task that always answers alike waits for ever, or one that had learned and collapsed never converges."""
    schedule = one_task(patience=2)
    name = next(iter(schedule.tasks))
    events = [event for step in range(1, 12) for event in schedule.observe(step, {name: 0.8}, constant=[name])]
    assert [(event.event, event.step) for event in events] == [("converged", 9)]
    collapsed = one_task(patience=2)
    collapsed.observe(1, {name: 0.8})
    events = [event for step in (2, 3) for event in collapsed.observe(step, {name: 0.8}, constant=[name])]
    assert [(event.event, event.teacher_step) for event in events] == [("converged", 1)]


def test_a_constant_student_does_not_become_a_teacher() -> None:
    """Bug: all "yes" beats a real teacher, and its logits are recorded in their place."""
    schedule = one_task(patience=1, renew_teacher=True)
    name = next(iter(schedule.tasks))
    schedule.observe(1, {name: 0.7})
    schedule.observe(2, {name: 0.6})
    assert schedule.observe(3, {name: 0.8}, constant=[name]) == []
    (event,) = schedule.observe(4, {name: 0.8})
    assert event.event == "teacher_renewed"


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


def test_another_criterion_is_refused_on_resuming() -> None:
    """Bug: counters of one criterion are read by another whose keys are the same, and its references are missing."""
    state = one_task(patience=2).state_dict()
    with pytest.raises(ValueError, match="must be resumed with the criterion that it began with, plateau, not signif"):
        one_task(patience=2, criterion="significant").load_state_dict(state)


def test_a_metric_that_is_better_when_smaller() -> None:
    """A rising loss was an improvement: the task never converged, or its worst weights were its teacher."""
    settings = {"patience": 1, "min_delta": 0.05, "return_below": 0.8}
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
    # 0.38 / 0.475 is the share of 0.8, and one step further is below it.
    (event,) = schedule.observe(5, {"loss": 0.48, "score": -0.48})
    assert (event.task, event.event) == ("loss", "returned")
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
