"""The phases of tasks: when one converges, what its teacher is, and what the others notice of it."""

import math
import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from schedules import SEEDS, TASKS, as_json, config_of, feed, one_task, random_run

from hf_async_mtl import AsyncMTLTrainingArguments, TaskConfig
from hf_async_mtl.convergence.criteria import CRITERIA, Criterion
from hf_async_mtl.convergence.schedule import ConvergenceSchedule
from hf_async_mtl.convergence.task import Event, TaskSpec
from hf_async_mtl.training.controller import new_schedule


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

        def update(self, step: int, value: float | None, *, standard_error: float | None = None) -> bool:
            return True

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


def test_a_change_to_distillation_leaves_converged_tasks_alone() -> None:
    """Resumed with `distill` in place of `continue`, a converged task asked for a snapshot that nobody kept."""
    plain, resumed = one_task(patience=1, on_convergence="continue"), one_task(patience=1)
    feed(plain, 0.5, 0.4)
    resumed.load_state_dict(plain.state_dict())
    assert resumed.snapshots_needed() == set()
    assert feed(resumed, 0.9, 0.4) == []


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
    for min_epochs, step in [(0, 400), (1.25, 500), (1.3, 600)]:
        schedule = one_task(criterion=name, patience=2, min_epochs=min_epochs)
        for number, score in enumerate([0.8, 0.9] + [0.5] * 9, start=1):
            schedule.observe(100 * number, {"match": score}, epoch=number / 4)
        assert [event.step for event in schedule.events] == [step]


def test_min_epochs_are_passes_over_the_task(tmp_path: Path) -> None:
    """With uniform mixing, a large task was declared converged before it had seen its rows once."""
    settings: Any = {"mixing": {"strategy": "uniform"}, "convergence": {"patience": 1, "min_epochs": 1}}
    args = AsyncMTLTrainingArguments(str(tmp_path), use_cpu=True, **settings)
    task = TaskConfig(type="classification", text_columns=["text"], label_names=["x", "y"])
    schedule = new_schedule({"large": task, "small": task}, args, {"large": 90, "small": 10})
    assert {name: spec.passes_per_epoch for name, spec in schedule.tasks.items()} == {"large": 50 / 90, "small": 5}
    for step, score in enumerate([0.8, 0.9, 0.5, 0.5], start=1):
        schedule.observe(step, {"large": score, "small": score}, epoch=0.5 * step)
    assert [(event.task, event.step) for event in schedule.events] == [("small", 3), ("large", 4)]


def test_a_task_with_an_external_teacher() -> None:
    """It asked for a snapshot, converged to a teacher of its own, or held the others up."""
    outside = TaskSpec("classification", "f1", config_of(patience=1), True)
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
    assert schedule.noise_references == {"decline": None}
    feed(schedule, 0.5, 0.55)
    assert schedule.noise_references == {"decline": 200}
    feed(schedule, 0.4, 0.4)
    assert schedule.noise_references == {}  # Both have converged.


def test_noise_reaches_the_criterion_of_its_task() -> None:
    """A standard error was taken for another task's, or `np.float32` reached the file."""
    spec = TaskSpec("classification", "f1", config_of(criterion="decline", patience=1, z=2))
    schedule = ConvergenceSchedule({"a": spec, "b": spec, "c": spec})
    for step in (50, 100):
        schedule.observe(step, dict.fromkeys("abc", 0.5))
    errors = {"b": np.float32(0.25), "c": 0.0625, "a": None}
    events = schedule.observe(200, {"a": np.float32(0.5), "b": 0.25, "c": 0.25}, standard_errors=errors)
    assert [event.task for event in events] == ["c"]
    as_json(schedule.state_dict())


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


def test_a_decline_does_not_begin_at_the_first_evaluation() -> None:
    """Bug: a task that still gives nearly all examples the majority's answer falls from its F1 when it learns."""
    scores = [0.8, 0.6, 0.65, 0.7, 0.75]
    for name, switched in (("decline", []), ("plateau", [400])):
        schedule = one_task(criterion=name, patience=3)
        assert [event.step for event in feed(schedule, *scores)] == switched
        assert schedule.report()["tasks"]["match"]["best"] == 0.8
        assert schedule.teacher_step("match") == (500 if name == "decline" else 100)
    waiting = ConvergenceSchedule(
        {name: TaskSpec("classification", "f1", config_of(criterion="decline", patience=1)) for name in "ab"},
        1,
        ["a", "b"],
    )
    feed(waiting, 0.3, 0.9, 0.5)
    assert waiting.phases == {"a": "distilling", "b": "learning"}
    # The first evaluation after it has joined.
    feed(waiting, 0.8, 0.5, 0.4)
    assert waiting.teacher_step("b") == 500


def test_a_rollback_to_an_evaluation_that_did_not_count() -> None:
    """Bug: another task's rollback makes the first evaluation, which did not count, a task's teacher after all."""
    specs = {
        "a": TaskSpec("classification", "f1", config_of(criterion="plateau", patience=1, on_convergence="rollback")),
        "b": TaskSpec("classification", "f1", config_of(criterion="decline", patience=2)),
    }
    schedule = ConvergenceSchedule(specs)
    for step, (a, b) in enumerate([(0.9, 0.9), (0.5, 0.5), (0.5, 0.6), (0.5, 0.7), (0.5, 0.65), (0.5, 0.65)], start=1):
        schedule.observe(step, {"a": a, "b": b})
    assert [(event.task, event.event, event.teacher_step) for event in schedule.events] == [
        ("a", "converged", 1),
        ("a", "rolled_back", 1),
        ("b", "converged", 4),
    ]


def test_an_evaluation_before_the_first_step_is_not_the_first() -> None:
    """Bug: with `eval_on_start`, the one evaluation that is left out is that of untrained heads."""
    schedule = one_task(criterion="decline", patience=9)
    for step, score in ((0, 0.9), (10, 0.8), (20, 0.5)):
        schedule.observe(step, {"match": score})
    assert schedule.teacher_step("match") == 20


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
