"""Classification: one class per text or pair of texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..modeling.configuration_multitask import TaskConfig
from ..utils import truncated_repr
from ..validation import ConfigurationError
from .base import Target, TaskType, label_values
from .labels import ignored_labels, label_counts, label_encoder
from .loss import BALANCED
from .special_labels import METRICS_OF_ONE_CLASS, known_positive, positive_index

if TYPE_CHECKING:
    from datasets import Dataset

    from .loss import LossConfig

CARD_LABELS = 'labels = model.config.tasks["{name}"]["label_names"]'
"""The line of a card example that reads the class names."""


class Classification(TaskType):
    """One class out of C. Logits ``[N, C]``; predictions are class indices."""

    hub_name = "text-classification"
    has_windows = True
    problem_type = "single_label_classification"
    metrics = (
        *("accuracy", "f1", "macro_f1", "micro_f1", "weighted_f1", "matthews_correlation", "balanced_accuracy"),
        *("precision", "macro_precision", "micro_precision", "recall", "macro_recall", "micro_recall"),
        *("roc_auc", "average_precision", "log_loss"),
    )
    default_metric = "accuracy"
    prediction_fields = ("label", "score")
    loss_options = ("class_weights", "label_smoothing")
    has_positive_label = True

    def target_function(self, task: TaskConfig, dataset: Dataset) -> Target:
        (column,), encode = task.target_columns, label_encoder(task, dataset)
        return lambda row, _: encode(row[column])

    def resolve(self, task: TaskConfig, dataset: Dataset) -> TaskConfig:
        """Return the task with its class names and, if a metric is that of one class, the positive one."""
        task = super().resolve(task, dataset)
        names = task.label_names
        is_read = any(self.class_of_metric(task, metric) is not None for metric in task.metrics or ())
        if names is None or not is_read or task.positive_label is not None:
            return task
        counts, _ = self.class_counts(task, dataset)
        known = known_positive(names)
        rarer = 0 if counts[0] < counts[1] else 1
        return dataclasses.replace(task, positive_label=names[rarer if known is None else known])

    def class_of_metric(self, task: TaskConfig, metric: str) -> str | None:
        names = task.label_names
        if metric not in METRICS_OF_ONE_CLASS or names is None or len(names) != 2:
            return None
        return names[positive_index(task)]

    def in_metric_order(self, task: TaskConfig, values: list[Any]) -> list[Any]:
        """Return the values with the positive one of two classes as the second."""
        if task.num_labels != 2 or positive_index(task) == 1:
            return values
        # Beside the two there may be references that are no classes of the task, and probabilities [N, 2].
        swap = {0: 1, 1: 0}
        return [value[::-1] if isinstance(value, list) else swap.get(value, value) for value in values]

    def check_training_labels(self, task: TaskConfig, dataset: Dataset) -> None:
        (column,) = task.target_columns
        found = label_counts(dataset, column).keys() - ignored_labels(task, self.ignored)
        if len(found) < 2:
            raise ConfigurationError(
                f"A classification task needs two classes or more in its training rows; column {column!r} has none but "
                f"{truncated_repr(found.pop()) if found else 'labels that are ignored'}. Remove the task, or give it "
                "data in which it can be wrong."
            )

    def loss_arguments(self, task: TaskConfig, loss: LossConfig, rows: Dataset) -> dict[str, Any]:
        return class_loss_arguments(task, loss, rows)

    def placeholder(self, task: TaskConfig, row: Mapping[str, Any]) -> Any:
        assert task.label_names is not None
        return task.label_names[0]

    def format_prediction(
        self, task: TaskConfig, prediction: Any, logits: np.ndarray, encoded: Mapping[str, Any], row: Mapping[str, Any]
    ) -> dict[str, Any]:
        assert task.label_names is not None
        return {"label": task.label_names[prediction], "score": float(torch.from_numpy(logits).softmax(-1)[prediction])}

    def sample_predictions(self, task: TaskConfig) -> tuple[list[Any], list[Any]]:
        classes = list(range(len(task.label_names or ["no", "yes"])))
        return classes, classes

    def card_lines(self, task: TaskConfig) -> list[str]:
        return [CARD_LABELS, "[labels[row.argmax()] for row in logits]"]


def class_loss_arguments(task: TaskConfig, loss: LossConfig, rows: Dataset) -> dict[str, Any]:
    """Return the arguments of `cross_entropy` for a task with one class per row or per word."""
    weights = loss.class_weights
    if weights == BALANCED:
        labels = label_values(rows)
        counts = np.bincount(labels[labels >= 0], minlength=task.num_labels)
        present = np.count_nonzero(counts)
        weights = np.where(counts > 0, counts.sum() / (present * np.maximum(counts, 1)), 1.0).tolist()
    return {"weight": weights, "label_smoothing": loss.label_smoothing}
