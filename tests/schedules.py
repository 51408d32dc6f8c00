"""Schedules of a few tasks, and evaluations that they observe."""

import json
import math
import random
from functools import partial
from typing import Any

from hf_async_mtl.convergence.config import ConvergenceConfig
from hf_async_mtl.convergence.schedule import ConvergenceSchedule
from hf_async_mtl.convergence.task import Event, TaskSpec

config_of = partial(ConvergenceConfig, criterion="plateau", min_epochs=0)
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
