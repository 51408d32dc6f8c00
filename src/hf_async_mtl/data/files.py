"""Read the rows of files and folders, through the readers of `datasets`."""

from __future__ import annotations

import glob
import re
import warnings
from collections.abc import Collection, Iterator, Mapping, Sequence, Set
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd  # type: ignore[import-untyped]
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset, DatasetDict, Features, Value, load_dataset, load_from_disk
from datasets.data_files import DataFilesDict, get_data_patterns
from datasets.exceptions import DatasetGenerationError
from datasets.utils import logging

from ..validation import ConfigurationError
from .config import READERS, check_one_type, data_suffix
from .json_documents import read_document, read_objects

T = TypeVar("T")

WRITTEN = 20_000
"""Rows of one batch of a raw file. Opening the file reads the head of each batch."""
# Only an empty cell of a CSV file is a missing value: "NA" and "None" are words, and names of classes. The first cell
# of a line with one cell too many is not the name of the row.
_CSV_SETTINGS: dict[str, Any] = {"keep_default_na": False, "na_values": [""], "index_col": False}
_FORMS = {
    "json": "JSON lines in UTF-8 with the same fields in every row, each of one type throughout (1.0 beside 1.5)",
    "csv": "lines of UTF-8 with as many cells as the first",
    "parquet": "a Parquet file",
}
# Messages of the readers about a file without rows: of any reader, of that for Parquet, and of that for CSV.
_NO_ROWS = ("corresponds to no data", "BatchSize must be greater than 0", "No columns to parse from file")
# Files of `save_to_disk`: the first two are in the folder of a set, and of several.
_SAVED = ("state.json", "dataset_dict.json", "dataset_info.json")
_ERRORS = (DatasetGenerationError, ValueError, pa.ArrowException)


def read_files(
    paths: Sequence[Path],
    what: str,
    texts: Collection[str],
    labels: Collection[str] = (),
    separator: str | None = None,
) -> Dataset:
    """Read all rows of files of one of the `READERS`, one file after the other.

    Args:
        paths: The files.
        what: What they are to the user, for messages.
        texts: Columns of texts.
        labels: Columns of labels. Of a CSV file these alone may be numbers: all other cells are strings.
        separator: Of the cells of CSV files. Default: a tab for ``.tsv``, otherwise a comma.
    """
    named = f"{paths[0]}{f' and {len(paths) - 1} more' if len(paths) > 1 else ''}"
    filled = [path for path in paths if path.stat().st_size > 1000 or path.read_bytes().strip()]
    if not filled:
        raise ConfigurationError(f"{what} must have rows; {named} is empty.")
    reader = READERS[data_suffix(paths[0])]
    try:
        with _without_log(), warnings.catch_warnings():
            # Pandas drops cells beyond the header of a CSV file, and goes on.
            warnings.filterwarnings("error", "Length of header or names does not match")
            return _read(reader, filled, texts, labels, separator)
    except _ERRORS as error:
        cause = " ".join(str(error.__cause__ or error).split())
        if any(message in cause for message in _NO_ROWS):
            raise ConfigurationError(f"{what} must have rows; {named} has none.") from error
        for path in filled if len(filled) > 1 else ():
            # The file that cannot be read is named.
            read_files([path], what, texts, labels, separator)
        raise ConfigurationError(
            f"{what} must be {_FORMS[reader]}; {named} could not be read as {reader}: {cause[:300]}. "
            "Correct the row, or write the file again."
        ) from error


def _read(
    reader: str, paths: Sequence[Path], texts: Collection[str], labels: Collection[str], separator: str | None
) -> Dataset:
    if reader == "csv":
        return _typed(_read_csv(paths, separator), labels)
    try:
        return _read_json(paths, {*texts, *labels}) if reader == "json" else _load(reader, paths)
    except DatasetGenerationError:
        # The types are those of the first file, or of its beginning, where a column may be null.
        if len(paths) > 1:
            return _concatenate([_read(reader, [path], texts, labels, separator) for path in paths])
        if reader == "json":
            return _read_json(paths, {*texts, *labels}, chunksize=paths[0].stat().st_size)
        raise


def _load(reader: str, paths: Sequence[Path], **settings: Any) -> Dataset:
    files = {"rows": [glob.escape(str(path)) for path in paths]}
    return load_dataset(reader, data_files=files, split="rows", writer_batch_size=WRITTEN, **settings)


def _concatenate(parts: Sequence[Dataset]) -> Dataset:
    """Return the rows of several files, a column of nulls or of whole numbers as what it is in the others."""
    tables = [part.data.table.replace_schema_metadata() for part in parts]
    return Dataset(pa.concat_tables(tables, promote_options="permissive"))


