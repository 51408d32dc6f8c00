"""Load the raw splits of a task, from files, ``save_to_disk`` folders or the Hub: read, split off and sampled."""

from __future__ import annotations

import os
import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.utils import logging as datasets_logging
from transformers.utils import logging

from ..modeling.configuration_multitask import TaskConfig
from ..tasks.labels import is_missing
from ..tasks.rows import labeled_sets, plain_rows
from ..utils import nearest_hint
from ..validation import ConfigurationError
from .config import READERS, SPLITS, DataSource

logger = logging.get_logger(__name__)

# Rows of one batch of a raw file. Opening the file reads the head of each batch.
_BATCH = 20_000
# Only an empty cell of a CSV file is a missing value: "NA" and "None" are words, and names of classes. The first cell
# of a line with one cell too many is not the name of the row.
_READER_SETTINGS: dict[str, dict[str, Any]] = {"csv": {"keep_default_na": False, "na_values": [""], "index_col": False}}
_FORMS = {
    "json": "JSON lines in UTF-8 with the same fields in every row, each of one type throughout (1.0 beside 1.5)",
    "csv": "lines of UTF-8 with as many cells as the first, each column of one type throughout (1.0 beside 1.5)",
    "parquet": "a Parquet file",
}
# Messages of the readers about a file without rows: of any reader, and of that for Parquet.
_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0")


def load_splits(
    name: str, task: TaskConfig, source: DataSource, seed: int, *, has_teacher: bool = False
) -> dict[str, Dataset]:
    """Load the raw splits of a task, with a seed for the rows that are split off and for samples (``data_seed``).

    Rows whose label is null do not belong to the task; a warning has their number. The training rows of a task with an
    external teacher need no labels. A test split whose labels are all missing, or -1 as on the Hub, is left out.

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
        rows = plain_rows(loaded[split])
        needs_labels = not (has_teacher and split == "train" and is_unlabeled(rows, task))
        _check_split(name, split, rows, [*task.input_columns, *(task.target_columns if needs_labels else ())])
        if split == "test" and _has_no_labels(rows, task):
            continue
        result[split] = rows
    # After the split: what is held out of a table is held out of all its tasks.
    result, message = labeled_sets(name, task, result)
    if message is not None and os.environ.get("RANK", "0") == "0":
        logger.warning(message)
    limits = source.max_samples
    return {split: sample(rows, limits.get(split, len(rows)), seed, split) for split, rows in result.items()}


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
                f"{', '.join(rows.column_names)}.{nearest_hint(column, rows.column_names)}"
            )


def _has_no_labels(rows: Dataset, task: TaskConfig) -> bool:
    return all(all(is_missing(value) for value in rows[column]) for column in task.target_columns)


# One split


def read_file(path: Path, what: str) -> Dataset:
    """Read all rows of a file of one of the `READERS`; a message says ``what`` it is to the user."""
    if path.stat().st_size == 0:
        raise ConfigurationError(f"{what} must have rows; {path} is empty.")
    reader = READERS[path.suffix]
    settings = _READER_SETTINGS.get(reader, {})
    try:
        with _without_log(), warnings.catch_warnings():
            # Pandas drops cells beyond the header of a CSV file, and goes on.
            warnings.filterwarnings("error", "Length of header or names does not match")
            return load_dataset(
                reader, data_files={"rows": str(path)}, split="rows", writer_batch_size=_BATCH, **settings
            )
    except (DatasetGenerationError, ValueError) as error:
        cause = str(error.__cause__ or error)
        if any(message in cause for message in _NO_ROWS):
            raise ConfigurationError(f"{what} must have rows; {path} has none.") from error
        raise ConfigurationError(
            f"{what} must be {_FORMS[reader]}; {path} could not be read as {reader}: {' '.join(cause.split())[:300]}. "
            "Correct the row, or write the file again."
        ) from error


def read_folder(path: Path, name: str, split: str) -> Dataset:
    """Read a split of a task from a folder of `save_to_disk`, which has one dataset or a `DatasetDict`."""
    try:
        loaded = load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise ConfigurationError(
            f"Task {name!r}: the folder {path} must be one that `save_to_disk` wrote: {error}"
        ) from error
    except IndexError as error:
        # This is how `datasets` reports a folder without rows.
        raise ConfigurationError(f"Task {name!r}: the {split} split must have rows; {path} has none.") from error
    if not isinstance(loaded, DatasetDict):
        return loaded
    if split not in loaded:
        raise ConfigurationError(
            f"Task {name!r}: the folder {path} has the splits {', '.join(loaded)}, and no {split}."
        )
    return loaded[split]


def read_hub_split(source: DataSource, name: str, split: str) -> Dataset:
    """Read a split of a task from a dataset of the Hub."""
    try:
        return load_dataset(source.hub, source.name, split=split, revision=source.revision, writer_batch_size=_BATCH)
    except (DatasetNotFoundError, DatasetGenerationError, ConnectionError, ValueError, OSError) as error:
        raise ConfigurationError(
            f"Task {name!r}: the split {split!r} of {source.hub!r} ({source.name or 'default configuration'}) could "
            f"not be loaded: {' '.join(str(error).split())}"
        ) from error


@contextmanager
def _without_log() -> Iterator[None]:
    """Silence the readers, which log a failure before they raise it."""
    level = datasets_logging.get_verbosity()
    datasets_logging.set_verbosity(datasets_logging.CRITICAL)
    try:
        yield
    finally:
        datasets_logging.set_verbosity(level)
