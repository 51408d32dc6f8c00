"""Raw rows to encoded sets of tasks."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

from datasets import Dataset
from transformers.utils import logging

from ..data.dataset import TaskDataset
from ..data.loading import is_unlabeled
from ..data.tokenization import encode, truncation_warning
from ..modeling.configuration_multitask import ConfigurationError, TaskConfig
from .arguments import AsyncMTLTrainingArguments
from .checks import find_task, task_of

__all__ = ["TaskSets"]

logger = logging.get_logger(__name__)


class TaskSets:
    """Encode the sets of some tasks as a model reads them.

    Args:
        tasks: All tasks of the model, resolved.
        tokenizer: The encoder's.
        max_length: Of the tasks that have none of their own, in tokens.
        args: Of the run: one process of a machine tokenizes, the others read its cache.
    """

    def __init__(
        self, tasks: Mapping[str, TaskConfig], tokenizer: Any, max_length: int, args: AsyncMTLTrainingArguments
    ) -> None:
        self.tasks = tasks
        self.tokenizer = tokenizer
        self.max_length = max_length
        self.args = args

    def length_of(self, task: str) -> int:
        """Return the longest segment of a task, in tokens."""
        return self.tasks[task].max_length or self.max_length

    def monitored(self, sets: Collection[str]) -> list[str]:
        """Return ``<task>_<metric>`` of the monitored metrics of the tasks among some sets.

        Raises:
            ConfigurationError: There is none: sets named ``<task>_<suffix>`` are not monitored.
        """
        found = [f"{name}_{self.tasks[name].monitored}" for name in sets if name in self.tasks]
        if not found:
            raise ConfigurationError(
                f"`eval_dataset` must have a set of a task ({', '.join(self.tasks)}); found "
                f"{', '.join(sets) or 'none'}."
            )
        return found

    def encode(self, sets: Mapping[str, Dataset | TaskDataset], *, needs_labels: bool = True) -> dict[str, TaskDataset]:
        """Encode sets that are named ``<task>`` or ``<task>_<suffix>``; the result is in the order of the tasks.

        Args:
            sets: Name -> raw rows; an encoded set is left as it is.
            needs_labels: False to take raw rows without labels too.
        """
        order = list(self.tasks)
        encoded = {}
        for name in sorted(sets, key=lambda name: order.index(task_of(name, self.tasks))):
            rows = sets[name]
            if not isinstance(rows, TaskDataset):
                rows = self._encode(rows, name, task_of(name, self.tasks), needs_labels)
            encoded[name] = rows
        return encoded

    def encode_one(self, rows: Dataset | TaskDataset, *, needs_labels: bool = True) -> TaskDataset:
        """Encode one set, whose task is found by its columns.

        Raises:
            ConfigurationError: The columns are those of no task, or of several.
        """
        if isinstance(rows, TaskDataset):
            return rows
        if not isinstance(rows, Dataset):
            raise ConfigurationError(
                f"A set must be a `datasets.Dataset`, or a dictionary of one per task; found {type(rows).__name__}."
            )
        task = find_task(rows.column_names, self.tasks)
        return self._encode(rows, task, task, needs_labels)

    def _encode(self, rows: Dataset, name: str, task_name: str, needs_labels: bool) -> TaskDataset:
        task = self.tasks[task_name]
        with_labels = needs_labels or not is_unlabeled(rows, task)
        with self.args.main_process_first():
            encoded = encode(rows, name, task, self.tokenizer, self.length_of(task_name), with_labels=with_labels)
        if not with_labels and "labels" in encoded.column_names:
            # Token tasks have the places of words there, which are no labels to evaluate against.
            encoded = encoded.remove_columns("labels")
        return TaskDataset(task_name, list(self.tasks).index(task_name), task, encoded)

    def warn_truncated(self, sets: Mapping[str, Mapping[str, TaskDataset]]) -> None:
        """Warn of the texts that are longer than their task reads.

        Args:
            sets: Name of a split -> its sets.
        """
        for name, task in self.tasks.items():
            rows = {split: found[name].rows for split, found in sets.items() if name in found}
            message = truncation_warning(name, task, self.length_of(name), rows)
            if message is not None and self.args.should_log:
                logger.warning(f"{message} A larger `max_length` reads more, in more time.")
