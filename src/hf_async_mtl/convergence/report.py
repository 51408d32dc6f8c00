"""The content of ``convergence.json``, version 1, from the trackers of a run."""

from __future__ import annotations

import copy
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict
from typing import Any

from .task import Event, TaskTracker


def convergence_report(
    trackers: Mapping[str, TaskTracker], events: Sequence[Event], step: int, final: Mapping[str, Any] | None
) -> dict[str, Any]:
    """Return the report of a run, JSON values that share no object with the arguments.

    Before convergence, ``teacher_value`` and ``teacher_step`` are the candidate's. All values are those of the metrics;
    ``average`` is the mean score, in which a metric that is better when smaller is negated. It is None where the last
    score of any task is. ``final`` is missing where it is None.
    """
    report: dict[str, Any] = {
        "version": 1,
        "step": step,
        "average": _mean(tracker.state.last for tracker in trackers.values()),
        "tasks": {name: _task_report(tracker) for name, tracker in trackers.items()},
        "events": [asdict(event) for event in events],
    }
    if final is not None:
        report["final"] = copy.deepcopy(dict(final))
    return report


def _task_report(tracker: TaskTracker) -> dict[str, Any]:
    """Return the entry of a task, with values of its metric in place of scores."""
    spec, state = tracker.spec, asdict(tracker.state)
    for key in ("teacher_value", "best", "last"):
        state[key] = spec.signed(state[key])
    state["history"] = [[step, spec.signed(score)] for step, score in state["history"]]
    positive = {} if spec.positive_label is None else {"positive_label": spec.positive_label}
    return {"type": spec.type, "metric": spec.metric, **positive, **state}


def final_result(trackers: Mapping[str, TaskTracker], step: int, scores: Mapping[str, float | None]) -> dict[str, Any]:
    """Return the ``final`` entry: the values of the saved weights, and their retention."""
    return {
        "step": step,
        "average": _mean(scores.values()),
        "tasks": {
            name: {"value": trackers[name].spec.signed(score), "retention": _retention(trackers[name], score)}
            for name, score in scores.items()
        },
    }


def _mean(scores: Iterable[float | None]) -> float | None:
    found = list(scores)
    known = [score for score in found if score is not None]
    return math.fsum(known) / len(known) if len(known) == len(found) else None


def _retention(tracker: TaskTracker, score: float | None) -> float | None:
    """Return the final value over the best one, or the best over the final one of a metric that is better smaller."""
    best = tracker.state.best
    if score is None or best is None:
        return None
    low, high = (score, best) if tracker.spec.greater_is_better else (-best, -score)
    return low / high if low > 0 and high > 0 else None
