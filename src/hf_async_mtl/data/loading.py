"""Load the raw splits of a task, from files, ``save_to_disk`` folders or the Hub: read, split off and sampled."""

from __future__ import annotations

import os
import random
from collections.abc import Mapping
from pathlib import Path

import numpy as np
from datasets import Dataset, load_dataset
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from transformers.utils import logging

from ..modeling.configuration_multitask import TaskConfig
from ..tasks.columns import select_rows
from ..tasks.labels import is_missing
from ..tasks.rows import labeled_rows, labeled_sets, plain_rows
from ..utils import nearest_hint
from ..validation import ConfigurationError
from .config import SPLITS, DataSource
from .files import WRITTEN, read_files, read_folder

logger = logging.get_logger(__name__)


def load_splits(
    name: str, task: TaskConfig, source: DataSource, seed: int, *, has_teacher: bool = False
) -> dict[str, Dataset]:
    """Load the raw splits of a task, with a seed for the rows that are split off and for samples (``data_seed``).

    Rows whose label is null do not belong to the task; a warning has their number. The training rows of a task with an
    external teacher need no labels. A test split or a further validation set whose labels are all missing, or -1 as on
    the Hub, is left out.

    Returns:
        Split -> rows, in the order train, validation, further validation sets, test.

    Raises:
        ConfigurationError: A split or a column is missing, a split is empty, or a file cannot be read.
    """
    loaded = read_splits(name, task, source, has_teacher=has_teacher)
    return divide_splits(name, task, loaded, source, seed)


def read_splits(name: str, task: TaskConfig, source: DataSource, *, has_teacher: bool = False) -> dict[str, Dataset]:
    """Read the rows of the splits that have a file, a folder or a split of the Hub; see `load_splits`."""
    loaded = {}
    for split, value in source.splits.items():
        if isinstance(value, Mapping):
            continue
        rows = plain_rows(_read(name, task, split, source))
        needs_labels = not (has_teacher and split == "train" and is_unlabeled(rows, task))
        _check_split(name, split, rows, [*task.input_columns, *(task.target_columns if needs_labels else ())])
        loaded[split] = rows
    return loaded


def divide_splits(
    name: str, task: TaskConfig, read: Mapping[str, Dataset], source: DataSource, seed: int
) -> dict[str, Dataset]:
    """Split rows off the training rows, leave out rows without a label, and take samples; see `load_splits`."""
    loaded = dict(read)
    for split, value in source.splits.items():
        if isinstance(value, Mapping):
            # Before sampling: which rows are held out does not depend on `max_samples`.
            loaded["train"], loaded[split] = _split_off(name, loaded["train"], value["from_train"], seed, split)
    for split in sorted(loaded.keys() - {"train", "validation"}):
        if _has_no_labels(loaded[split], task):
            del loaded[split]
            if split != "test":
                _warn(f"Task {name!r}: the {split} split has no labels of the task, and is left out of it.")
    order = sorted(loaded, key=lambda split: (SPLITS.index(split.split("_")[0]), split))
    # After the split: what is held out of a table is held out of all its tasks.
    labeled, message = labeled_sets(name, task, {split: loaded[split] for split in order})
    if message is not None:
        _warn(message)
    limits = source.max_samples
    return {split: sample(rows, limits.get(split, len(rows)), seed, split) for split, rows in labeled.items()}


def _warn(message: str) -> None:
    if os.environ.get("RANK", "0") == "0":
        logger.warning(message)


def is_unlabeled(rows: Dataset, task: TaskConfig) -> bool:
    """Return whether raw rows have none of the columns of the task's labels."""
    return not any(column in rows.column_names for column in task.target_columns)


def sample(rows: Dataset, count: int, seed: int, split: str) -> Dataset:
    """Return at most ``count`` rows in their order: the same rows for the same seed, split and number of rows."""
    if len(rows) <= count:
        return rows
    drawn = sorted(random.Random(f"{seed}-{split}").sample(range(len(rows)), count))
    return select_rows(rows, np.array(drawn))


def _read(name: str, task: TaskConfig, split: str, source: DataSource) -> Dataset:
    value, what = source.splits[split], f"Task {name!r}: the {split} split"
    if isinstance(value, str):
        return read_hub_split(source, name, value)
    columns = (task.input_columns, task.target_columns)
    if isinstance(value, Path) and value.is_dir():
        return read_folder(value, what, split, *columns, source.separator)
    return read_files([value] if isinstance(value, Path) else value, what, *columns, source.separator)


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
    return select_rows(train, np.delete(np.arange(len(train)), held_out)), select_rows(train, np.array(held_out))


def _check_split(name: str, split: str, rows: Dataset, columns: list[str]) -> None:
    if len(rows) == 0:
        raise ConfigurationError(f"Task {name!r}: the {split} split must have rows; found none.")
    for column in columns:
        if column not in rows.column_names:
            raise ConfigurationError(
                f"Task {name!r} reads the column {column!r}, and its {split} split has "
                f"{', '.join(rows.column_names)}.{nearest_hint(column, rows.column_names)}"
            )


def _has_no_labels(rows: Dataset, task: TaskConfig) -> bool:
    hidden = all(all(is_missing(value) for value in rows[column]) for column in task.target_columns)
    return hidden or (len(rows) > 0 and len(labeled_rows(rows, task)) == 0)


def read_hub_split(source: DataSource, name: str, split: str) -> Dataset:
    """Read a split of a task from a dataset of the Hub."""
    try:
        return load_dataset(source.hub, source.name, split=split, revision=source.revision, writer_batch_size=WRITTEN)
    except (DatasetNotFoundError, DatasetGenerationError, ConnectionError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"Task {name!r}: the split {split!r} of {source.hub!r} ({source.name or 'default configuration'}) could "
            f"not be loaded: {' '.join(str(error).split())}"
        ) from error
