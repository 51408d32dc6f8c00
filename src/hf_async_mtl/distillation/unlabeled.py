"""Training rows without labels, for a task whose teacher is from outside: its logits say what the labels would have."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from ..modeling.configuration_multitask import ConfigurationError, TaskConfig

__all__ = ["check_unlabelled", "is_unlabelled", "with_placeholders"]


def is_unlabelled(rows: Dataset, task: TaskConfig) -> bool:
    """Whether raw rows have none of the columns that hold the task's labels."""
    return not any(column in rows.column_names for column in task.label_columns)


def check_unlabelled(task: TaskConfig) -> None:
    """Check that a task without labelled training rows knows what it would have found in them.

    Raises:
        ConfigurationError: Its labels, or the scale of its targets, are not known.
    """
    if task.type in ("classification", "multilabel", "token_classification") and task.labels is None:
        raise ConfigurationError(
            "Training rows without labels do not say what the labels are. Give `labels`, in the order of the teacher."
        )
    if task.type == "regression" and (task.target_mean is None or task.target_std is None):
        raise ConfigurationError(
            "Training rows without targets do not say what scale these have. Start from the bundle that has the task: "
            "its head knows."
        )


def with_placeholders(rows: Dataset, task: TaskConfig) -> Dataset:
    """Raw rows with a label each that is valid and means nothing, so that they go the way of all others.

    No loss may be computed on them: the task distils from its first step to its last.

    Args:
        rows: Raw rows without labels.
        task: The resolved task.

    Examples:
        >>> task = TaskConfig("classification", ["text"], labels=["neg", "pos"])
        >>> with_placeholders(Dataset.from_dict({"text": ["good"]}), task)[0]
        {'text': 'good', 'label': 'neg'}
    """
    return rows.map(_add_placeholder, fn_kwargs={"task": task.to_dict()}, desc="Adding places for labels")


def _add_placeholder(row: Mapping[str, Any], task: Mapping[str, Any]) -> dict[str, Any]:
    label, kind = task["label"], task["type"]
    if isinstance(label, list):
        return dict.fromkeys(label, 0)
    if kind == "question_answering":
        # An answer has to stand in its context.
        context = row[task["text"][1]]
        if not isinstance(context, str) or not context.strip():
            raise ConfigurationError(
                f"Column {task['text'][1]!r}: a context must be a text with an answer in it; found {context!r}."
            )
        start = len(context) - len(context.lstrip())
        return {label: {"text": [context[start : start + 1]], "answer_start": [start]}}
    if kind == "token_classification":
        # What is no list of words is told with its row, when it is tokenized.
        return {label: [task["labels"][0]] * len(row[task["text"][0]] or ())}
    if kind == "multilabel":
        return {label: [task["labels"][0]]}
    if kind == "regression":
        return {label: float(task["target_mean"])}
    return {label: 0 if kind == "multiple_choice" else task["labels"][0]}
