"""Criteria of convergence: one small class each.

A new criterion is a subclass of `Criterion` and its entry in `CRITERIA`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from typing import Any, ClassVar

from .config import ConvergenceConfig


class Criterion(ABC):
    """Follow the scores of one task. Higher is better.

    Attributes:
        needs_standard_error: Whether `update` reads the standard error.
        skips_first: Whether a task's first evaluation is withheld from `update`, and its weights are no teacher.
        state_names: The attributes that `update` changes.
        reference_step: The step of the evaluation that scores are compared with; None before there is one.
    """

    needs_standard_error: ClassVar[bool] = False
    skips_first: ClassVar[bool] = False
    state_names: ClassVar[tuple[str, ...]]

    def __init__(self, config: ConvergenceConfig) -> None:
        self.config = config
        self.reference: float | None = None
        self.reference_step: int | None = None

    @abstractmethod
    def update(self, step: int, value: float | None, *, standard_error: float | None = None) -> bool:
        """Take in the score of one evaluation.

        Args:
            step: The optimizer step of the evaluation.
            value: The monitored metric. None or a value that is not finite is no improvement.
            standard_error: Of the difference between this evaluation's metric and that of `reference_step`, paired by
                example. None or a value that is not finite counts as 0.

        Returns:
            Whether the task has converged, apart from ``min_steps`` and ``min_epochs``.
        """

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next `update` depends on, besides the configuration, as JSON values."""
        return {name: getattr(self, name) for name in self.state_names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; raise a `ValueError` if a key is missing or unexpected."""
        what = f"The state of a {self.config.criterion} criterion"
        check_state_keys(state, self.state_names, what, "was it saved by another version, or with another criterion?")
        for name in self.state_names:
            setattr(self, name, state[name])


class Plateau(Criterion):
    """Converged after ``patience`` consecutive evaluations that do not beat the best score by more than ``min_delta``.

    The best score is the last one that was accepted as an improvement: small gains, each below ``min_delta``, are
    accepted once their sum exceeds it.

    >>> plateau = Plateau(ConvergenceConfig(criterion="plateau", patience=2))
    >>> [plateau.update(step, value) for step, value in [(10, 0.5), (20, 0.7), (30, 0.6), (40, 0.7)]]
    [False, False, False, True]
    """

    state_names = ("reference", "reference_step", "evaluations_without_improvement")

    def __init__(self, config: ConvergenceConfig) -> None:
        super().__init__(config)
        self.evaluations_without_improvement = 0

    def update(self, step: int, value: float | None, *, standard_error: float | None = None) -> bool:
        least = -math.inf if self.reference is None else self.reference + self.config.min_delta
        if value is not None and math.isfinite(value) and value > least:
            self.reference, self.reference_step = value, step
            self.evaluations_without_improvement = 0
        else:
            self.evaluations_without_improvement += 1
        return self.evaluations_without_improvement >= self.config.patience


class Decline(Criterion):
    """Converged after ``patience`` consecutive evaluations with a score below the best.

    A decrease must exceed ``min_delta`` and ``z`` standard errors of the difference to the best evaluation. A score
    that is not a number counts as a decrease, once there is a best. A task that stays at its best never converges.

    The first evaluation of a task does not count. A model that gives nearly every example the same answer can have a
    high F1 or accuracy, and falls from it when it begins to learn.

    >>> decline = Decline(ConvergenceConfig(criterion="decline", patience=2))
    >>> scores = [(10, 0.5), (20, 0.7), (30, 0.6), (40, 0.7), (50, 0.6), (60, 0.6)]
    >>> [decline.update(step, value) for step, value in scores], decline.reference_step
    ([False, False, False, False, False, True], 20)
    """

    needs_standard_error = True
    skips_first = True
    state_names = ("reference", "reference_step", "falls")

    def __init__(self, config: ConvergenceConfig) -> None:
        super().__init__(config)
        self.falls = 0

    def update(self, step: int, value: float | None, *, standard_error: float | None = None) -> bool:
        if value is None or not math.isfinite(value):
            self.falls = 0 if self.reference is None else self.falls + 1
        elif self.reference is None or value > self.reference:
            self.reference, self.reference_step = value, step
            self.falls = 0
        else:
            self.falls = self.falls + 1 if value < self.reference - self._margin(standard_error) else 0
        return self.falls >= self.config.patience

    def _margin(self, standard_error: float | None) -> float:
        known = standard_error if standard_error is not None and math.isfinite(standard_error) else 0.0
        return max(self.config.min_delta, self.config.z * known)


CRITERIA: dict[str, type[Criterion]] = {"plateau": Plateau, "decline": Decline}


def check_state_keys(
    found: Collection[str], required: Collection[str], what: str, hint: str = "was it saved by another version?"
) -> None:
    """Raise a `ValueError` that names missing and unexpected keys, unless a state has exactly the required ones."""
    missing = [key for key in required if key not in found]
    unexpected = [str(key) for key in found if key not in required]
    found_faults = (("missing", missing), ("unexpected", unexpected))
    faults = [f"{fault} {', '.join(keys)}" for fault, keys in found_faults if keys]
    if faults:
        raise ValueError(f"{what} must have exactly the keys {', '.join(required)} ({', '.join(faults)}); {hint}")
