"""Teachers from outside: another model's logits over a task's training set, recorded before the first step."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from safetensors import SafetensorError
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer
from transformers.utils import logging

from ..building.build import position_limit
from ..data.collator import PaddedCollator
from ..data.dataset import TaskDataset
from ..data.tokenization import encode, token_counts, unit_counts
from ..inference.logits import IndexBatches, iterate_logits
from ..modeling.configuration_multitask import ConfigurationError, MultiTaskConfig, TaskConfig
from ..modeling.heads import HEADS
from ..modeling.modeling_multitask import MultiTaskModel
from ..tasks.registry import TASK_TYPES

__all__ = ["UNLOADABLE", "ExternalTeacher", "load_external_teachers"]

logger = logging.get_logger(__name__)

UNLOADABLE = (OSError, ValueError, RuntimeError, ImportError, SafetensorError, pickle.UnpicklingError)
"""What Transformers raises for a folder that is no model, is damaged, lacks a package, or wants its code to be run."""
_SAMPLE = 100


class ExternalTeacher:
    """A model that answers one task, with its own tokenizer.

    Args:
        name: The task's name.
        model: A `MultiTaskModel` or a stock model for sequence classification.
        tokenizer: The model's own.
        task: The task as the student knows it.
        head: The name of the task in a `MultiTaskModel`; None for a stock model.
        order: Of the model's logits, so that they stand in the order of the student's labels; None: as they are.
        student: The student's tokenizer.
    """

    def __init__(
        self,
        name: str,
        model: Any,
        tokenizer: Any,
        task: TaskConfig,
        head: str | None,
        order: list[int] | None,
        student: Any,
    ) -> None:
        self.name, self.model, self.tokenizer, self.task = name, model.eval(), tokenizer, task
        self.head, self.order, self.student = head, order, student
        self._inputs = set(inspect.signature(model.forward).parameters)

    def encode(self, rows: Dataset, max_length: int | None) -> Dataset:
        """Raw rows as the teacher reads them.

        Args:
            rows: With the columns of the task.
            max_length: Of the student; a teacher with fewer positions reads less. None: as many as it has.

        Raises:
            ConfigurationError: The teacher's tokenizer cannot be used, or cuts the texts of a task on tokens otherwise
                than the student's.
        """
        known = [length for length in (max_length, position_limit(self.model)) if length is not None]
        length = min(known, default=512)
        encoded = encode(rows, self.name, self.task, self.tokenizer, length, with_labels=False)
        if HEADS[self.task.type].unit == "token":
            own = encode(rows, self.name, self.task, self.student, max_length or length, with_labels=False)
            for start in range(0, len(rows), 1000):
                part = slice(start, start + 1000)
                if own[part]["input_ids"] != encoded[part]["input_ids"]:
                    raise ConfigurationError(
                        f"`distillation.teachers.{self.name}` of a {self.task.type} task must cut text into the "
                        "same tokens as the student, up to the same length. Take a teacher with the student's "
                        "tokenizer and at least as many positions."
                    )
        return encoded

    def answers(
        self, rows: Dataset, max_length: int, batch_size: int, device: torch.device, rank: int = 0, ranks: int = 1
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the logits of a process's share of some raw rows, batch by batch.

        Args:
            rows: Raw rows, with the columns of the task.
            max_length: In the teacher's tokens.
            batch_size: Rows of a batch, per process.
            device: Where the model runs; afterwards it is on the CPU again.
            rank: The process.
            ranks: Number of processes that share the rows; see `IndexBatches`.

        Yields:
            Indices of rows ``[B]``, and their logits as `LogitsWriter.put` takes them.

        Raises:
            ConfigurationError: As `encode`, or a logit is not finite.
        """
        encoded = self.encode(rows, max_length)
        units = unit_counts(self.task, encoded)
        # Rows of similar length share a batch, so that little is padding. The longest come first, and fail first.
        order = np.argsort(-token_counts(encoded), kind="stable")
        batches = IndexBatches(order, batch_size, rank, ranks)
        examples, collate = TaskDataset(self.name, 0, self.task, encoded), PaddedCollator(self.tokenizer)
        self.model.to(device)
        for indices, logits in iterate_logits(self._forward, examples, collate, batches, device):
            self._check_finite(indices, logits[self.name], units)
            yield indices, logits[self.name]
        self.model.to("cpu")

    def _forward(self, batch: Mapping[str, Any]) -> dict[str, torch.Tensor]:
        """Return the logits of a batch of a `PaddedCollator`, the units of one example after those of another."""
        mask, examples = batch["attention_mask"].bool(), len(batch["segment_counts"])
        inputs = {key: value for key, value in batch.items() if key in self._inputs}
        if self.head is None:
            values = self.model(**inputs).logits.float()
        else:
            if HEADS[self.task.type].has_choices:
                inputs = {key: value.unflatten(0, (examples, -1)) for key, value in inputs.items()}
            values = self.model(**inputs, tasks=[self.head]).logits[self.head].float()
        if not TASK_TYPES[self.task.type].logit_shape(self.task):
            values = values.flatten()
        elif self.order is not None:
            values = values[..., self.order]
        return {self.name: values[mask] if HEADS[self.task.type].unit == "token" else values}

    def _check_finite(self, indices: torch.Tensor, values: torch.Tensor, units: np.ndarray) -> None:
        finite = values.isfinite().reshape(len(values), -1).all(dim=1).tolist()
        if not all(finite):
            own = indices.cpu().numpy()
            row = np.repeat(own, units[own])[finite.index(False)]
            raise ConfigurationError(
                f"`distillation.teachers.{self.name}` must give finite logits; those of training row {row} are not. "
                "Its weights are damaged, or too large for their type."
            )


