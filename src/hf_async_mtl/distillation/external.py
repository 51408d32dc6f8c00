"""External teachers: other models, whose logits over a task's training set are recorded before the first step."""

from __future__ import annotations

import inspect
import pickle
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

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
from ..modeling.configuration_multitask import MultiTaskConfig, TaskConfig
from ..modeling.heads import HEADS, pool
from ..modeling.modeling_multitask import MultiTaskModel
from ..modeling.packing import Layout, Ragged, offsets_of
from ..tasks.registry import TASK_TYPES
from ..validation import ConfigurationError

logger = logging.get_logger(__name__)

UNLOADABLE = (OSError, ValueError, RuntimeError, ImportError, SafetensorError, pickle.UnpicklingError)
"""Errors of Transformers for a folder that is no model, is damaged, needs a missing package, or needs remote code."""
_SAMPLE = 100
"""Number of rows that are tokenized when a teacher is loaded, to find out whether it fits."""


@dataclass(eq=False)
class ExternalTeacher:
    """A model that teaches one task, with its own tokenizer.

    ``head`` names the task in a `MultiTaskModel` (None for a stock model); ``order`` has the indices of the model's
    logits in the order of the student's labels (None: the same order).
    """

    name: str
    model: Any
    tokenizer: Any
    task: TaskConfig
    head: str | None
    order: list[int] | None
    student_tokenizer: Any

    def __post_init__(self) -> None:
        self.model.eval()
        self._inputs = set(inspect.signature(self.model.forward).parameters)

    def encode(self, rows: Dataset, max_length: int | None) -> Dataset:
        """Tokenize raw rows up to the student's length; a teacher with fewer positions reads less."""
        known = [length for length in (max_length, position_limit(self.model)) if length is not None]
        length = min(known, default=512)
        encoded = encode(rows, self.name, self.task, self.tokenizer, length, with_labels=False)
        if HEADS[self.task.type].unit == "token":
            own = encode(rows, self.name, self.task, self.student_tokenizer, max_length or length, with_labels=False)
            for start in range(0, len(rows), 1000):
                part = slice(start, start + 1000)
                if own[part]["input_ids"] != encoded[part]["input_ids"]:
                    raise ConfigurationError(
                        f"`distillation.teachers.{self.name}` of a {self.task.type} task must cut text into the "
                        "same tokens as the student, up to the same length. Take a teacher with the student's "
                        "tokenizer and at least as many positions."
                    )
        return encoded

    def logits(
        self, rows: Dataset, max_length: int, batch_size: int, device: torch.device, rank: int = 0, ranks: int = 1
    ) -> Iterator[tuple[torch.Tensor, torch.Tensor]]:
        """Yield the indices ``[B]`` and logits of a process's share of raw rows, as `LogitsWriter.write` takes them."""
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
        if self.task.doc_stride is not None and HEADS[self.task.type].unit == "example":
            windows = offsets_of(batch["segment_counts"])
            scores = Ragged(values.view(len(values), -1), Layout(windows, windows))
            values = pool(scores, self.task.doc_pooling or "mean")
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
    tasks: Mapping[str, TaskConfig], sources: Mapping[str, str], rows: Mapping[str, Dataset], student_tokenizer: Any
) -> dict[str, ExternalTeacher]:
    """Load teachers and check that each fits its task. A model that teaches several tasks is loaded once."""
    loaded: dict[str, _LoadedModel] = {}
    teachers = {}
    for name in rows:
        key, source = f"distillation.teachers.{name}", sources[name]
        if source not in loaded:
            loaded[source] = _load_model(key, source)
        head, order = _fit(key, name, tasks[name], loaded[source])
        model, tokenizer = loaded[source].model, loaded[source].tokenizer
        teachers[name] = ExternalTeacher(name, model, tokenizer, tasks[name], head, order, student_tokenizer)
        # For its errors, before anything is recorded.
        teachers[name].encode(rows[name].select(range(min(_SAMPLE, len(rows[name])))), tasks[name].max_length)
    return teachers


class _LoadedModel(NamedTuple):
    """A model with its tokenizer, and the weights that its files lack."""

    source: str
    model: Any
    tokenizer: Any
    missing_keys: Sequence[str]


