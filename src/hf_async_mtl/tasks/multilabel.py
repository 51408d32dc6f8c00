"""Multi-label classification: any number of labels per text or pair of texts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import torch

from ..modeling.configuration_multitask import TaskConfig
from ..utils import truncated_repr
from .base import Target, TaskType, label_values
from .classification import CARD_LABELS
from .labels import LabelError, label_encoder
from .loss import BALANCED

if TYPE_CHECKING:
    from datasets import Dataset

    from .loss import LossConfig


class Multilabel(TaskType):
    """Any of C labels, from a list column or from C columns of 0 and 1. Logits and predictions (0 or 1) ``[N, C]``."""

    hub_name = "text-classification"
    problem_type = "multi_label_classification"
    target_type = ["float32"]
    metrics = (
        *("accuracy", "macro_f1", "micro_f1", "weighted_f1"),
        *("macro_precision", "micro_precision", "macro_recall", "micro_recall"),
        *("roc_auc", "average_precision", "log_loss"),
    )
    default_metric = "micro_f1"
    min_labels = 1
    takes_label_columns = True
    prediction_fields = ("labels", "scores")
    loss_options = ("pos_weight",)
    has_label_lists = True

    def target_function(self, task: TaskConfig, dataset: Dataset) -> Target:
        if isinstance(task.label_column, list):
            columns = task.label_column
            return lambda row, _: [_zero_or_one(row[column]) for column in columns]
        column, encode, count = task.label_column, label_encoder(task, dataset), task.num_labels

        def target(row: Mapping[str, Any], _: Any) -> np.ndarray:
            labels = row[column]
            if not isinstance(labels, list):
                raise LabelError(f"A multilabel label must be a list of labels; found {truncated_repr(labels)}.")
            chosen = {encode(value) for value in labels}
            if len(chosen) < len(labels):
                raise LabelError(
                    f"A multilabel label must list each label that applies once; found {truncated_repr(labels)}. Give "
                    "vectors of 0 and 1 as several columns."
                )
            vector = np.zeros(count, np.float32)
            vector[list(chosen)] = 1
            return vector

        return target

    def resolve(self, task: TaskConfig, dataset: Dataset) -> TaskConfig:
        if task.label_names is None and isinstance(task.label_column, list):
            return dataclasses.replace(task, label_names=list(task.label_column))
        return super().resolve(task, dataset)

    def loss_arguments(self, task: TaskConfig, loss: LossConfig, rows: Dataset) -> dict[str, Any]:
        weights = loss.pos_weight
        if weights == BALANCED:
            labels = label_values(rows).reshape(-1, task.num_labels)
            without, having = (labels == 0).sum(0), (labels == 1).sum(0)
            weights = np.where(without * having > 0, without / np.maximum(having, 1), 1.0).tolist()
        return {"pos_weight": weights}

    def placeholder(self, task: TaskConfig, row: Mapping[str, Any]) -> Any:
        assert task.label_names is not None
        return 0 if isinstance(task.label_column, list) else [task.label_names[0]]

    def distributions(self, logits: torch.Tensor, targets: Sequence[Any]) -> torch.Tensor:
        # Both outcomes from the logit: 1 - sigmoid(z) loses its digits where z is large.
        return torch.stack([-logits.flatten(), logits.flatten()], dim=-1).sigmoid()

    def predictions(self, task: TaskConfig, logits: Any, rows: Dataset) -> list[Any]:
        return (np.asarray(logits) > 0).astype(int).tolist()

    def probabilities(self, task: TaskConfig, logits: Any) -> list[Any]:
        return torch.as_tensor(np.asarray(logits)).double().sigmoid().tolist()

    def references(self, task: TaskConfig, rows: Dataset) -> list[Any]:
        return [[int(label) for label in labels] for labels in rows["labels"]]

    def format_prediction(
        self, task: TaskConfig, prediction: Any, logits: np.ndarray, encoded: Mapping[str, Any], row: Mapping[str, Any]
    ) -> dict[str, Any]:
        assert task.label_names is not None
        probabilities = torch.from_numpy(logits).sigmoid().tolist()
        chosen = [label for label, hit in zip(task.label_names, prediction, strict=True) if hit]
        return {"labels": chosen, "scores": dict(zip(task.label_names, probabilities, strict=True))}

    def sample_predictions(self, task: TaskConfig) -> tuple[list[Any], list[Any]]:
        rows = np.eye(len(task.label_names or ["one", "two"]), dtype=int).tolist()
        return rows, rows

    def card_lines(self, task: TaskConfig) -> list[str]:
        chosen = "[[label for label, score in zip(labels, row.sigmoid()) if score > 0.5] for row in logits]"
        return [CARD_LABELS, chosen]


def _zero_or_one(value: Any) -> float:
    if value not in (0, 1):
        raise LabelError(f"A column of a multilabel task must hold 0 or 1; found {truncated_repr(value)}.")
    return float(value)
