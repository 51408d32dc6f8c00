"""The options of the loss that a task has on its labels."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..validation import MAPPING, ConfigurationError, Requirement, check, check_fields, number, parse_section, setting

BALANCED = "balanced"


def _are_weights(value: Any) -> bool:
    return value in (None, BALANCED) or (isinstance(value, list) and bool(value) and all(map(number(0).accepts, value)))


_WEIGHTS = Requirement(f"`{BALANCED}`, a list of numbers of at least 0, or null", _are_weights)
_SHARE = Requirement("a number from 0 to below 1", lambda value: number(0).accepts(value) and value < 1)
_DELTA = Requirement(
    "a number above 0, or null", lambda value: value is None or number(0, exclusive=True).accepts(value)
)


@dataclass(frozen=True)
class LossConfig:
    """How a task's loss on its labels differs from the plain one while it trains.

    The losses of the examples are summed and divided by the number of examples, and not by the sum of their weights:
    the gradient does not depend on how a step is divided into batches. (The mean of torch's ``CrossEntropyLoss``
    divides by the weights of each batch.) Evaluation reports the plain loss, and distillation has its own.

    Args:
        class_weights: For ``classification`` and ``token_classification``: what the losses of each class are multiplied
            by, in the order of ``label_names``; or ``balanced``: n / (C n_c), as in scikit-learn, from the training
            rows, whose mean weight is then 1. A class without a row has the weight 1.
        label_smoothing: For ``classification``, ``token_classification`` and ``multiple_choice``: the share of each
            target that is spread over all classes.
        pos_weight: For ``multilabel``: what the losses of the rows that have a label are multiplied by, one number per
            label; or ``balanced``: the number of training rows without the label over that of those with it.
        huber: For ``regression``: the error, in standard deviations of the training targets, up to which the loss is
            half the square, and above which it is linear. Default: the square.

    Raises:
        ConfigurationError: A value is out of range.
    """

    class_weights: str | Sequence[float] | None = setting(None, _WEIGHTS)
    label_smoothing: float = setting(0.0, _SHARE)
    pos_weight: str | Sequence[float] | None = setting(None, _WEIGHTS)
    huber: float | None = setting(None, _DELTA)

    def __post_init__(self) -> None:
        check_fields("loss", self)

    @classmethod
    def of_tasks(cls, section: Any) -> dict[str, LossConfig]:
        """Make the options of the tasks that have some, from a dictionary of their fields per task."""
        given: Mapping[str, Any] = {} if section is None else section
        check("losses", given, MAPPING)
        found = {}
        for task, fields in given.items():
            path = f"tasks.{task}.loss"
            try:
                found[task] = parse_section(path, cls, fields)
            except ConfigurationError as error:
                raise ConfigurationError(str(error).replace("`loss.", f"`{path}.", 1)) from None
        return found
