"""Class labels: find their names in a training split, and turn a raw label into the index of its class."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from ..modeling.configuration_multitask import TaskConfig
from ..utils import truncated_repr
from ..validation import ConfigurationError

if TYPE_CHECKING:
    from datasets import Dataset

HINT = "Correct the row, or leave it out."
"""What to do about a row that a message has named."""


class LabelError(ValueError):
    """A label that cannot be used. The message gives the requirement and the value found."""


def _plain(value: Any) -> Any:
    """Return booleans and whole floats as integers: CSV readers turn a column of integers with a gap into floats."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def is_missing(value: Any) -> bool:
    """Return whether a label means "no label": None, NaN, or the -1 of the Hub's unlabeled test splits."""
    return value is None or value == -1 or (isinstance(value, float) and math.isnan(value))


def check_number(value: Any) -> float:
    """Return a regression target as a finite float; raise a `LabelError` if it is not one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise LabelError(f"A regression label must be a number; found {truncated_repr(value)}.") from None
    if not math.isfinite(number):
        raise LabelError(f"A regression label must be a finite number; found {value!r}.")
    return number


# Names of the classes


def _sort_key(name: Any) -> tuple[bool, bool, float, str]:
    # "O" first, as in every tagger; numbers by value, so that "10" follows "9".
    is_number = isinstance(name, int | float)
    return name != "O", not is_number, float(name) if is_number else 0.0, str(name)


def find_label_names(values: Iterable[Any]) -> list[str]:
    """Return the names of the classes, in the order of their indices, from all labels of a training split.

    Integers that fill 0..n-1 are class indices. All other values, strings and integers such as 1..5, are names, and are
    sorted: numbers by value, ``"O"`` before all other tags.

    >>> find_label_names([2, 0, 1]), find_label_names(["neg", "pos", "neg"])
    (['0', '1', '2'], ['neg', 'pos'])
    """
    found = set()
    for value in values:
        if isinstance(value, list | dict):
            raise LabelError(f"A class label must be a string or a whole number; found {truncated_repr(value)}.")
        found.add(_plain(value))
    for value in found:
        if is_missing(value) or value == "" or not isinstance(value, str | int):
            raise LabelError(
                "A class label must be a string or a whole number other than -1, which says that there is no label; "
                f"found {truncated_repr(value)}."
            )
    strings = [value for value in found if isinstance(value, str)]
    if 0 < len(strings) < len(found):
        number = min(value for value in found if not isinstance(value, str))
        raise LabelError(
            "The labels of a task must be all strings or all whole numbers; found both, "
            f"{truncated_repr(min(strings))} and {number}."
        )
    return [str(value) for value in sorted(found, key=_sort_key)]


def find_column_labels(dataset: Dataset, column: str, task_type: str, in_lists: bool) -> list[str]:
    """Return the names of the classes in a column of a raw training split, from its schema or its values.

    A row has a list of labels if they are ``in_lists``. An error names the row of a label that cannot be used.
    """
    names = _schema_names(dataset, column)
    if names is not None:
        return names
    try:
        return find_label_names(
            _labels_in_lists(dataset, column, task_type) if in_lists else unique_values(dataset, column)
        )
    except LabelError as error:
        row = _first_bad_row(dataset[column], in_lists)
        if row is None:
            raise ConfigurationError(f"Column {column!r}: {error} Write all in one way.") from None
        raise ConfigurationError(f"Column {column!r}, row {row}: {error} {HINT}") from None


def unique_values(dataset: Dataset, column: str) -> Iterable[Any]:
    """Return the values of a column, each at least once.

    They are found in Arrow if possible: as Python objects, the values of millions of rows take a minute.
    """
    is_plain = type(dataset.features[column]).__name__ == "Value"
    return dataset.select_columns([column]).unique(column) if is_plain else dataset[column]


def _labels_in_lists(dataset: Dataset, column: str, task_type: str) -> Iterator[Any]:
    for row, labels in enumerate(dataset[column]):
        if labels is not None and not isinstance(labels, list):
            raise ConfigurationError(
                f"Column {column!r}, row {row}: a row of a {task_type} task must have a list of labels; found "
                f"{truncated_repr(labels)}. CSV files have no lists: use JSON lines or Parquet."
            )
        yield from labels or ()


def _first_bad_row(values: Iterable[Any], in_lists: bool) -> int | None:
    """Return the first row with a label that cannot be used; None if only the labels together cannot be used."""
    for row, value in enumerate(values):
        try:
            find_label_names(value or () if in_lists else [value])
        except LabelError:
            return row
    return None


def _schema_names(dataset: Dataset, column: str) -> list[str] | None:
    """Return the names of a column of class labels, if the dataset's own schema has them (``ClassLabel``)."""
    feature = dataset.features[column]
    feature = getattr(feature, "feature", feature)
    names = getattr(feature, "names", None)
    return list(names) if names else None


# Indices of the classes


class LabelEncoder:
    """Turns a raw class label into its index.

    Integers in the data have the ``source_names``, if the data's own schema has some (``ClassLabel``).
    """

    def __init__(self, labels: Sequence[str], source_names: Sequence[str] | None = None) -> None:
        self.labels = list(labels)
        self._index: Mapping[str, int] = {name: index for index, name in enumerate(labels)}
        # A schema whose names are not ours (a preset's labels, renamed by the user) contains indices.
        known = source_names is not None and all(name in self._index for name in source_names)
        self._source_names = source_names if known else None
        self._named_by_numbers = any(name.lstrip("-").isdigit() for name in labels)

    def __call__(self, value: Any) -> int:
        """Return the index; raise a `LabelError` if the label is not known."""
        value = _plain(value)
        if self._source_names is not None and isinstance(value, int) and 0 <= value < len(self._source_names):
            value = self._source_names[value]
        index = self._index.get(str(value))
        if index is not None:
            return index
        if isinstance(value, int) and 0 <= value < len(self.labels) and not self._named_by_numbers:
            return value
        known = ", ".join(self.labels[:10]) + (", ..." if len(self.labels) > 10 else "")
        raise LabelError(f"A label must be one of [{known}] or its index; found {truncated_repr(value)}.")


def label_encoder(task: TaskConfig, dataset: Dataset) -> LabelEncoder:
    """Return the encoder of a task's class labels, as they are written in a raw dataset."""
    assert task.label_names is not None
    assert isinstance(task.label_column, str)
    return LabelEncoder(task.label_names, _schema_names(dataset, task.label_column))
