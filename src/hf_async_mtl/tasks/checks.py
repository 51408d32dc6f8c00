"""Checks of a `TaskConfig` against its type."""

from __future__ import annotations

import dataclasses
from collections import Counter
from typing import Any

from ..modeling.configuration_multitask import TaskConfig, check_max_length
from ..modeling.heads import HEADS
from ..utils import truncated_repr
from ..validation import ConfigurationError
from .labels import label_text
from .loss import LossConfig
from .registry import TASK_TYPES


def check_task(task: TaskConfig) -> None:
    """Check the fields of a task, and bring them into the form that they have in ``config.json``."""
    TASK_TYPES[task.type].check_text_columns(task)
    _check_metrics(task)
    _check_label_column(task)
    if task.label_names is not None:
        _check_label_names(task)
    if task.positive_label is not None:
        _check_positive_label(task)
    if task.max_length is not None:
        check_max_length(task.max_length)
    _check_windows(task)
    if task.target_std is not None and not task.target_std > 0:
        raise ConfigurationError(
            f"`target_std` must be greater than 0; found {task.target_std!r}. Leave it out: "
            "`task.resolve(train_dataset)` finds it."
        )


def check_loss(loss: LossConfig, name: str, task: TaskConfig) -> None:
    """Check that the options of a task's loss are its type's, with a weight for each label that is known."""
    kind = TASK_TYPES[task.type]
    for item in dataclasses.fields(loss):
        key, value = f"tasks.{name}.loss.{item.name}", getattr(loss, item.name)
        if value == item.default:
            continue
        if item.name not in kind.loss_options:
            fitting = [other for other, its in TASK_TYPES.items() if item.name in its.loss_options]
            own = f"Its options are: {', '.join(kind.loss_options) or 'none'}."
            raise ConfigurationError(
                f"`{key}` needs a task of type {' or '.join(fitting)}; found type {task.type}. {own}"
            )
        if isinstance(value, list) and task.label_names is not None and len(value) != len(task.label_names):
            raise ConfigurationError(
                f"`{key}` must have a number for each of the labels {', '.join(task.label_names)}; found {value!r}."
            )


def _check_metrics(task: TaskConfig) -> None:
    if task.metrics is None:
        task.metrics = [TASK_TYPES[task.type].default_metric]
    if isinstance(task.metrics, str):
        task.metrics = [task.metrics]
    if not task.metrics or len(set(task.metrics)) < len(task.metrics):
        raise ConfigurationError(f"`metrics` must name at least one metric, each once; found {task.metrics!r}.")


def _check_label_column(task: TaskConfig) -> None:
    if isinstance(task.label_column, list) and not TASK_TYPES[task.type].takes_label_columns:
        fitting = " or ".join(name for name, kind in TASK_TYPES.items() if kind.takes_label_columns)
        raise ConfigurationError(
            f"`label_column` must be one column in a {task.type} task; found {task.label_column!r}. Several 0/1 "
            f"columns are type {fitting}."
        )
    columns: Any = task.target_columns
    if not columns or not all(isinstance(name, str) and name for name in columns):
        raise ConfigurationError(f"`label_column` must be the name of a column; found {task.label_column!r}.")


def _check_label_names(task: TaskConfig) -> None:
    if not isinstance(task.label_names, list | tuple):
        raise ConfigurationError(f"`label_names` must be a list of names; found {task.label_names!r}.")
    task.label_names = [label_text(label) for label in task.label_names]
    if not task.has_label_names:
        raise ConfigurationError(
            f"A {task.type} task has no `label_names`; found {task.label_names!r}. Remove the key."
        )
    if len(set(task.label_names)) < len(task.label_names):
        (twice, count), *_ = Counter(task.label_names).most_common(1)
        raise ConfigurationError(
            f"`label_names` must differ from each other; found {truncated_repr(twice)} {count} times. Name it once."
        )
    if len(task.label_names) < TASK_TYPES[task.type].min_labels:
        raise ConfigurationError(
            f"A {task.type} task needs two classes or more; found {task.label_names!r}. Remove the task, or "
            "provide rows of at least two classes."
        )
    if isinstance(task.label_column, list) and len(task.label_column) != len(task.label_names):
        raise ConfigurationError(
            f"`label_names` must name each of the columns {task.label_column!r}; found {task.label_names!r}. "
            "Without the key, the labels have the names of their columns."
        )


def _check_positive_label(task: TaskConfig) -> None:
    task.positive_label = label_text(task.positive_label)
    if not TASK_TYPES[task.type].has_positive_label:
        fitting = " or ".join(name for name, kind in TASK_TYPES.items() if kind.has_positive_label)
        raise ConfigurationError(
            f"`positive_label` is for type {fitting}; found {task.positive_label!r} in a {task.type} task. Remove it."
        )
    names = task.label_names
    if names is not None and (len(names) != 2 or task.positive_label not in names):
        raise ConfigurationError(
            f"`positive_label` must be one of two classes; found {task.positive_label!r}, and the classes "
            f"{', '.join(names[:10])}{', ...' if len(names) > 10 else ''}. Correct it, or remove the key."
        )


def _check_windows(task: TaskConfig) -> None:
    kind, stride, pooling = TASK_TYPES[task.type], task.doc_stride, task.doc_pooling
    if stride is not None and not (kind.has_windows and isinstance(stride, int) and stride >= 0):
        fitting = " or ".join(name for name, other in TASK_TYPES.items() if other.has_windows)
        raise ConfigurationError(
            f"`doc_stride` must be a whole number of at least 0, in a task of type {fitting}; found {stride!r} in a "
            f"{task.type} task."
        )
    if pooling is None:
        return
    pooled = [name for name, other in TASK_TYPES.items() if other.has_windows and HEADS[name].unit == "example"]
    if pooling not in ("mean", "max") or stride is None or task.type not in pooled:
        raise ConfigurationError(
            "`doc_pooling` must be mean or max, and stands beside a `doc_stride` in a task of type "
            f"{' or '.join(pooled)}; found {pooling!r} in a {task.type} task with{'out' if stride is None else ''} a "
            "stride."
        )
