"""Tokenized examples: of one task, and of all tasks in one index space."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset

from ..modeling.configuration_multitask import TaskConfig
from ..tasks.registry import TASK_TYPES

# Examples that `TaskDataset.read` holds in memory at a time.
_READ = 32


class TaskDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """One tokenized split of one task. An example has its task's id and its own index in the split.

    ``task_id`` is its index in ``config.task_order``; ``rows`` are those of `hf_async_mtl.data.tokenization.encode`.
    """

    def __init__(self, name: str, task_id: int, task: TaskConfig, rows: Dataset) -> None:
        self.name = name
        self.task_id = task_id
        self.task = task
        self.rows = rows
        keys = [key for key in ("input_ids", "token_type_ids", "labels") if key in rows.column_names]
        self._inputs = rows.select_columns(keys)

    def __len__(self) -> int:
        return len(self.rows)

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several examples with one read of the table, as a `DataLoader` asks for them."""
        columns = self._inputs[list(indices)]
        if "labels" in columns:
            columns["labels"] = TASK_TYPES[self.task.type].known_targets(self.task, columns["labels"])
        return [
            {"task_id": self.task_id, "example_id": index, **{name: values[i] for name, values in columns.items()}}
            for i, index in enumerate(indices)
        ]

    def read(self, indices: Sequence[int]) -> Iterator[dict[str, Any]]:
        """Yield many examples, reading a few at a time: memory does not grow with their number."""
        for first in range(0, len(indices), _READ):
            yield from self.__getitems__(indices[first : first + _READ])


class MultiTaskDataset(torch.utils.data.Dataset[dict[str, Any]]):
    """The examples of all tasks, in the order of their ids.

    A negative index ``~i`` repeats example ``i`` only to fill a batch (see `MultiTaskSampler`). Its ``example_id`` is
    negative too; `decode_example_ids` decodes it.
    """

    def __init__(self, tasks: Sequence[TaskDataset]) -> None:
        self.tasks = list(tasks)
        self._starts = np.cumsum([0, *(len(task) for task in self.tasks)])

    def __len__(self) -> int:
        return int(self._starts[-1])

    def __getitem__(self, index: int) -> dict[str, Any]:
        return self.__getitems__([index])[0]

    def __getitems__(self, indices: Sequence[int]) -> list[dict[str, Any]]:
        """Return several examples in the order of their indices, with one read per task."""
        given = np.asarray(indices)
        positive = np.where(given < 0, ~given, given)
        task_indices = np.searchsorted(self._starts, positive, side="right") - 1
        examples: dict[int, dict[str, Any]] = {}
        for task_index in np.unique(task_indices).tolist():
            positions = np.flatnonzero(task_indices == task_index)
            own = (positive[positions] - self._starts[task_index]).tolist()
            examples.update(zip(positions.tolist(), self.tasks[task_index].__getitems__(own), strict=True))
        for position in np.flatnonzero(given < 0).tolist():
            examples[position]["example_id"] = ~examples[position]["example_id"]
        return [examples[position] for position in range(len(indices))]


def decode_example_ids(example_ids: Sequence[int]) -> tuple[list[int], list[int]]:
    """Return the indices of a batch's examples in the datasets of their tasks, and the positions of those that count.

    Examples:
        >>> decode_example_ids([7, ~0])
        ([7, 0], [0])
    """
    indices = [example if example >= 0 else ~example for example in example_ids]
    return indices, [position for position, example in enumerate(example_ids) if example >= 0]
