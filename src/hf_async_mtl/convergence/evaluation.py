"""One evaluation: the numbers of the trainer, checked, made finite and sorted by task."""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import SupportsFloat

from .criteria import check_state_keys

Scores = Mapping[str, SupportsFloat | None]


@dataclass(frozen=True, kw_only=True)
class Evaluation:
    """The result of one evaluation for one task.

    Args:
        step: The optimizer step.
        score: The monitored metric, negated if it is better when smaller. None: not a finite number.
        standard_error: Of the difference between this score and the one at `TaskTracker.noise_reference`. None: not
            known, which counts as 0.
        epoch: Epochs trained so far, with fractions.
        is_constant: Whether every example was given the same prediction.
    """

    step: int
    score: float | None
    standard_error: float | None = None
    epoch: float = 0.0
    is_constant: bool = False


def evaluations_by_task(
    scores: Mapping[str, float | None],
    step: int,
    standard_errors: Scores | None,
    epoch: float | None,
    constant: Collection[str],
) -> dict[str, Evaluation]:
    """Sort the numbers of an evaluation by task; the others are the arguments of `ConvergenceSchedule.observe`."""
    known_errors = _check_known(standard_errors, scores)
    return {
        name: Evaluation(
            step=int(step),
            score=score,
            standard_error=known_errors.get(name),
            epoch=epoch or 0.0,
            is_constant=name in constant,
        )
        for name, score in scores.items()
    }


def check_values(values: Scores, tasks: Collection[str]) -> dict[str, float | None]:
    """Return the metric of every task, in the order of the tasks; None where it is not finite."""
    check_state_keys(values, tasks, "The values of an evaluation", "evaluate every task each time.")
    return {name: _finite_or_none(values[name]) for name in tasks}


def _check_known(values: Scores | None, tasks: Collection[str]) -> dict[str, float | None]:
    values = values or {}
    unknown = [str(name) for name in values if name not in tasks]
    if unknown:
        raise ValueError(f"The standard errors must be of the tasks {', '.join(tasks)}, not of {', '.join(unknown)}.")
    return {name: _finite_or_none(value) for name, value in values.items()}


def _finite_or_none(value: SupportsFloat | None) -> float | None:
    number = math.nan if value is None else float(value)
    return number if math.isfinite(number) else None
