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
        state_names: The attributes that `update` changes.
        reference_step: The step of the evaluation that scores are compared with; None before there is one.
    """

    needs_standard_error: ClassVar[bool] = False
    state_names: ClassVar[tuple[str, ...]]

    def __init__(self, config: ConvergenceConfig) -> None:
        self.config = config
        self.reference: float | None = None
        self.reference_step: int | None = None

    @abstractmethod
    def update(
        self, step: int, value: float | None, *, loss: float | None = None, standard_error: float | None = None
    ) -> bool:
        """Take in the score of one evaluation.

        Args:
            step: The optimizer step of the evaluation.
            value: The monitored metric. None or a value that is not finite is no improvement.
            loss: The supervised loss on the validation set, lower is better.
            standard_error: Of the difference between this evaluation's metric and that of `reference_step`, paired by
                example. None or a value that is not finite counts as 0.

        Returns:
            Whether the task has converged, apart from ``min_steps`` and ``min_epochs``.
        """

    @abstractmethod
    def reset_patience(self) -> None:
        """Start to count again. The reference stays."""

    def state_dict(self) -> dict[str, Any]:
        """Return all that the next `update` depends on, besides the configuration, as JSON values."""
        return {name: getattr(self, name) for name in self.state_names}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore what `state_dict` returned; raise a `ValueError` if a key is missing or unexpected."""
        what = f"The state of a {self.config.criterion} criterion"
        check_state_keys(state, self.state_names, what, "was it saved by another version, or with another criterion?")
        for name in self.state_names:
            setattr(self, name, state[name])

    def _margin(self, standard_error: float | None) -> float:
        """Return what a difference to the reference must exceed."""
        noise = 0.0
        if self.needs_standard_error and standard_error is not None and math.isfinite(standard_error):
            noise = self.config.z * standard_error
        return max(self.config.min_delta, noise)


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

    def update(
        self, step: int, value: float | None, *, loss: float | None = None, standard_error: float | None = None
    ) -> bool:
        margin = self._margin(standard_error)
        if value is not None and math.isfinite(value) and (self.reference is None or value > self.reference + margin):
            self.reference, self.reference_step = value, step
            self.evaluations_without_improvement = 0
        else:
            self.evaluations_without_improvement += 1
        return self.evaluations_without_improvement >= self.config.patience

    def reset_patience(self) -> None:
        self.evaluations_without_improvement = 0


class Significant(Plateau):
    """A plateau where a gain must exceed ``z`` standard errors as well as ``min_delta``.

    The gain is over the last accepted score, and the standard error is that of this difference. The first finite score
    is always accepted.

    >>> significant = Significant(ConvergenceConfig(criterion="significant", patience=2, z=2))
    >>> scores = [(10, 0.50), (20, 0.56), (30, 0.58), (40, 0.59)]
    >>> [significant.update(step, value, standard_error=0.02) for step, value in scores], significant.reference_step
    ([False, False, False, True], 20)
    """

    needs_standard_error = True


class Decline(Criterion):
    """Converged after ``patience`` consecutive evaluations with a score below the best, or with a rising loss.

    A decrease must exceed ``min_delta`` and ``z`` standard errors of the difference to the best evaluation. A score
    that is not a number counts as a decrease, once there is a best. A loss rises where it is greater than at the
    evaluation before; one that is not a number ends the row. A task that stays at its best never converges by its
    metric.

    >>> decline = Decline(ConvergenceConfig(criterion="decline", patience=2))
    >>> scores = [(10, 0.5), (20, 0.7), (30, 0.6), (40, 0.7), (50, 0.6), (60, 0.6)]
    >>> [decline.update(step, value) for step, value in scores], decline.reference_step
    ([False, False, False, False, False, True], 20)
    >>> decline = Decline(ConvergenceConfig(criterion="decline", patience=2, watch="either"))
    >>> [decline.update(step, 0.7, loss=loss) for step, loss in [(10, 0.4), (20, 0.3), (30, 0.4), (40, 0.5)]]
    [False, False, False, True]
    """

    needs_standard_error = True
    state_names = ("reference", "reference_step", "falls", "last_loss", "loss_rises")

    def __init__(self, config: ConvergenceConfig) -> None:
        super().__init__(config)
        self.falls = 0
        self.last_loss: float | None = None
        self.loss_rises = 0

    def update(
        self, step: int, value: float | None, *, loss: float | None = None, standard_error: float | None = None
    ) -> bool:
        self._update_falls(step, value, standard_error)
        self._update_loss_rises(loss)
        counts = {"metric": self.falls, "loss": self.loss_rises, "either": max(self.falls, self.loss_rises)}
        return counts[self.config.watch] >= self.config.patience

    def _update_falls(self, step: int, value: float | None, standard_error: float | None) -> None:
        if value is None or not math.isfinite(value):
            self.falls = 0 if self.reference is None else self.falls + 1
        elif self.reference is None or value > self.reference:
            self.reference, self.reference_step = value, step
            self.falls = 0
        else:
            fallen = value < self.reference - self._margin(standard_error)
            self.falls = self.falls + 1 if fallen else 0

    def _update_loss_rises(self, loss: float | None) -> None:
        known = loss if loss is not None and math.isfinite(loss) else None
        risen = known is not None and self.last_loss is not None and known > self.last_loss
        self.loss_rises = self.loss_rises + 1 if risen else 0
        self.last_loss = known

    def reset_patience(self) -> None:
        self.falls = self.loss_rises = 0
        self.last_loss = None  # it may be of other weights than the next one


CRITERIA: dict[str, type[Criterion]] = {"plateau": Plateau, "decline": Decline, "significant": Significant}


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
