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

    Before convergence, ``teacher_value`` and ``teacher_step`` are the candidate's. ``average`` is None where the last
    score of any task is. ``final`` is missing where it is None.
    """
    report: dict[str, Any] = {
        "version": 1,
        "step": step,
        "average": _mean(tracker.state.last for tracker in trackers.values()),
        "tasks": {
            name: {"type": tracker.spec.type, "metric": tracker.spec.metric, **asdict(tracker.state)}
            for name, tracker in trackers.items()
        },
        "events": [asdict(event) for event in events],
    }
    if final is not None:
        report["final"] = copy.deepcopy(dict(final))
    return report


def final_result(trackers: Mapping[str, TaskTracker], step: int, scores: Mapping[str, float | None]) -> dict[str, Any]:
    """Return the ``final`` entry: the scores of the saved weights, and their retention."""
    return {
        "step": step,
        "average": _mean(scores.values()),
        "tasks": {
            name: {"value": score, "retention": _retention(score, trackers[name].state.best)}
            for name, score in scores.items()
        },
    }


def _mean(scores: Iterable[float | None]) -> float | None:
    found = list(scores)
    known = [score for score in found if score is not None]
    return math.fsum(known) / len(known) if len(known) == len(found) else None


def _retention(score: float | None, best: float | None) -> float | None:
    if score is None or best is None or score <= 0 or best <= 0:
        return None
    return score / best
