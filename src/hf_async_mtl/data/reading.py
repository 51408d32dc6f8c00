"""Read one split: JSON lines, CSV, Parquet, a ``save_to_disk`` folder, or a dataset of the Hub."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from datasets import Dataset, DatasetDict, load_dataset, load_from_disk
from datasets.exceptions import DatasetGenerationError, DatasetNotFoundError
from datasets.utils import logging

from ..validation import ConfigurationError
from .config import READERS, DataSource

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
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
