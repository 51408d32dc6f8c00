"""Training rows without labels, for a task with an external teacher, whose logits take the place of the labels."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from datasets import Dataset

from ..modeling.configuration_multitask import TaskConfig
from ..tasks.registry import TASK_TYPES


def with_placeholders(rows: Dataset, task: TaskConfig) -> Dataset:
    """Add placeholder labels, so that unlabeled rows can be tokenized like the others.

    No loss may be computed on them: the task distils from its first step to its last.

    Examples:
        >>> task = TaskConfig("classification", ["text"], label_names=["neg", "pos"])
        >>> with_placeholders(Dataset.from_dict({"text": ["good"]}), task)[0]
        {'text': 'good', 'label': 'neg'}
    """
    return rows.map(_add_placeholder, fn_kwargs={"task": task}, desc="Adding placeholder labels")


def _add_placeholder(row: Mapping[str, Any], task: TaskConfig) -> dict[str, Any]:
    return dict.fromkeys(task.target_columns, TASK_TYPES[task.type].placeholder(task, row))