def _load_model(key: str, source: str) -> _LoadedModel:
    try:
        config = AutoConfig.from_pretrained(source, trust_remote_code=False)
        tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        auto_class: Any = MultiTaskModel if isinstance(config, MultiTaskConfig) else AutoModelForSequenceClassification
        model, info = auto_class.from_pretrained(source, output_loading_info=True, dtype=torch.float32)
    except ConfigurationError:
        raise
    except UNLOADABLE as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ConfigurationError(
            f"`{key}` must be a folder or a Hub id of a model with its tokenizer; {source!r} could not be loaded: "
            f"{reason}"
        ) from error
    return _LoadedModel(source, model, tokenizer, sorted(info["missing_keys"]))


def _fit(key: str, name: str, task: TaskConfig, loaded: _LoadedModel) -> tuple[str | None, list[int] | None]:
    """Return the ``head`` and ``order`` of an `ExternalTeacher`, or raise a `ConfigurationError`."""
    source, model, missing = loaded.source, loaded.model, loaded.missing_keys
    is_multi_task = isinstance(model, MultiTaskModel)
    if not is_multi_task and TASK_TYPES[task.type].problem_type is None:
        raise ConfigurationError(
            f"`{key}` of a {task.type} task must be a MultiTaskModel; {source!r} is of type "
            f"{model.config.model_type!r}."
        )
    if missing:
        raise ConfigurationError(
            f"`{key}` must hold all weights of its model; {source!r} lacks {len(missing)} ({', '.join(missing[:3])}, "
            "...), which would be random. Is it an encoder that was never trained on the task?"
        )
    head = _find_head(key, name, task, source, model.config.task_configs) if is_multi_task else None
    if head is None:
        label_names: Sequence[str] | None = _stock_label_names(key, task, source, model.config)
    else:
        label_names = model.config.task_configs[head].label_names
    if loaded.tokenizer.pad_token is None:
        raise ConfigurationError(
            f"`{key}` must have a tokenizer with a padding token; that of {source!r} has none. Set its `pad_token`."
        )
    return head, _label_order(key, task, source, label_names)


def _find_head(key: str, name: str, task: TaskConfig, source: str, tasks: Mapping[str, TaskConfig]) -> str:
    head = name if name in tasks else next(iter(tasks)) if len(tasks) == 1 else None
    if head is None:
        raise ConfigurationError(f"`{key}` must be a model of the task {name!r}; {source!r} has {', '.join(tasks)}.")
    if tasks[head].type != task.type or tasks[head].num_labels != task.num_labels:
        raise ConfigurationError(
            f"`{key}` must be a model of a {task.type} task with {task.num_labels} outputs; task {head!r} of "
            f"{source!r} is a {tasks[head].type} task with {tasks[head].num_labels}."
        )
    return head


def _stock_label_names(key: str, task: TaskConfig, source: str, config: Any) -> list[str]:
    """Return the names of a stock model's outputs."""
    if config.num_labels != task.num_labels:
        raise ConfigurationError(
            f"`{key}` must have {task.num_labels} outputs, as the task has; {source!r} has {config.num_labels}."
        )
    wanted = TASK_TYPES[task.type].problem_type
    # None if the model was never trained by Transformers itself.
    if config.problem_type not in (None, wanted):
        raise ConfigurationError(f"`{key}` must be a model for {wanted}; {source!r} is one for {config.problem_type}.")
    return [str(config.id2label[index]) for index in range(config.num_labels)]


def _label_order(key: str, task: TaskConfig, source: str, names: Sequence[str] | None) -> list[int] | None:
    """Return the indices of the student's labels among the teacher's; None if the order is the same or not known."""
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


def with_placeholders(rows: Dataset, task: TaskConfig) -> Dataset:
    """Add placeholder labels, on which no loss may be computed, so that unlabeled rows can be tokenized."""
    return rows.map(_add_placeholder, fn_kwargs={"task": task}, desc="Adding placeholder labels")


def _add_placeholder(row: Mapping[str, Any], task: TaskConfig) -> dict[str, Any]:
    return dict.fromkeys(task.target_columns, TASK_TYPES[task.type].placeholder(task, row))
