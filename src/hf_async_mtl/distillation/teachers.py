"""The teachers of a run: snapshots while tasks learn, recorded logits once they distill."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from ..data.fingerprint import fingerprint
from ..data.mixing import EncodedTask
from ..data.tokenization import unit_counts
from ..modeling.configuration_multitask import TaskConfig
from ..modeling.heads import Head
from ..modeling.packing import Layout
from ..training.arguments import DistillationConfig
from .logits import LogitsWriter, check_room
from .snapshots import RecordedLogits, TeacherStore
from .teacher_quality import near_one_hot_warning, normalized_entropy

__all__ = ["Teachers", "logit_columns"]

logger = logging.get_logger(__name__)

_SAMPLE = 10_000
"""Number of examples over which the entropy of a teacher is measured; enough for three digits."""


def logit_columns(task: TaskConfig) -> int | None:
    """The columns of a task's logits; None for a regression, whose logits are numbers."""
    if task.type == "regression":
        return None
    if isinstance(task.text_columns, dict):
        return len(task.text_columns["choices"])
    return task.num_labels


class Teachers:
    """What a run knows of its teachers, on disk and in memory.

    Args:
        folder: Where the files are; see `TeacherStore`.
        config: How tasks learn from them.
        train: Task -> its training examples.

    Attributes:
        examples: Task -> `fingerprint` of its training examples, so that a run is not resumed with others.
    """

    def __init__(self, folder: Path, config: DistillationConfig, train: Mapping[str, EncodedTask]) -> None:
        self.store = TeacherStore(folder)
        self.config = config
        self.train = dict(train)
        self.examples: dict[str, str] = {}
        self._opened: dict[str, RecordedLogits] = {}

    def begin(self) -> None:
        """Forget what an earlier run left in memory, and look at the training examples."""
        self._opened.clear()
        self.examples = {name: fingerprint(task.rows) for name, task in self.train.items()}

    def writer(self, task: str, step: int) -> LogitsWriter:
        """Begin to record a task's teacher, of a step."""
        train = self.train[task]
        units = unit_counts(train.task, train.rows)
        return RecordedLogits.writer(
            self.store.logits_path(task), units, logit_columns(train.task), self.examples[task], step
        )

    def check_room(self, tasks: Iterable[str]) -> None:
        """Raise a `TeacherError` unless the disk can hold the recorded logits of some tasks."""
        needed = 0
        for task in tasks:
            train = self.train[task]
            needed += 4 * int(unit_counts(train.task, train.rows).sum()) * (logit_columns(train.task) or 1)
        check_room(self.store.folder, needed, "Recording the teachers' logits")

    def read(self, task: str, store: TeacherStore) -> RecordedLogits:
        """A task's recorded logits, which are refused where they are those of other examples or another task."""
        train, recorded = self.train[task], RecordedLogits(store.logits_path(task))
        recorded.check(self.examples[task], task, len(train), logit_columns(train.task))
        return recorded

    def open(self, tasks: Iterable[str]) -> None:
        """Teach some tasks from their recorded logits."""
        for task in tasks:
            self._opened[task] = self.read(task, self.store)

    def check_softness(self, task: str) -> None:
        """Warn if the distributions of a teacher are nearly one-hot."""
        train, recorded = self.train[task], self._opened[task]
        # Evenly spaced: the rows of a file may be sorted.
        places = np.unique(np.linspace(0, len(train) - 1, min(len(train), _SAMPLE), dtype=np.int64))
        logits = recorded.lookup(torch.from_numpy(places))
        labels = [example["labels"] for example in train.read(places.tolist())]
        entropy = normalized_entropy(train.task.type, logits / self.config.temperature, labels)
        if (message := near_one_hot_warning(task, entropy)) is not None:
            logger.warning(message)

    def losses(
        self,
        task: str,
        head: Head,
        logits: Tensor,
        example_ids: Tensor,
        labels: Tensor,
        layout: Layout,
        supervised: Tensor,
    ) -> Tensor:
        """The losses of some examples of a distilling task.

        Args:
            task: The task.
            head: Its head.
            logits: The student's.
            example_ids: ``[B]``, places in the training set.
            labels: Their targets.
            layout: Of their tokens and segments.
            supervised: ``[B]``, their supervised losses.

        Returns:
            ``[B]``.
        """
        teacher = self._opened[task].lookup(example_ids).to(logits.device).view(logits.shape)
        losses = head.distillation_loss(logits, teacher, labels, layout, self.config.temperature)
        share = self.config.hard_label_weight
        return torch.lerp(losses, supervised, share) if share else losses

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside the files, as JSON values."""
        return {"examples": dict(self.examples)}
