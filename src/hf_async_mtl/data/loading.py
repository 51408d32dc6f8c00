"""From what a task's ``data`` section names to its raw splits: Hub ids, JSON lines, CSV, Parquet, saved folders."""

from __future__ import annotations

import random
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.utils import logging

from ..distillation.unlabeled import is_unlabelled
from ..modeling.configuration_multitask import ConfigurationError, TaskConfig
from ..tasks.labels import is_missing
from ..utils import nearest_key
from .config import READERS, DataSource

__all__ = ["load_split", "load_splits", "read_file", "sample"]

# Rows of one batch of a raw file. The head of each batch is read when the file is opened, with 64 KiB around it.
_BATCH = 20_000
# Only an empty cell of a CSV file is a missing value: "NA" and "None" are words, and names of classes. The first cell
# of a line that has one too many is no name of the row, with all others under the wrong heading.
_READER_SETTINGS: dict[str, dict[str, Any]] = {"csv": {"keep_default_na": False, "na_values": [""], "index_col": False}}
_FORMS = {
    "json": "JSON lines in UTF-8 with the same fields in every row, each of one type throughout (1.0 beside 1.5)",
    "csv": "lines of UTF-8 with as many cells as the first, each column of one type throughout (1.0 beside 1.5)",
    "parquet": "a Parquet file",
}
# What the readers say of nothing: any of them, and Parquet's.
_SIGNS_OF_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0")


def sample(rows: Dataset, count: int, seed: int, split: str) -> Dataset:
    """At most ``count`` rows, in their order: the same sample for the same seed, split and number of rows."""
    if len(rows) <= count:
        return rows
    return rows.select(sorted(random.Random(f"{seed}-{split}").sample(range(len(rows)), count)))


def load_splits(
    name: str, task: TaskConfig, source: DataSource, seed: int, *, taught: bool = False
) -> dict[str, Dataset]:
    """Load the raw splits of a task.

    Args:
        name: The task's name, for messages.
        task: The task; its columns must be there.
        source: Where the splits are.
        seed: Of the carve and of the samples (``data_seed``).
        taught: Whether the task has a teacher from outside: then its training rows may be without labels.

    Returns:
        Split -> rows, in the order train, validation, further validation sets, test. A test split whose labels are all
        missing, or -1 as on the Hub, is left out.

    Raises:
        ConfigurationError: A split or a column is missing, a split is empty, or a file cannot be read.
    """
    loaded = {
        split: load_split(name, split, value, source)
        for split, value in source.splits.items()
        if not isinstance(value, Mapping)
    }
    for split, value in source.splits.items():
        if isinstance(value, Mapping):
            # Carved before it is sampled: the rows that are held out do not depend on a limit.
            loaded["train"], loaded[split] = _carve(name, loaded["train"], value["from_train"], seed, split)
    ordered = sorted(loaded, key=lambda split: (["train", "validation", "test"].index(split.split("_")[0]), split))
    result = {}
    for split in ordered:
        rows = loaded[split]
        if len(rows) == 0:
            raise ConfigurationError(f"Task {name!r}: the {split} split must have rows; found none.")
        needs_labels = not (taught and split == "train" and is_unlabelled(rows, task))
        for column in [*task.input_columns, *(task.target_columns if needs_labels else ())]:
            if column not in rows.column_names:
                nearest = nearest_key(column, rows.column_names)
                raise ConfigurationError(
                    f"Task {name!r} reads the column {column!r}, and its {split} split has "
                    f"{', '.join(rows.column_names)}. The nearest is {nearest!r}."
                )
        if split == "test" and _unlabelled(rows, task):
            continue
        result[split] = sample(rows, source.max_samples[split], seed, split) if split in source.max_samples else rows
    return result


def _unlabelled(rows: Dataset, task: TaskConfig) -> bool:
    return all(all(is_missing(value) for value in rows[column]) for column in task.target_columns)


def _carve(name: str, train: Dataset, share: float, seed: int, split: str) -> tuple[Dataset, Dataset]:
    count = round(len(train) * share)
    if not 0 < count < len(train):
        raise ConfigurationError(
            f"Task {name!r}: a share of {share} of {len(train)} training rows leaves {count} for {split} and "
            f"{len(train) - count} for train. Each needs at least one."
        )
    held_out = sorted(random.Random(f"{seed}-carve-{split}").sample(range(len(train)), count))
    # As an array: a list of millions of places would be the largest thing in memory.
    return train.select(np.delete(np.arange(len(train)), held_out)), train.select(held_out)


def load_split(name: str, split: str, value: str | Path, source: DataSource) -> Dataset:
    """Load one split as it is.

    Args:
        name: The task's name, for messages.
        split: What the split is to the task, for messages.
        value: A path, or the name of a split of the Hub's dataset.
        source: The dataset, where it is the Hub's.

    Raises:
        ConfigurationError: It cannot be read.
    """
    if isinstance(value, Path):
        return (
            _load_folder(name, split, value)
            if value.is_dir()
            else read_file(value, f"Task {name!r}: the {split} split")
        )
    try:
        return load_dataset(source.hub, source.name, split=value, revision=source.revision, writer_batch_size=_BATCH)
    except (DatasetNotFoundError, DatasetGenerationError, ConnectionError, ValueError, OSError) as error:
        # A wrong id, configuration or split, or no way to the Hub: in all cases the user's next move.
        raise ConfigurationError(
            f"Task {name!r}: the split {value!r} of {source.hub!r} ({source.name or 'default configuration'}) could "
            f"not be loaded: {' '.join(str(error).split())}"
        ) from error


def _load_folder(name: str, split: str, path: Path) -> Dataset:
    try:
        loaded = load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise ConfigurationError(
            f"Task {name!r}: the folder {path} must be one that `save_to_disk` wrote: {error}"
        ) from error
    except IndexError as error:
        # All that `datasets` says of a folder without rows.
        raise ConfigurationError(f"Task {name!r}: the {split} split must have rows; {path} has none.") from error
    if not isinstance(loaded, DatasetDict):
        return loaded
    if split not in loaded:
        raise ConfigurationError(
            f"Task {name!r}: the folder {path} has the splits {', '.join(loaded)}, and no {split}."
        )
    return loaded[split]


def read_file(path: Path, what: str) -> Dataset:
    """All rows of a file of one of the `READERS`.

    Args:
        path: The file.
        what: What it is to the user, for messages.

    Raises:
        ConfigurationError: It has no rows, or cannot be read.
    """
    if path.stat().st_size == 0:
        raise ConfigurationError(f"{what} must have rows; {path} is empty.")
    reader = READERS[path.suffix]
    try:
        with _without_log(), warnings.catch_warnings():
            # Pandas drops what a CSV file has beyond its header, and goes on.
            warnings.filterwarnings("error", "Length of header or names does not match")
            return load_dataset(
                reader,
                data_files={"rows": str(path)},
                split="rows",
                writer_batch_size=_BATCH,
                **_READER_SETTINGS.get(reader, {}),
            )
    except (DatasetGenerationError, ValueError) as error:
        cause = str(error.__cause__ or error)
        if any(sign in cause for sign in _SIGNS_OF_NO_ROWS):
            raise ConfigurationError(f"{what} must have rows; {path} has none.") from error
        raise ConfigurationError(
            f"{what} must be {_FORMS[reader]}; {path} could not be read as {reader}: {' '.join(cause.split())[:300]}. "
            "Correct the row, or write the file anew."
        ) from error


@contextmanager
def _without_log() -> Iterator[None]:
    """Readers log their failures before they raise; the user is to read them once."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
