"""Has a task converged? One small class for each way to tell, and the settings they share.

A new criterion is a subclass of `Criterion` and its entry in `CRITERIA`.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

__all__ = ["CRITERIA", "ConvergenceConfig", "Criterion", "MinDeltaMode", "OnConvergence", "Plateau", "check_keys"]

MinDeltaMode = Literal["absolute", "relative"]
OnConvergence = Literal["distill", "stop", "continue"]


@dataclass(frozen=True)
class ConvergenceConfig:
    """When a task counts as converged, and what happens to it then.

    Args:
        criterion: A name in `CRITERIA`.
        patience: So many evaluations in a row without improvement make a plateau. Counted in evaluations, not steps.
            With 1, the first noisy evaluation ends a task.
        min_delta: An improvement must exceed this, in the units of the metric (`absolute`) or as a share of the best
            score so far (`relative`). On small validation sets a value below the metric's granularity (one example
            right or wrong) is the same as 0.
        min_delta_mode: `relative` has no effect while the best score is 0, where the threshold is 0 as well.
        min_steps: No convergence before this optimizer step. Earlier evaluations do count towards the patience.
        on_convergence: `distill` trains on from the recorded teacher, `stop` takes the task out of the loss,
            `continue` records the convergence and goes on with the true labels.

    Raises:
        ValueError: A value is out of its range, with the range in the message.
    """

    criterion: str = "plateau"
    patience: int = 3
    min_delta: float = 0.0
    min_delta_mode: MinDeltaMode = "absolute"
    min_steps: int = 0
    on_convergence: OnConvergence = "distill"

    def __post_init__(self) -> None:
        _check_choice("criterion", self.criterion, CRITERIA)
        _check_choice("min_delta_mode", self.min_delta_mode, get_args(MinDeltaMode))
        _check_choice("on_convergence", self.on_convergence, get_args(OnConvergence))
        _check_number("patience", self.patience, minimum=1, example="3", whole=True)
        _check_number("min_steps", self.min_steps, minimum=0, example="500", whole=True)
        _check_number("min_delta", self.min_delta, minimum=0, example="0.001", whole=False)


class Criterion(ABC):
    """Watches the scores of one task. Higher is better."""

    def __init__(self, config: ConvergenceConfig) -> None:
        self.config = config

    @abstractmethod
    def update(self, step: int, value: float | None) -> bool:
        """Takes the score of one evaluation in.

        Args:
            step: The optimizer step of the evaluation.
            value: The monitored metric. None or a value that is not finite is no improvement.

        Returns:
            Whether the task has converged.
        """

    @abstractmethod
    def state_dict(self) -> dict[str, Any]:
        """All that the next `update` depends on, besides the configuration, as JSON values."""

    @abstractmethod
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Takes over what `state_dict` returned.

        Raises:
            ValueError: A key is missing, or there is one too many.
        """


class Plateau(Criterion):
    """Converged when `patience` evaluations in a row have not beaten the best score by more than `min_delta`.

    The best score here is the last one that was accepted as an improvement. So many small gains, each below
    `min_delta`, are accepted once together they exceed it.

    >>> plateau = Plateau(ConvergenceConfig(patience=2))
    >>> [plateau.update(step, value) for step, value in [(10, 0.5), (20, 0.7), (30, 0.6), (40, 0.7)]]
    [False, False, False, True]
    """

    def __init__(self, config: ConvergenceConfig) -> None:
        super().__init__(config)
        self.reference: float | None = None
        self.evaluations_without_improvement = 0

    def update(self, step: int, value: float | None) -> bool:
        if value is not None and self._improves(value):
            self.reference = value
            self.evaluations_without_improvement = 0
        else:
            self.evaluations_without_improvement += 1
        return self.evaluations_without_improvement >= self.config.patience and step >= self.config.min_steps

    def _improves(self, value: float) -> bool:
        if not math.isfinite(value):
            return False
        if self.reference is None:
            return True
        scale = abs(self.reference) if self.config.min_delta_mode == "relative" else 1.0
        return value > self.reference + self.config.min_delta * scale

    def state_dict(self) -> dict[str, Any]:
        return {
            "reference": self.reference,
            "evaluations_without_improvement": self.evaluations_without_improvement,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        check_keys(state, self.state_dict(), "The state of a plateau criterion", "was it saved by another version?")
        self.reference = state["reference"]
        self.evaluations_without_improvement = state["evaluations_without_improvement"]


CRITERIA: dict[str, type[Criterion]] = {"plateau": Plateau}


def check_keys(found: Collection[str], required: Collection[str], what: str, way_out: str) -> None:
    """Requires exactly the given keys.

    >>> check_keys(["a", "x"], ["a", "b"], "The state", "resume with the same tasks.")
    Traceback (most recent call last):
        ...
    ValueError: The state must have exactly the keys a, b (missing b, unexpected x); resume with the same tasks.

    Raises:
        ValueError: Names the keys that are missing and those that are unexpected.
    """
    missing = [key for key in required if key not in found]
    unexpected = [str(key) for key in found if key not in required]
    faults = [
        f"{fault} {', '.join(keys)}" for fault, keys in (("missing", missing), ("unexpected", unexpected)) if keys
    ]
    if faults:
        raise ValueError(f"{what} must have exactly the keys {', '.join(required)} ({', '.join(faults)}); {way_out}")


def _check_choice(name: str, value: object, choices: Collection[str]) -> None:
    if value not in list(choices):  # A list, as the value may be unhashable.
        raise ValueError(f"convergence.{name} must be one of {', '.join(choices)}, not {value!r}.")


def _check_number(name: str, value: object, minimum: int, example: str, *, whole: bool) -> None:
    number = value if isinstance(value, int if whole else (int, float)) and not isinstance(value, bool) else math.nan
    if not minimum <= number < math.inf:
        noun = "a whole number" if whole else "a finite number"
        raise ValueError(f"convergence.{name} must be {noun} of at least {minimum}, such as {example}, not {value!r}.")
