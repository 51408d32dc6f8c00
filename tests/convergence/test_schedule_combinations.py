"""Every criterion with every action: what must hold for all of them."""

import math
import random
from typing import Any

import pytest
from schedules import SEEDS, as_json, config_of

from hf_async_mtl.convergence.actions import ACTIONS
from hf_async_mtl.convergence.criteria import CRITERIA
from hf_async_mtl.convergence.schedule import ConvergenceSchedule
from hf_async_mtl.convergence.task import Event, TaskSpec


def mixed(criterion: str, action: str, order: list[str] | None = None) -> ConvergenceSchedule:
    """Three tasks of one criterion, two of them with one action."""
    settings: dict[str, Any] = {"criterion": criterion, "patience": 2, "min_delta": 0.02, "z": 0.5}
    own = config_of(**settings, on_convergence=action, min_epochs=0.2)
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
                "values": {
                    name: rng.choice([math.nan, 0.3, 0.5, 0.7, 0.8, 0.8 + index / 200])
                    for name in ["a", "b", "c", "outside"]
                },
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
        schedule.noise_references, schedule.in_loss, schedule.report(),
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
                if event.event == "converged":
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
        changed = {key: {**given[key], "a": rng.random()} for key in ("values", "standard_errors")}
        other.observe(step, **{**given, **changed})
        for name in ("b", "c", "outside"):
            assert schedule.state_dict()["tasks"][name] == other.state_dict()["tasks"][name]
    assert schedule.state_dict()["tasks"]["a"] != other.state_dict()["tasks"]["a"]
