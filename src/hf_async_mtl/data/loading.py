"""Load the raw splits of a task: read, split off, checked and sampled."""

from __future__ import annotations

import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from datasets import Dataset

from ..modeling.configuration_multitask import TaskConfig
from ..tasks.labels import is_missing
from ..utils import nearest_key
from ..validation import ConfigurationError
from .config import SPLITS, DataSource
from .reading import read_file, read_folder, read_hub_split


def load_splits(
    name: str, task: TaskConfig, source: DataSource, seed: int, *, has_teacher: bool = False
) -> dict[str, Dataset]:
    """Load the raw splits of a task, with a seed for the rows that are split off and for samples (``data_seed``).

    The training rows of a task with an external teacher need no labels. A test split whose labels are all missing, or
    -1 as on the Hub, is left out.

    Returns:
        Split -> rows, in the order train, validation, further validation sets, test.

    Raises:
        ConfigurationError: A split or a column is missing, a split is empty, or a file cannot be read.
    """
    loaded = {
        split: _read(name, split, value, source)
        for split, value in source.splits.items()
        if not isinstance(value, Mapping)
    }
    for split, value in source.splits.items():
        if isinstance(value, Mapping):
            # Before sampling: which rows are held out does not depend on `max_samples`.
            loaded["train"], loaded[split] = _split_off(name, loaded["train"], value["from_train"], seed, split)
    result = {}
    for split in sorted(loaded, key=lambda split: (SPLITS.index(split.split("_")[0]), split)):
        rows = loaded[split]
        needs_labels = not (has_teacher and split == "train" and is_unlabeled(rows, task))
        _check_split(name, split, rows, [*task.input_columns, *(task.target_columns if needs_labels else ())])
        if split == "test" and _has_no_labels(rows, task):
            continue
        result[split] = sample(rows, source.max_samples[split], seed, split) if split in source.max_samples else rows
    return result


def is_unlabeled(rows: Dataset, task: TaskConfig) -> bool:
    """Return whether raw rows have none of the columns of the task's labels."""
    return not any(column in rows.column_names for column in task.target_columns)


def sample(rows: Dataset, count: int, seed: int, split: str) -> Dataset:
    """Return at most ``count`` rows in their order: the same rows for the same seed, split and number of rows."""
    if len(rows) <= count:
        return rows
    return rows.select(sorted(random.Random(f"{seed}-{split}").sample(range(len(rows)), count)))


def _read(name: str, split: str, value: str | Path, source: DataSource) -> Dataset:
    if not isinstance(value, Path):
        return read_hub_split(source, name, value)
    if value.is_dir():
        return read_folder(value, name, split)
    return read_file(value, f"Task {name!r}: the {split} split")


def _split_off(name: str, train: Dataset, share: float, seed: int, split: str) -> tuple[Dataset, Dataset]:
    """Return the training rows without a share of them, and this share."""
    count = round(len(train) * share)
    if not 0 < count < len(train):
        raise ConfigurationError(
            f"Task {name!r}: a share of {share} of {len(train)} training rows leaves {count} for {split} and "
            f"{len(train) - count} for train. Each needs at least one."
        )
    held_out = sorted(random.Random(f"{seed}-carve-{split}").sample(range(len(train)), count))
    # As an array: a list of millions of indices would be the largest object in memory.
    return train.select(np.delete(np.arange(len(train)), held_out)), train.select(held_out)


def _check_split(name: str, split: str, rows: Dataset, columns: list[str]) -> None:
    if len(rows) == 0:
        raise ConfigurationError(f"Task {name!r}: the {split} split must have rows; found none.")
    for column in columns:
        if column not in rows.column_names:
            raise ConfigurationError(
                f"Task {name!r} reads the column {column!r}, and its {split} split has "
                f"{', '.join(rows.column_names)}. The nearest is {nearest_key(column, rows.column_names)!r}."
            )


def _has_no_labels(rows: Dataset, task: TaskConfig) -> bool:
    return all(all(is_missing(value) for value in rows[column]) for column in task.target_columns)
