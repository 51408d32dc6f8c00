"""The teachers of a run: snapshots while tasks learn, recorded logits once they distill."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager
from pathlib import Path

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from ..data.dataset import TaskDataset
from ..data.fingerprint import fingerprint
from ..data.tokenization import unit_counts
from ..modeling.configuration_multitask import TaskConfig
from ..modeling.heads import Head
from ..modeling.packing import Layout
from ..tasks.registry import TASK_TYPES
from .config import DistillationConfig
from .logits import LogitsWriter, RecordedLogits, check_disk_space, record_logits
from .snapshots import TeacherStore
from .teacher_quality import near_one_hot_warning, normalized_entropy

logger = logging.get_logger(__name__)

_SAMPLE = 10_000
"""Number of examples over which the entropy of a teacher is measured; enough for three digits."""


def logit_columns(task: TaskConfig) -> int | None:
    """Return the number of columns of a task's logits; None if they are single numbers."""
    shape = TASK_TYPES[task.type].logit_shape(task)
    return shape[0] if shape else None


class Teachers:
    """The teachers of a run, on disk and in memory.

    Attributes:
        examples: Task -> `fingerprint` of its training examples, so that a run is not resumed with others.
    """

    def __init__(self, folder: Path, config: DistillationConfig, train: Mapping[str, TaskDataset]) -> None:
        self.store = TeacherStore(folder)
        self.config = config
        self.train = dict(train)
        self.examples: dict[str, str] = {}
        self._loaded: dict[str, RecordedLogits] = {}

    def begin(self) -> None:
        """Forget the teachers of an earlier run, and hash the training examples."""
        self._loaded.clear()
        self.examples = {name: fingerprint(task.rows) for name, task in self.train.items()}

    def writer(self, task: str, step: int) -> AbstractContextManager[LogitsWriter]:
        """Return the context in which a task's teacher, of a step, is recorded; see `record_logits`."""
        train = self.train[task]
        units = unit_counts(train.task, train.rows)
        return record_logits(self.store.logits_files(task), units, logit_columns(train.task), self.examples[task], step)

    def check_disk_space(self, tasks: Iterable[str]) -> None:
        """Raise a `TeacherError` unless the disk can hold the recorded logits of some tasks."""
        needed = 0
        for task in tasks:
            train = self.train[task]
            needed += 4 * int(unit_counts(train.task, train.rows).sum()) * (logit_columns(train.task) or 1)
        check_disk_space(self.store.folder, needed, "Recording the teachers' logits")

    def read(self, task: str, store: TeacherStore) -> RecordedLogits:
        """Return a task's recorded logits in a store."""
        train, recorded = self.train[task], RecordedLogits(store.logits_files(task))
        recorded.check(self.examples[task], task, len(train), logit_columns(train.task))
        return recorded

    def load(self, tasks: Iterable[str]) -> None:
        """Load the recorded logits of some tasks, for `losses`."""
        for task in tasks:
            self._loaded[task] = self.read(task, self.store)

    def assess(self, task: str) -> None:
        """Warn if the distributions of a loaded teacher are nearly one-hot."""
        train, recorded = self.train[task], self._loaded[task]
        # Evenly spaced: the rows of a file may be sorted.
        indices = np.unique(np.linspace(0, len(train) - 1, min(len(train), _SAMPLE), dtype=np.int64))
        logits = recorded.lookup(torch.from_numpy(indices))
        labels = [example["labels"] for example in train.read(indices.tolist())]
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
        r"""Return the losses ``[B]`` of some examples of a distilling task.

        With w the ``hard_label_weight``, they are :math:`(1 - w) \, l_{teacher} + w \, l_{labels}`.

        Args:
            task: The task.
            head: Its head.
            logits: The student's.
            example_ids: ``[B]``, indices in the training set.
            labels: The targets, of which the head reads where they are.
            layout: Tokens and segments of the examples.
            supervised: ``[B]``, the losses on the labels.
        """
        teacher = self._loaded[task].lookup(example_ids).to(logits.device).view(logits.shape)
        losses = head.distillation_loss(logits, teacher, labels, layout, self.config.temperature)
        weight = self.config.hard_label_weight
        # Not always: 0 * NaN is NaN.
        return torch.lerp(losses, supervised, weight) if weight else losses
