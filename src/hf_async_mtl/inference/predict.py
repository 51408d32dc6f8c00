"""Raw rows to predictions: tasks that read the same inputs share one pass of the encoder."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
from datasets import Dataset
from torch import Tensor
from transformers.utils import logging

from ..data.collator import MultiTaskCollator
from ..data.dataset import TaskDataset
from ..data.tokenization import encode, token_counts, truncation_warning
from ..modeling.configuration_multitask import MultiTaskConfig, TaskConfig
from ..modeling.modeling_multitask import MultiTaskModel
from ..tasks.registry import TASK_TYPES
from ..validation import ConfigurationError
from .logits import IndexBatches, iterate_logits, split_by_example

logger = logging.get_logger(__name__)


def readable_tasks(tasks: Mapping[str, TaskConfig], rows: Dataset, chosen: Sequence[str] | None = None) -> list[str]:
    """Return the chosen tasks, or all tasks whose columns the rows have."""
    for name in chosen or ():
        if name not in tasks:
            raise ConfigurationError(f"`--task` must be one of {', '.join(tasks)}; found {name!r}.")
        for column in tasks[name].input_columns:
            if column not in rows.column_names:
                raise ConfigurationError(
                    f"Task {name!r} reads the column {column!r}; the input has {', '.join(rows.column_names)}."
                )
    if chosen:
        return list(chosen)
    found = [name for name, task in tasks.items() if set(task.input_columns) <= set(rows.column_names)]
    if not found:
        wanted = "; ".join(f"{name}: {', '.join(task.input_columns)}" for name, task in tasks.items())
        raise ConfigurationError(
            f"The input must have the columns of at least one task ({wanted}); it has {', '.join(rows.column_names)}."
        )
    return found


def tasks_by_input(config: MultiTaskConfig, names: Sequence[str]) -> list[list[str]]:
    """Group tasks whose encoded rows are equal: the same columns, tokenized in the same way to the same length."""
    groups: dict[Any, list[str]] = {}
    for name in names:
        task = config.task_configs[name]
        tokenize = type(TASK_TYPES[task.type]).tokenize
        key = (tokenize, repr(task.text_columns), task.max_length or config.max_length, task.doc_stride)
        groups.setdefault(key, []).append(name)
    return list(groups.values())


def predict_rows(
    model: MultiTaskModel, tokenizer: Any, rows: Dataset, names: Sequence[str], batch_size: int = 32
) -> Iterator[dict[str, dict[str, Any]]]:
    """Predict some tasks for each row.

    Args:
        model: The model, in evaluation mode.
        tokenizer: Its tokenizer.
        rows: Raw rows with the columns of the tasks.
        names: The tasks.
        batch_size: Rows that are encoded together.

    Yields:
        For each row, task -> prediction, in the format of `TaskType.format_prediction`: ``label`` and ``score`` (its
        probability) for classification; ``labels`` and ``scores`` for multilabel; ``value`` for regression;
        ``labels``, one per word, for token classification (None for words beyond the maximum length and for words
        without a token); ``choice`` (from 0) and ``score`` for multiple choice; ``answer`` for question answering.
    """
    groups = [
        _predict_group(model, tokenizer, rows, group, batch_size) for group in tasks_by_input(model.config, names)
    ]
    for parts in zip(*groups, strict=True):
        found = {name: prediction for part in parts for name, prediction in part.items()}
        yield {name: found[name] for name in names}


def _predict_group(
    model: MultiTaskModel, tokenizer: Any, rows: Dataset, names: Sequence[str], batch_size: int
) -> Iterator[dict[str, dict[str, Any]]]:
    """Yield the predictions of tasks of one group; see `tasks_by_input`."""
    config, first = model.config, names[0]
    task = config.task_configs[first]
    max_length = task.max_length or config.max_length
    encoded = encode(rows, first, task, tokenizer, max_length, with_labels=False)
    for name in names:
        message = truncation_warning(name, config.task_configs[name], max_length, {"input": encoded})
        if message is not None:
            logger.warning(message)
    types = {name: other.type for name, other in config.task_configs.items()}
    batches = iterate_logits(
        lambda batch: model(**batch, tasks=names).logits,
        TaskDataset(first, config.task_order.index(first), task, encoded),
        MultiTaskCollator(types, max_length, tokenizer.pad_token_id),
        IndexBatches(len(encoded), batch_size),
        model.device,
    )
    units = token_counts(encoded) if model.heads[first].unit == "token" else None
    for ids, logits in batches:
        indices = ids.tolist()
        inputs, raw = encoded.select(indices), list(rows.select(indices))
        by_task = [_predict_batch(config.task_configs[name], ids, logits[name], units, inputs, raw) for name in names]
        for predictions in zip(*by_task, strict=True):
            yield dict(zip(names, predictions, strict=True))


def _predict_batch(
    task: TaskConfig, ids: Tensor, logits: Tensor, units: np.ndarray | None, inputs: Dataset, raw: Sequence[Any]
) -> list[dict[str, Any]]:
    task_type = TASK_TYPES[task.type]
    examples = [own for _, own in split_by_example(ids, logits, units)]
    found = task_type.predictions(task, examples, inputs)
    return [task_type.format_prediction(task, *parts) for parts in zip(found, examples, inputs, raw, strict=True)]
