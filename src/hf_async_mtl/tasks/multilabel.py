"""Multi-label classification: any number of labels per text or pair of texts."""

from __future__ import annotations

import dataclasses
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow.compute as pc
import torch

from ..modeling.configuration_multitask import TaskConfig
from ..modeling.losses import IGNORE
from ..utils import truncated_repr
from .base import Target, TaskType, label_values
from .classification import CARD_LABELS
from .columns import column_pieces
from .labels import LabelError, label_counts, label_encoder
from .loss import BALANCED

if TYPE_CHECKING:
    from datasets import Dataset

    from .loss import LossConfig


class Multilabel(TaskType):
    """Any of C labels, from lists of labels, vectors of 0 and 1, or C columns of 0 and 1.

    Logits and predictions (0 or 1) are ``[N, C]``.
    """

    hub_name = "text-classification"
    has_windows = True
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
        column, count = task.label_column, task.num_labels
        if vector_length(dataset, column, count) is not None:
            return lambda row, _: [_zero_or_one(value) for value in _checked_list(row[column])]
        encode = label_encoder(task, dataset, self.ignored)
        size = count + len(encode.unknown)

        def target(row: Mapping[str, Any], _: Any) -> np.ndarray:
            labels = _checked_list(row[column])
            found = [index for index in map(encode, labels) if index != IGNORE]
            if len(set(found)) < len(found):
                raise LabelError(
                    f"A multilabel label must list each label that applies once; found {truncated_repr(labels)}. "
                    f"Vectors of 0 and 1 must all have the length of the label names, {count}."
                )
            vector = np.full(size, IGNORE if labels and not found else 0, np.float32)
            vector[found] = 1
            return vector

        return target

    def resolve(self, task: TaskConfig, dataset: Dataset) -> TaskConfig:
        if task.label_names is None and isinstance(task.label_column, list):
            return dataclasses.replace(task, label_names=list(task.label_column))
        if task.label_names is None and isinstance(task.label_column, str):
            length = vector_length(dataset, task.label_column)
            if length is not None:
                return dataclasses.replace(task, label_names=list(map(str, range(length))))
        return super().resolve(task, dataset)

    def loss_arguments(self, task: TaskConfig, loss: LossConfig, rows: Dataset) -> dict[str, Any]:
        weights = loss.pos_weight
        if weights == BALANCED:
            labels = label_values(rows).reshape(-1, task.num_labels)
            without, having = (labels == 0).sum(0), (labels == 1).sum(0)
            weights = np.where(without * having > 0, without / np.maximum(having, 1), 1.0).tolist()
        return {"pos_weight": weights}

    def class_counts(self, task: TaskConfig, dataset: Dataset) -> tuple[Counter[Any], dict[Any, int]]:
        """Return how often each label applies (index), does not apply (None) and is ignored (-100), of 0 and 1 too."""
        if isinstance(task.label_column, list):
            present = [column for column in task.label_column if type(dataset.features.get(column)).__name__ == "Value"]
            values = [label_counts(dataset, column) for column in present]
        else:
            length = vector_length(dataset, task.label_column, task.num_labels)
            if not length:
                return super().class_counts(task, dataset)
            values = _vector_counts(dataset, task.label_column, length)
        counts: Counter[Any] = Counter()
        for index, found in enumerate(values):
            counts.update({index: found[1], None: found[0], IGNORE: found[IGNORE]})
        return counts, {}

    def check_known(self, task: TaskConfig, dataset: Dataset) -> None:
        if isinstance(task.label_column, str) and not vector_length(dataset, task.label_column, task.num_labels):
            super().check_known(task, dataset)

    def placeholder(self, task: TaskConfig, row: Mapping[str, Any]) -> Any:
        assert task.label_names is not None
        return 0 if isinstance(task.label_column, list) else [task.label_names[0]]

    def distributions(self, logits: torch.Tensor, targets: Sequence[Any]) -> torch.Tensor:
        # Both outcomes from the logit: 1 - sigmoid(z) loses its digits where z is large.
        return torch.stack([-logits.flatten(), logits.flatten()], dim=-1).sigmoid()

    def predictions(self, task: TaskConfig, logits: Any, rows: Dataset) -> list[Any]:
        return (np.asarray(logits) > 0).astype(int).tolist()

    def metric_predictions(self, task: TaskConfig, logits: Any, rows: Dataset) -> list[Any]:
        """Return 0 or 1 for each label; -100 for a label that is ignored, 0 for one that the head cannot predict."""
        chosen, labels = np.asarray(logits) > 0, np.asarray(rows["labels"])
        chosen = np.pad(chosen, ((0, 0), (0, labels.shape[1] - chosen.shape[1])))
        return np.where(labels == IGNORE, IGNORE, chosen).tolist()

    def probabilities(self, task: TaskConfig, logits: Any) -> list[Any]:
        return torch.as_tensor(np.asarray(logits)).double().sigmoid().tolist()

    def references(self, task: TaskConfig, rows: Dataset) -> list[Any]:
        return [
            None if all(label == IGNORE for label in labels) else [int(label) for label in labels]
            for labels in rows["labels"]
        ]

    def known_targets(self, task: TaskConfig, targets: Sequence[Any]) -> list[Any]:
        count = task.num_labels
        return [target[:count] for target in targets]

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


def vector_length(dataset: Dataset, column: str, count: int | None = None) -> int | None:
    """Return the length of the vectors of 0 and 1 in a column; None if its rows are lists of labels.

    Vectors have one length, that of the ``count`` label names if these are known. -100 in a vector is ignored.
    """
    lengths, feature = set(), dataset.features.get(column)
    if type(getattr(feature, "feature", None)).__name__ != "Value":
        return None
    for _, labels in column_pieces(dataset, column):
        lengths |= set(pc.unique(pc.list_value_length(labels)).to_pylist())
        if len(lengths - {None}) > 1:
            return None
    length = next(iter(lengths - {None}), 0)
    values = label_counts(dataset, column)
    is_vector = not any(isinstance(value, str) for value in values) and values.keys() <= {0, 1, IGNORE}
    # A list of one label is a vector only where there is one label.
    fits = length >= 2 if count is None else length == count and (count > 1 or 1 in values)
    return length if is_vector and fits else None


def _vector_counts(dataset: Dataset, column: str, length: int) -> list[Counter[int]]:
    """Return how often 0, 1 and -100 occur at each place of the vectors in a column."""
    counts: list[Counter[int]] = [Counter() for _ in range(length)]
    for _, labels in column_pieces(dataset, column):
        vectors = labels.flatten().to_numpy(zero_copy_only=False).reshape(-1, length)
        for value in (0, 1, IGNORE):
            for place, number in enumerate((vectors == value).sum(0).tolist()):
                counts[place][value] += number
    return counts


def _checked_list(labels: Any) -> list[Any]:
    if not isinstance(labels, list):
        raise LabelError(f"A multilabel label must be a list of labels; found {truncated_repr(labels)}.")
    return labels


def _zero_or_one(value: Any) -> float:
    if value not in (0, 1, IGNORE):
        way_out = " If it is not known, write -100." if value is None else ""
        raise LabelError(f"A column of a multilabel task must hold 0 or 1; found {truncated_repr(value)}.{way_out}")
    return float(value)
