"""The teachers of a run: snapshots while tasks learn, recorded logits and what they are worth once tasks distil."""

from __future__ import annotations

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import asdict
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
from .loss import norm_keeping_weight
from .snapshots import RecordedLogits, TeacherStore
from .teacher_quality import TeacherQuality, degenerate_warning, is_degenerate, quality_of

__all__ = ["Teachers", "logit_columns"]

logger = logging.get_logger(__name__)

_JUDGED = 10_000
"""So many examples say what a teacher is worth: three digits of an entropy."""


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
        unlabelled: The tasks whose examples have no labels to compare a teacher with.

    Attributes:
        examples: Task -> `fingerprint` of its training examples, so that a run is not resumed with others.
        quality: Task -> what its teacher's logits say, of those that were recorded.
    """

    def __init__(
        self,
        folder: Path,
        config: DistillationConfig,
        train: Mapping[str, EncodedTask],
        unlabelled: Collection[str] = (),
    ) -> None:
        self.store = TeacherStore(folder)
        self.config = config
        self.train = dict(train)
        self.unlabelled = set(unlabelled)
        self.examples: dict[str, str] = {}
        self.quality: dict[str, dict[str, float | None]] = {}
        self._opened: dict[str, RecordedLogits] = {}

    def begin(self) -> None:
        """Forget what an earlier run left in memory, and look at the training examples."""
        self._opened.clear()
        self.quality.clear()
        self.examples = {name: fingerprint(task.rows) for name, task in self.train.items()}

    def snapshot(self, steps: Sequence[int]) -> dict[str, Tensor]:
        """The weights of a step, or the mean of those of several."""
        total = self.store.load_snapshot(steps[0])
        for step in steps[1:]:
            for name, tensor in self.store.load_snapshot(step).items():
                if tensor.is_floating_point():
                    total[name] += tensor
        return {name: tensor / len(steps) if tensor.is_floating_point() else tensor for name, tensor in total.items()}

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

    def judge(self, task: str) -> None:
        """Note what a teacher's logits say beyond the labels, and warn where that is next to nothing."""
        train, recorded = self.train[task], self._opened[task]
        # A regression's loss has no temperature.
        temperature = 1.0 if train.task.type == "regression" else self.config.temperature
        # Evenly spaced: the rows of a file may be sorted.
        places = np.unique(np.linspace(0, len(train) - 1, min(len(train), _JUDGED), dtype=np.int64))
        logits = recorded.lookup(torch.from_numpy(places))
        labels = [example["labels"] for example in train.read(places.tolist())]
        quality = quality_of(train.task.type, logits / temperature, labels)
        if task in self.unlabelled:
            quality = TeacherQuality(entropy=quality.entropy)
        self.quality[task] = {key: value for key, value in asdict(quality).items() if value is not None}
        if is_degenerate(quality):
            logger.warning(degenerate_warning(task, quality))

    def losses(
        self,
        task: str,
        head: Head,
        logits: Tensor,
        example_ids: Tensor,
        labels: Tensor,
        layout: Layout,
        supervised: Tensor,
        hard_label_weight: float,
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
            hard_label_weight: 0..1, the share of these.

        Returns:
            ``[B]``.
        """
        teacher = self._opened[task].lookup(example_ids).to(logits.device).view(logits.shape)
        losses = head.distillation_loss(logits, teacher, labels, layout, self.config.temperature)
        if self.config.keep_gradient_norm and logits.requires_grad:
            # From these logits, which under autocast are not the ones that the model's own losses hang on.
            losses = losses * norm_keeping_weight(losses, head.loss(logits, labels, layout), logits)
        return torch.lerp(losses, supervised, hard_label_weight) if hard_label_weight else losses

    def state_dict(self) -> dict[str, Any]:
        """What a checkpoint holds beside the files, as JSON values."""
        return {"examples": dict(self.examples), "quality": {task: dict(x) for task, x in self.quality.items()}}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take over what `state_dict` returned; the examples were compared before, and are this run's own."""
        self.quality = {task: dict(x) for task, x in state["quality"].items()}
