"""Answers for new rows: every task whose columns a row has, packed, in the rows' own order."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch
from datasets import Dataset
from transformers.utils import logging

from ..data.collator import MultiTaskCollator
from ..data.mixing import EncodedTask
from ..data.tokenization import encode, truncation_warning, unit_counts
from ..modeling.configuration_multitask import ConfigurationError, TaskConfig
from ..modeling.modeling_multitask import MultiTaskModel
from ..tasks.registry import TASK_TYPES

__all__ = ["answerable", "predict_rows"]

logger = logging.get_logger(__name__)


def answerable(tasks: dict[str, TaskConfig], rows: Dataset, chosen: Sequence[str] | None) -> list[str]:
    """The tasks to answer: those that were chosen, or all whose columns the rows have.

    Raises:
        ConfigurationError: A task is not known, its columns are missing, or no task can read the rows.
    """
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


def predict_rows(
    model: MultiTaskModel, tokenizer: Any, rows: Dataset, names: Sequence[str], batch_size: int = 32
) -> Iterator[dict[str, dict[str, Any]]]:
    """Answer for each row.

    Args:
        model: In evaluation mode.
        tokenizer: Its tokenizer.
        rows: Raw rows with the columns of the tasks.
        names: The tasks to answer.
        batch_size: Rows of the input that are encoded together.

    Yields:
        For each row, task -> answer: ``label`` and ``score`` (its probability); ``labels`` and ``scores``; ``value``;
        one of ``labels`` a word (None for words beyond the longest sequence, and for those that have no token);
        ``choice`` (from 0) and ``score``; ``answer``.
    """
    answers = {name: _predict_task(model, tokenizer, rows, name, batch_size) for name in names}
    for _ in range(len(rows)):
        yield {name: next(iterator) for name, iterator in answers.items()}


@torch.no_grad()
def _predict_task(
    model: MultiTaskModel, tokenizer: Any, rows: Dataset, name: str, batch_size: int
) -> Iterator[dict[str, Any]]:
    config = model.config
    task, task_id = config.task_configs[name], config.task_order.index(name)
    max_length = task.max_length or config.max_length
    encoded = encode(rows, name, task, tokenizer, max_length, with_labels=False)
    words = truncation_warning(name, task, max_length, {"input": encoded})
    if words is not None:
        logger.warning(words)
    # Words get their own index for a target, which says where they begin; no loss is to be computed on it.
    inputs = EncodedTask(name, task_id, task, encoded)
    collate = MultiTaskCollator(
        {key: other.type for key, other in config.task_configs.items()}, max_length, tokenizer.pad_token_id
    )
    counts = unit_counts(task, encoded)
    for start in range(0, len(encoded), batch_size):
        places = range(start, min(start + batch_size, len(encoded)))
        batch = collate(inputs.__getitems__(places))
        batch.pop("example_ids")
        batch.pop("labels", None)
        batch = {key: value.to(model.device) for key, value in batch.items()}
        logits = model(**batch).logits[name].float().cpu().numpy()
        if model.heads[name].unit == "token":
            ends = np.cumsum([counts[i] for i in places])[:-1]
            per_row: list[Any] = np.split(logits, ends)
        else:
            per_row = list(logits)
        for i, scores in zip(places, per_row, strict=True):
            yield _answer(task, scores, encoded.select([i]), rows[i])


def _answer(task: TaskConfig, logits: np.ndarray, encoded: Dataset, row: dict[str, Any]) -> dict[str, Any]:
    kind = TASK_TYPES[task.type]
    (prediction,) = kind.predictions(task, [logits], encoded)
    return kind.format_prediction(task, prediction, logits, encoded[0], row)
