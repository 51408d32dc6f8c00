"""Tokenize the raw sets that the Trainer is given, and find the task of each."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from datasets import Dataset
from transformers.utils import logging

from ..data.dataset import TaskDataset
from ..data.loading import is_unlabeled
from ..data.tokenization import encode, truncation_warning
from ..modeling.configuration_multitask import TaskConfig
from ..tasks.rows import is_scored, label_messages, labeled_sets, positive_class, untrained_classes
from ..validation import ConfigurationError
from .arguments import AsyncMTLTrainingArguments

logger = logging.get_logger(__name__)


def task_of(name: str, tasks: Collection[str]) -> str:
    """Return the task of an evaluation set: its own name, or the longest task name before an underscore."""
    found = [task for task in tasks if name == task or name.startswith(f"{task}_")]
    if not found:
        raise ConfigurationError(
            f"An evaluation set must be named as a task ({', '.join(tasks)}) or <task>_<suffix>; found {name!r}."
        )
    return max(found, key=len)


def find_task(columns: Collection[str], tasks: Mapping[str, TaskConfig]) -> str:
    """Return the only task whose text columns a set has; of several, the only one whose label columns it has too."""
    fitting = [name for name, task in tasks.items() if {*task.input_columns} <= {*columns}]
    labeled = [name for name in fitting if {*tasks[name].target_columns} <= {*columns}]
    found = labeled or fitting
    if len(found) != 1:
        raise ConfigurationError(
            f"The columns of a single set must be those of one task; {', '.join(columns)} fit "
            f"{', '.join(found) or 'none'}. Name its task: {{task: rows}}."
        )
    return found[0]


@dataclass(frozen=True)
class TaskSets:
    """Encode the sets of a model's tasks. ``max_length`` is of tasks without their own, in tokens."""

    tasks: Mapping[str, TaskConfig]
    tokenizer: Any
    max_length: int
    args: AsyncMTLTrainingArguments

    def length_of(self, task: str) -> int:
        """Return the longest segment of a task, in tokens."""
        return self.tasks[task].max_length or self.max_length

    def monitored(self, sets: Collection[str]) -> dict[str, str]:
        """Return the monitored metrics of the tasks among some sets, by task."""
        found = {name: self.tasks[name].monitored for name in sets if name in self.tasks}
        if not found:
            raise ConfigurationError(
                f"`eval_dataset` must have a set of a task ({', '.join(self.tasks)}); found "
                f"{', '.join(sets) or 'none'}."
            )
        return found

    def labeled(
        self, train: Mapping[str, Dataset], evaluation: Mapping[str, Dataset]
    ) -> tuple[dict[str, Dataset], dict[str, Dataset]]:
        """Return raw sets without the rows that have no label of their task, and warn once per task of these."""
        train, evaluation = dict(train), dict(evaluation)
        for name in self.tasks:
            kinds = {key: f"validation{key[len(name) :]}" for key in evaluation if task_of(key, self.tasks) == name}
            own = {"train": train[name]} if name in train else {}
            found = self._labeled(name, own | {kind: evaluation[key] for key, kind in kinds.items()})
            train |= {name: found["train"]} if own else {}
            evaluation |= {key: found[kind] for key, kind in kinds.items()}
            self._warn(positive_class(name, self.tasks[name]) if own else None)
            if own and not is_unlabeled(train[name], self.tasks[name]):
                self._warn(untrained_classes(name, self.tasks[name], train[name], [evaluation[key] for key in kinds]))
        return train, evaluation

    def _warn(self, message: str | None) -> None:
        if message is not None and self.args.should_log:
            logger.warning(message)

    def _labeled(self, task_name: str, sets: Mapping[str, Dataset]) -> dict[str, Dataset]:
        """Return some sets of a task, by their kind, without the rows that have no label."""
        found, message = labeled_sets(task_name, self.tasks[task_name], sets)
        self._warn(message)
        return found

    def encode(
        self, sets: Mapping[str, Dataset | TaskDataset], *, needs_labels: bool = True, split: str = "validation"
    ) -> dict[str, TaskDataset]:
        """Encode sets that are named ``<task>`` or ``<task>_<suffix>``; the result is in the order of the tasks.

        ``split`` names them in messages; ``train`` must have no other labels than the tasks.
        """
        order = list(self.tasks)
        encoded = {}
        for name in sorted(sets, key=lambda name: order.index(task_of(name, self.tasks))):
            rows = sets[name]
            if not isinstance(rows, TaskDataset):
                rows = self._encode(rows, name, task_of(name, self.tasks), needs_labels, split)
            encoded[name] = rows
        return encoded

    def encode_one(
        self, rows: Dataset | TaskDataset, *, needs_labels: bool = True, split: str = "validation"
    ) -> TaskDataset:
        """Encode one raw set, whose task is found by its columns; an encoded one is returned as it is."""
        if isinstance(rows, TaskDataset):
            return rows
        if not isinstance(rows, Dataset):
            raise ConfigurationError(
                f"A set must be a `datasets.Dataset`, or a dictionary of one per task; found {type(rows).__name__}."
            )
        task = find_task(rows.column_names, self.tasks)
        return self._encode(rows, task, task, needs_labels, split)

    def _encode(self, rows: Dataset, name: str, task_name: str, needs_labels: bool, split: str) -> TaskDataset:
        task, split = self.tasks[task_name], {"eval": "validation"}.get(split, split) + name[len(task_name) :]
        if needs_labels:
            rows = self._labeled(task_name, {split: rows})[split]
        # All rows are predicted. If the label of some is null, none is scored.
        with_labels = needs_labels or (not is_unlabeled(rows, task) and is_scored(rows, task))
        with self.args.main_process_first():
            encoded = encode(
                *(rows, task_name, task, self.tokenizer, self.length_of(task_name)),
                with_labels=with_labels,
                split=split,
            )
        # After the rows are encoded: a label that is refused is no error of the model.
        for message in label_messages(task_name, task, rows, split) if with_labels else ():
            self._warn(message)
        return TaskDataset(task_name, list(self.tasks).index(task_name), task, encoded)

    def warn_truncated(self, sets: Mapping[str, Mapping[str, TaskDataset]]) -> None:
        """Warn of the texts that are longer than their task reads. ``sets``: split -> name -> set."""
        for name, task in self.tasks.items():
            rows = {split: found[name].rows for split, found in sets.items() if name in found}
            message = truncation_warning(name, task, self.length_of(name), rows)
            if message is not None and self.args.should_log:
                logger.warning(f"{message} A larger `max_length` reads more, in more time.")
