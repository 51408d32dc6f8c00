"""Regression: a number per text or pair of texts."""

from __future__ import annotations

import array
import dataclasses
import statistics
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from ..modeling.configuration_multitask import TaskConfig
from ..validation import ConfigurationError
from .base import Target, TaskType
from .columns import file_row
from .labels import HINT, LabelError, check_number

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from .loss import LossConfig


class Regression(TaskType):
    """A number in the units of its data. Logits ``[N]`` are the predictions."""

    hub_name = "text-classification"  # the Hub has no task for a regression on text; this pipeline runs it
    has_windows = True
    problem_type = "regression"
    target_type = "float64"
    ignored = ()
    metrics = ("pearson", "spearman", "mse", "mae")
    default_metric = "pearson"
    prediction_fields = ("value",)
    loss_options = ("huber",)
    card_note = "Regression heads answer in the units of their training data."

    def target_function(self, task: TaskConfig, dataset: Dataset) -> Target:
        (column,) = task.target_columns
        return lambda row, _: check_number(row[column])

    def resolve(self, task: TaskConfig, dataset: Dataset) -> TaskConfig:
        """Return the task with the mean and the standard deviation of its training targets."""
        if task.target_mean is not None and task.target_std is not None:
            return task
        (column,) = task.target_columns
        # Eight bytes per row; a list of numbers takes four times as much.
        targets = array.array("d")
        try:
            targets.extend(check_number(value) for value in dataset[column])
        except LabelError as error:
            row = file_row(dataset, len(targets))
            raise ConfigurationError(f"Column {column!r}, row {row}: {error} {HINT}") from None
        if not targets or min(targets) == max(targets):
            raise ConfigurationError(
                f"A regression task needs targets that differ; column {column!r} has {len(targets)} rows "
                f"and no value but {list(targets[:1])}. Remove the task, or give it other data."
            )
        mean = statistics.fmean(targets) if task.target_mean is None else task.target_mean
        std = statistics.pstdev(targets) if task.target_std is None else task.target_std
        return dataclasses.replace(task, target_mean=mean, target_std=std)

    def loss_arguments(self, task: TaskConfig, loss: LossConfig, rows: Dataset) -> dict[str, Any]:
        return {"huber": loss.huber}

    def check_unlabeled(self, task: TaskConfig) -> None:
        if task.target_mean is None or task.target_std is None:
            raise ConfigurationError(
                "Training rows without targets do not say what scale these have. Start from the multi-task model that "
                "has the task: its head knows."
            )

    def placeholder(self, task: TaskConfig, row: Mapping[str, Any]) -> Any:
        assert task.target_mean is not None
        return float(task.target_mean)

    def logit_shape(self, task: TaskConfig) -> tuple[int, ...]:
        return ()

    def distributions(self, logits: Tensor, targets: Sequence[Any]) -> None:
        return None

    def predictions(self, task: TaskConfig, logits: Any, rows: Dataset) -> list[Any]:
        return np.asarray(logits).tolist()

    def format_prediction(
        self, task: TaskConfig, prediction: Any, logits: np.ndarray, encoded: Mapping[str, Any], row: Mapping[str, Any]
    ) -> dict[str, Any]:
        return {"value": prediction}

    def sample_predictions(self, task: TaskConfig) -> tuple[list[Any], list[Any]]:
        return [0.0, 1.0, 3.0], [0.0, 1.0, 3.0]

    def card_lines(self, task: TaskConfig) -> list[str]:
        return ["logits.tolist()"]
