"""The teachers of a run: snapshots while tasks learn, recorded logits once they distill."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor
from transformers.utils import logging

from ..data.dataset import TaskDataset
from ..data.fingerprint import fingerprint
from ..data.tokenization import unit_counts
from ..modeling.configuration_multitask import TaskConfig
from ..modeling.heads import Head
from ..modeling.packing import Layout, to_device
from ..tasks.registry import TASK_TYPES
from .config import DistillationConfig
from .logits import LogitsWriter, RecordedLogits, check_disk_space, record_logits
from .snapshots import TeacherStore

logger = logging.get_logger(__name__)

_SAMPLE = 10_000
"""Number of examples over which the entropy of a teacher is measured; enough for three digits."""
_ENTROPY_FLOOR = 0.02
"""For two classes, the entropy of 0.998 to 0.002. Set by eye: far below a teacher that is unsure of some rows."""


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
        """Warn if the distributions of a loaded teacher are nearly one-hot, and so say no more than the labels do.

        A teacher is recorded on the rows that it was trained on, and may have memorized them.
        """
        train, recorded = self.train[task], self._loaded[task]
        # Evenly spaced: the rows of a file may be sorted.
        indices = np.unique(np.linspace(0, len(train) - 1, min(len(train), _SAMPLE), dtype=np.int64))
        logits = recorded.lookup(indices)
        labels = [example["labels"] for example in train.read(indices.tolist())]
        entropy = normalized_entropy(train.task.type, logits / self.config.temperature, labels)
        if (message := near_one_hot_warning(task, entropy)) is not None:
            logger.warning(message)

    def losses(
        self,
        task: str,
        head: Head,
        logits: Tensor,
        examples: Sequence[int],
        labels: Tensor,
        layout: Layout,
        supervised: Tensor,
    ) -> Tensor:
        r"""Return the losses ``[B]`` of some examples of a distilling task.

        With w the ``hard_label_weight``, they are :math:`(1 - w) \, l_{teacher} + w \, l_{labels}`. The student's
        ``logits`` are those of ``examples`` ``[B]``, indices in the training set; ``supervised`` ``[B]`` are the
        losses on the labels.
        """
        teacher = to_device(self._loaded[task].lookup(examples), logits.device).view(logits.shape)
        losses = head.distillation_loss(logits, teacher, labels, layout, self.config.temperature)
        weight = self.config.hard_label_weight
        # Not always: 0 * NaN is NaN.
        return torch.lerp(losses, supervised, weight) if weight else losses


def normalized_entropy(task_type: str, logits: Tensor, labels: Sequence[Any]) -> float | None:
    """Return the mean entropy of a teacher's distributions, divided by the largest possible one.

    ``logits`` ``[U, C]`` are divided by the temperature; ``labels`` are read for token classification only. The result
    is 0 (one-hot) to 1 (uniform), and None where there is no such value: for regression, question answering (its
    distributions are over the tokens of a window), one class, or no labeled token.
    """
    probabilities = TASK_TYPES[task_type].distributions(logits, labels) if len(logits) else None
    if probabilities is None or len(probabilities) == 0 or probabilities.shape[-1] == 1:
        return None
    return float(torch.special.entr(probabilities).sum(-1).mean()) / math.log(probabilities.shape[-1])


def near_one_hot_warning(task: str, entropy: float | None) -> str | None:
    """Return the warning for a teacher with this `normalized_entropy`, or None where there is nothing to warn of."""
    if entropy is None or entropy >= _ENTROPY_FLOOR:
        return None
    return (
        f"The recorded logits of task {task!r} are nearly one-hot: on its training rows their normalized entropy "
        f"should be at least {_ENTROPY_FLOOR}; found {entropy:.4f}. Distilling from them is nearly the same as "
        "training on the labels. Let the task converge earlier (a smaller `patience` or a larger `min_delta`), raise "
        "`distillation.temperature`, or give the task more data."
    )
