"""Teachers from outside: another model's logits over a task's training set, recorded before the first step."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers import AutoConfig, AutoModelForSequenceClassification, AutoTokenizer

from ..data.encoding import encode
from ..model.configuration_multitask import ConfigurationError, MultiTaskConfig, TaskConfig
from ..model.heads import HEADS
from ..model.modeling_multitask import MultiTaskModel

__all__ = ["ExternalTeacher", "load_external_teacher"]

_STOCK_TYPES = ("classification", "multilabel", "regression")


class ExternalTeacher:
    """A model that answers one task, with its own tokenizer.

    Args:
        model: A `MultiTaskModel` or a stock model for sequence classification.
        tokenizer: The model's own.
        task: The task as the student knows it.
        head: The name of the task in a `MultiTaskModel`; None for a stock model.
        order: Of the model's logits, so that they stand in the order of the student's labels; None: as they are.
    """

    def __init__(self, model: Any, tokenizer: Any, task: TaskConfig, head: str | None, order: list[int] | None) -> None:
        self.model, self.tokenizer, self.task, self.head, self.order = model.eval(), tokenizer, task, head, order

    @torch.no_grad()
    def logits(self, rows: Dataset, max_length: int, batch_size: int, device: torch.device) -> list[np.ndarray]:
        """The logits of each raw row.

        Args:
            rows: Raw rows, with the columns of the task.
            max_length: In the teacher's tokens.
            batch_size: Rows at once.
            device: Where the model runs; it is left on the CPU.

        Returns:
            One array a row: ``[U, C]``, or ``[U]`` for regression, as `RecordedLogits.write` takes them.
        """
        encoded = encode(rows, "teacher", self.task, self.tokenizer, max_length, with_labels=False)
        self.model.to(device)
        found: list[np.ndarray] = []
        for start in range(0, len(encoded), batch_size):
            batch = encoded[start : start + batch_size]
            counts = [len(segments) for segments in batch["input_ids"]]
            flat = {
                key: [segment for segments in batch[key] for segment in segments]
                for key in ("input_ids", "token_type_ids")
                if key in batch
            }
            inputs = self.tokenizer.pad(flat, return_tensors="pt").to(device)
            found += self._of_batch(dict(inputs), counts)
        self.model.to("cpu")
        return found

    def _of_batch(self, inputs: dict[str, torch.Tensor], counts: Sequence[int]) -> list[np.ndarray]:
        if self.head is None:
            logits = self.model(**inputs).logits
        else:
            if self.task.type == "multiple_choice":
                inputs = {key: value.unflatten(0, (len(counts), counts[0])) for key, value in inputs.items()}
            logits = self.model(**inputs, tasks=[self.head]).logits[self.head]
        values = logits.float().cpu()
        if HEADS[self.task.type].unit == "token":
            own = [row[mask] for row, mask in zip(values, inputs["attention_mask"].bool().cpu(), strict=True)]
            return [torch.cat(part).numpy() for part in _grouped(own, counts)]
        if self.task.type == "regression":
            return [row.reshape(1).numpy() for row in values]
        return [(row if self.order is None else row[self.order])[None].numpy() for row in values]


def _grouped(items: Sequence[Any], counts: Sequence[int]) -> list[list[Any]]:
    groups, start = [], 0
    for count in counts:
        groups.append(list(items[start : start + count]))
        start += count
    return groups


def load_external_teacher(name: str, task: TaskConfig, source: str, rows: Dataset, student: Any) -> ExternalTeacher:
    """Load a teacher and check that it answers the task.

    Args:
        name: The task's name.
        task: The student's resolved task.
        source: Folder or Hub id of a `MultiTaskModel` that has the task (or one task alone), or of a stock model for
            sequence classification.
        rows: The task's raw training rows.
        student: The student's tokenizer. A task on tokens needs a teacher that cuts the text as the student does.

    Raises:
        ConfigurationError: There is no such model, or it does not fit the task.
    """
    key = f"distillation.teachers.{name}"
    try:
        config = AutoConfig.from_pretrained(source)
        tokenizer = AutoTokenizer.from_pretrained(source)
        if isinstance(config, MultiTaskConfig):
            model: Any = MultiTaskModel.from_pretrained(source)
        elif task.type in _STOCK_TYPES:
            model = AutoModelForSequenceClassification.from_pretrained(source)
        else:
            raise ConfigurationError(
                f"`{key}` of a {task.type} task must be a MultiTaskModel; {source!r} is of type {config.model_type!r}."
            )
    except (OSError, ValueError) as error:
        if isinstance(error, ConfigurationError):
            raise
        raise ConfigurationError(
            f"`{key}` must be a folder or a Hub id of a model; {source!r} could not be loaded: "
            f"{str(error).splitlines()[0]}"
        ) from error
    head = None
    if isinstance(model, MultiTaskModel):
        head = _head_of(key, name, task, source, model.config.task_configs)
        names = model.config.task_configs[head].labels
    else:
        if model.config.num_labels != task.num_labels:
            raise ConfigurationError(
                f"`{key}` must have {task.num_labels} outputs, as the task has; {source!r} has "
                f"{model.config.num_labels}."
            )
        names = [model.config.id2label[index] for index in range(model.config.num_labels)]
    if HEADS[task.type].unit == "token":
        sample = rows.select(range(min(100, len(rows))))
        longest = model.config.max_length
        own, other = (encode(sample, name, task, x, longest, with_labels=False) for x in (student, tokenizer))
        if own["input_ids"] != other["input_ids"]:
            raise ConfigurationError(
                f"`{key}` of a {task.type} task must cut text into the same tokens as the student; {source!r} does "
                "not. Take a teacher with the same tokenizer."
            )
    return ExternalTeacher(model, tokenizer, task, head, _order(key, task, source, names))


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


def _order(key: str, task: TaskConfig, source: str, names: Sequence[str] | None) -> list[int] | None:
    """Where the student's labels stand among the teacher's; None where the teacher's have no names of their own."""
    if task.labels is None or names is None or list(names) == list(task.labels):
        return None
    if all(name == f"LABEL_{index}" for index, name in enumerate(names)):
        return None
    if sorted(names) != sorted(task.labels):
        raise ConfigurationError(
            f"`{key}` must have the labels of the task ({', '.join(task.labels)}); {source!r} has {', '.join(names)}."
        )
    return [list(names).index(label) for label in task.labels]