def _read_csv(paths: Sequence[Path], separator: str | None) -> Dataset:
    """Read CSV files with all cells as strings: the text "1984" is no number, and the class "001" is not 1."""
    settings = {**_CSV_SETTINGS, "sep": separator or ("\t" if data_suffix(paths[0]) == ".tsv" else ",")}
    header = [str(column) for column in pd.read_csv(paths[0], nrows=0, **settings).columns]
    if separator is None and len(header) == 1 and (other := re.search(r"[;|,\t]", header[0])):
        raise ValueError(f"its only column is {header[0]!r}. If that is several, set `separator: {other[0]!r}`")
    return _load("csv", paths, features=Features(dict.fromkeys(header, Value("string"))), **settings)


def _read_json(paths: Sequence[Path], columns: Set[str], **settings: Any) -> Dataset:
    documents = [read_document(path, columns) for path in paths]
    if any(rows is not None for rows in documents):
        read = zip(paths, documents, strict=True)
        return _concatenate([_load("json", [path]) if rows is None else Dataset.from_list(rows) for path, rows in read])
    found = _load("json", paths, **settings)
    if any(str(found.features.get(column)).startswith("Value('timestamp") for column in columns):
        # Arrow takes strings for dates where it can read all of a column so.
        found = Dataset.from_list([row for path in paths for row in read_objects(path)])
    return found


def _typed(rows: Dataset, labels: Collection[str]) -> Dataset:
    """Return rows of a CSV file with columns of labels as whole numbers or booleans where all of their cells are.

    A code with a zero in front, such as 007, is a name, and so are all labels beside it.
    """
    for column in labels:
        if column not in rows.column_names:
            continue
        cells = pc.utf8_trim_whitespace(rows.data.column(column))
        for pattern, kind in (("^[+-]?(0|[1-9][0-9]{0,17})([.]0*)?$", pa.int64()), ("^(?i:true|false)$", pa.bool_())):
            if pc.all(pc.match_substring_regex(cells, pattern)).as_py():
                typed = pc.replace_substring_regex(cells, "^[+]|[.]0*$", "").cast(kind)
                rows = rows.remove_columns(column).add_column(column, typed.combine_chunks())
                break
    return rows


def read_folder(
    path: Path, what: str, split: str, texts: Collection[str], labels: Collection[str], separator: str | None
) -> Dataset:
    """Read a split from a folder of `save_to_disk`, or of files whose names tell their splits as on the Hub.

    Of a folder with one set, or with files whose names tell no split, all rows are read.
    """
    if any((path / name).exists() for name in _SAVED[:2]):
        saved = _load_saved(path, what)
        return saved if isinstance(saved, Dataset) else _pick(saved, path, what, split)
    files = _files_of_splits(path, what)
    chosen = next(iter(files.values())) if len(files) == 1 else _pick(files, path, what, split)
    check_one_type(chosen, what)
    return read_files(chosen, what, texts, labels, separator)


def _pick(sets: Mapping[str, T], path: Path, what: str, split: str) -> T:
    if split not in sets:
        raise ConfigurationError(f"{what}: the folder {path} has the splits {', '.join(sets)}, and no {split}.")
    return sets[split]


def _load_saved(path: Path, what: str) -> Dataset | DatasetDict:
    try:
        return load_from_disk(str(path))
    except (FileNotFoundError, ValueError) as error:
        raise ConfigurationError(f"{what} must be a folder that `save_to_disk` wrote; {path}: {error}") from error
    except IndexError as error:
        # This is how `datasets` reports a folder without rows.
        raise ConfigurationError(f"{what} must have rows; {path} has none.") from error


def _files_of_splits(path: Path, what: str) -> dict[str, list[Path]]:
    """Return the data files of a folder by the split that their names tell, as for a dataset on the Hub."""

    def has_rows(file: Path) -> bool:
        return data_suffix(file) in READERS and file.name not in _SAVED

    def find(patterns: dict[str, list[str]]) -> dict[str, list[Path]]:
        found = DataFilesDict.from_patterns(patterns, base_path=str(path))
        files = {str(split): sorted(map(Path, names)) for split, names in found.items()}
        return {split: kept for split, own in files.items() if (kept := [file for file in own if has_rows(file)])}

    try:
        files, (every,) = find(get_data_patterns(str(path))), find({"all": ["**"]}).values()
    except (FileNotFoundError, ValueError):
        raise ConfigurationError(
            f"{what} must be a folder that `save_to_disk` wrote, or with files of type {', '.join(READERS)}; found "
            f"neither in {path}."
        ) from None
    others = sorted(set(every) - {file for own in files.values() for file in own})
    if others:
        raise ConfigurationError(
            f"{what}: the names of all files in {path}, or of none, must tell their split ({', '.join(files)}); that "
            f"of {others[0].name} does not. Name the files, as a list or as {path.name}/*{others[0].suffix}."
        )
    return files


@contextmanager
def _without_log() -> Iterator[None]:
    """Silence the readers, which log a failure before they raise it."""
    level = logging.get_verbosity()
    logging.set_verbosity(logging.CRITICAL)
    try:
        yield
    finally:
        logging.set_verbosity(level)