def load_external_teachers(
    tasks: Mapping[str, TaskConfig], sources: Mapping[str, str], rows: Mapping[str, Dataset], student: Any
) -> dict[str, ExternalTeacher]:
    """Load teachers and check that each answers its task. A model that teaches several is read once.

    Args:
        tasks: Name -> the student's resolved task.
        sources: Name -> folder or Hub id of a `MultiTaskModel` that has the task (or one task alone), or of a stock
            model for sequence classification.
        rows: Name -> raw training rows, of the tasks to be taught.
        student: The student's tokenizer. A task on tokens needs a teacher that cuts the text as the student does.

    Returns:
        Name -> teacher.

    Raises:
        ConfigurationError: There is no such model, or it does not fit its task.
    """
    read: dict[str, tuple[Any, Any, list[str]]] = {}
    found = {}
    for name in rows:
        key, source = f"distillation.teachers.{name}", sources[name]
        if source not in read:
            read[source] = _read_model(key, source)
        model, tokenizer, missing = read[source]
        found[name] = _teacher(key, name, tasks[name], source, model, tokenizer, missing, student)
        # For its errors, which are to come before anything is recorded.
        found[name].encode(rows[name].select(range(min(_SAMPLE, len(rows[name])))), tasks[name].max_length)
    return found


def _read_model(key: str, source: str) -> tuple[Any, Any, list[str]]:
    """A model, its tokenizer, and which of its weights are missing."""
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        kind: Any = MultiTaskModel if isinstance(config, MultiTaskConfig) else AutoModelForSequenceClassification
        model, info = kind.from_pretrained(source, output_loading_info=True, dtype=torch.float32)
    except ConfigurationError:
        raise
    except UNLOADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            f"`{key}` must be a folder or a Hub id of a model with its tokenizer; {source!r} could not be loaded: "
            f"{reason}"
        ) from error
    return model, tokenizer, sorted(info["missing_keys"])


def _teacher(
    key: str, name: str, task: TaskConfig, source: str, model: Any, tokenizer: Any, missing: list[str], student: Any
) -> ExternalTeacher:
    """A model that was read, as the teacher of one task."""
    if not isinstance(model, MultiTaskModel) and TASK_TYPES[task.type].problem_type is None:
        raise ConfigurationError(
            f"`{key}` of a {task.type} task must be a MultiTaskModel; {source!r} is of type "
            f"{model.config.model_type!r}."
        )
    if missing:
        raise ConfigurationError(
            f"`{key}` must hold all weights of its model; {source!r} lacks {len(missing)} ({', '.join(missing[:3])}, "
            "...), which would be random. Is it an encoder that was never trained on the task?"
        )
    head = None
    if isinstance(model, MultiTaskModel):
        head = _head_of(key, name, task, source, model.config.task_configs)
        names = model.config.task_configs[head].label_names
    else:
        names = _stock_labels(key, task, source, model.config)
    if tokenizer.pad_token is None:
        raise ConfigurationError(
            f"`{key}` must have a tokenizer with a padding token; that of {source!r} has none. Set its `pad_token`."
        )
    return ExternalTeacher(name, model, tokenizer, task, head, _order(key, task, source, names), student)


def _head_of(key: str, name: str, task: TaskConfig, source: str, tasks: Mapping[str, TaskConfig]) -> str:
    head = name if name in tasks else next(iter(tasks)) if len(tasks) == 1 else None
    if head is None:
        raise ConfigurationError(f"`{key}` must be a model of the task {name!r}; {source!r} has {', '.join(tasks)}.")
    if tasks[head].type != task.type or tasks[head].num_labels != task.num_labels:
        raise ConfigurationError(
            f"`{key}` must answer a {task.type} task with {task.num_labels} outputs; task {head!r} of {source!r} is a "
            f"{tasks[head].type} task with {tasks[head].num_labels}."
        )
    return head


def _stock_labels(key: str, task: TaskConfig, source: str, config: Any) -> list[str]:
    """The names of a stock model's outputs."""
    if config.num_labels != task.num_labels:
        raise ConfigurationError(
            f"`{key}` must have {task.num_labels} outputs, as the task has; {source!r} has {config.num_labels}."
        )
    wanted = TASK_TYPES[task.type].problem_type
    # None, where the model was never asked for a loss.
    if config.problem_type not in (None, wanted):
        raise ConfigurationError(f"`{key}` must be a model for {wanted}; {source!r} is one for {config.problem_type}.")
    return [str(config.id2label[index]) for index in range(config.num_labels)]


def _order(key: str, task: TaskConfig, source: str, names: Sequence[str] | None) -> list[int] | None:
    """Where the student's labels stand among the teacher's; None where the teacher's have no names of their own."""
    if task.label_names is None or names is None or list(names) == list(task.label_names):
        return None
    if all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        pairs = ", ".join(f"{name}: {label}" for name, label in zip(names, task.label_names, strict=True))
        logger.warning(
            f"The labels of `{key}`, {source!r}, have no names; they are taken to be, in their order, {pairs}. If they "
            "are not, give the model its `id2label`."
        )
        return None
    if sorted(names) != sorted(task.label_names):
        raise ConfigurationError(
            f"`{key}` must have the labels of the task ({', '.join(task.label_names)}); {source!r} has "
            f"{', '.join(names)}."
        )
    return [list(names).index(label) for label in task.label_names]
