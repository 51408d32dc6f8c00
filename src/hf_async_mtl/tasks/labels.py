"""Class labels: the names of the classes, and the index of each raw label.

One rule for all task types and all sources: a label is a name if a name equals it. An integer is an index only if the
schema says so (a ``ClassLabel`` with names of the task), or if all labels of the column are integers from 0 to C - 1.
Everything else is refused.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from ..modeling.configuration_multitask import TaskConfig
from ..modeling.losses import IGNORE
from ..utils import truncated_repr
from ..validation import ConfigurationError
from .columns import column_pieces, file_row
from .special_labels import known_positive

if TYPE_CHECKING:
    from datasets import Dataset

HINT = "Correct the row, or leave it out."
"""What to do about a row that a message has named."""
_NUMBER = re.compile(r"-?(0|[1-9]\d*)(\.\d+)?")


class LabelError(ValueError):
    """A label that cannot be used. The message gives the requirement and the value found; ``row`` is in the file."""

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row


def _plain(value: Any) -> Any:
    """Return whole floats as integers (CSV readers turn a column of integers with a gap into floats)."""
    if isinstance(value, np.generic):
        value = value.item()
    return int(value) if isinstance(value, float) and value.is_integer() else value


def label_text(value: Any) -> str:
    """Return the name of a class that the data or a configuration write as a value.

    >>> label_text(1.0), label_text(True), label_text("True")
    ('1', 'true', 'True')
    """
    value = _plain(value)
    return str(value).lower() if isinstance(value, bool) else str(value)


def is_missing(value: Any) -> bool:
    """Return whether a label means "no label": None, NaN, -100, or the -1 of the Hub's unlabeled test splits."""
    return value is None or value in (-1, IGNORE) or (isinstance(value, float) and math.isnan(value))


def check_number(value: Any) -> float:
    """Return a regression target as a finite float; raise a `LabelError` if it is not one."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise LabelError(f"A regression label must be a number; found {truncated_repr(value)}.") from None
    if not math.isfinite(number):
        raise LabelError(f"A regression label must be a finite number; found {value!r}.")
    return number


# Labels of a column


def label_counts(dataset: Dataset, column: str) -> Counter[Any]:
    """Return how often each label occurs in a column of labels, or of lists of labels.

    They are counted in Arrow if possible: as Python objects, the values of millions of rows take a minute.
    """
    counts = Counter[Any]()
    feature = dataset.features[column]
    while hasattr(feature, "feature"):
        feature = feature.feature
    if type(feature).__name__ not in ("Value", "ClassLabel"):
        for labels in dataset.with_format(None)[column]:
            counts.update(_hashable(label) for label in (labels if isinstance(labels, list) else [labels]))
        return counts
    for _, labels in column_pieces(dataset, column):
        while pa.types.is_nested(labels.type):
            labels = labels.flatten()
        for entry in pc.value_counts(labels).to_pylist():
            counts[entry["values"]] += entry["counts"]
    return counts


def _hashable(label: Any) -> Any:
    if isinstance(label, list | dict):
        raise LabelError(f"A class label must be a string or a whole number; found {truncated_repr(label)}.")
    return label


def ignored_labels(task: TaskConfig, values: Collection[int]) -> set[int | str]:
    """Return those of the values for "no label", also as strings, that are not names of the task's classes."""
    found: set[int | str] = {*values, *map(str, values)}
    return {value for value in found if str(value) not in (task.label_names or ())}


# Names of the classes


def _sort_key(name: Any) -> tuple[bool, bool, float, str]:
    # "O" first, as in every tagger; numbers by value, so that "10" follows "9".
    is_number = isinstance(name, int | float)
    return str(name).lower() != "o", not is_number, float(name) if is_number else 0.0, str(name)


def find_label_names(values: Iterable[Any], ignored: Collection[int | str] = ()) -> list[str]:
    """Return the names of the classes, in the order of their indices, from all labels of a training split.

    Integers that fill 0..n-1 are class indices. All other values, strings and integers such as 1..5, are names, and are
    sorted: numbers by value, ``"O"`` before all other tags. Values that are ``ignored`` are no classes.

    >>> find_label_names([2, 0, 1]), find_label_names(["neg", "pos", "neg"]), find_label_names([True, False])
    (['0', '1', '2'], ['neg', 'pos'], ['false', 'true'])
    """
    found = {_plain(_hashable(value)) for value in values}.difference(ignored)
    for value in found:
        if is_missing(value) or value == "" or not isinstance(value, str | int):
            way_out = " If it is a class, name all classes in `label_names`." if value == -1 else ""
            raise LabelError(
                "A class label must be a string or a whole number other than -1, which says that there is no label; "
                f"found {truncated_repr(value)}.{way_out}"
            )
    strings = [value for value in found if isinstance(value, str)]
    if 0 < len(strings) < len(found):
        number = min(value for value in found if not isinstance(value, str))
        raise LabelError(
            "The labels of a task must be all strings or all whole numbers; found both, "
            f"{truncated_repr(min(strings))} and {number}."
        )
    return [label_text(value) for value in sorted(found, key=_sort_key)]


def find_column_labels(dataset: Dataset, column: str, ignored: Collection[int | str] = ()) -> list[str]:
    """Return the names of the classes in a column of a raw training split, from its schema or its values.

    An error names the row of a label that cannot be used, in the file that the rows come from.
    """
    names = _schema_names(dataset, column)
    if names is not None:
        return names
    try:
        return find_label_names(label_counts(dataset, column), ignored)
    except LabelError as error:
        for row, value in enumerate(dataset.with_format(None)[column]):
            try:
                find_label_names(value if isinstance(value, list) else [value], ignored)
            except LabelError:
                raise ConfigurationError(f"Column {column!r}, row {file_row(dataset, row)}: {error} {HINT}") from None
        raise ConfigurationError(f"Column {column!r}: {error} Write all in one way.") from None


def check_form(dataset: Dataset, column: str, task_type: str, in_lists: bool) -> None:
    """Raise a `ConfigurationError` unless the rows of a column have lists of labels, or a label each."""
    feature = dataset.features[column]
    if hasattr(feature, "feature") if in_lists else type(feature).__name__ in ("Value", "ClassLabel"):
        return
    values = dataset.with_format(None)[column]
    row = next((row for row, value in enumerate(values) if isinstance(value, list) != in_lists), None)
    if row is None:
        return
    wanted = "a list of labels" if in_lists else "a string or a whole number as its label"
    hint = " CSV files have no lists: use JSON lines or Parquet." if in_lists else ""
    raise ConfigurationError(
        f"Column {column!r}, row {file_row(dataset, row)}: a row of a {task_type} task must have {wanted}; "
        f"found {truncated_repr(values[row])}.{hint}"
    )


def _schema_names(dataset: Dataset, column: str) -> list[str] | None:
    """Return the names of a column of class labels, if the dataset's own schema has them (``ClassLabel``)."""
    feature = dataset.features[column]
    feature = getattr(feature, "feature", feature)
    names = getattr(feature, "names", None)
    return list(names) if names else None


# Indices of the classes


class LabelEncoder:
    """Turns a raw class label into its index, by the rule above; `unknown` labels have indices from C on.

    Args:
        names: Names of the classes.
        source_names: Names that integers of the column have in its own schema (``ClassLabel``).
        values: All different labels of the column. By default only the label of a call is known.
        ignored: Values that say "no label"; their index is -100.

    Raises:
        LabelError: The schema has names that are not those of the classes.

    Attributes:
        unknown: Labels that are no class of the task, in a column that has some of its classes -> their index. The task
            cannot predict them.
    """

    def __init__(
        self,
        names: Sequence[str],
        source_names: Sequence[str] | None = None,
        values: Iterable[Any] | None = None,
        ignored: Collection[int | str] = (),
    ) -> None:
        self.names, self._ignored = list(names), ignored
        self._index: Mapping[str, int] = {name: index for index, name in enumerate(names)}
        self._numbers = {float(name): index for name, index in self._index.items() if _NUMBER.fullmatch(name)}
        self._has_number_names = any(re.fullmatch(r"-?[\d.]*\d", name) for name in names)
        self._source = self._checked(source_names)
        found = {_plain(value) for value in values or ()}
        self._values = {value for value in found if not is_missing(value) and value not in ignored}
        # A label that is none of the indices is refused itself, and with it the column.
        self._takes_indices = not self._has_number_names and not any(isinstance(value, str) for value in self._values)
        self.unknown: dict[Any, int] = {}
        missing = [value for value in self._values if self._find(value) is None]
        if len(missing) < len(self._values) and not any(isinstance(value, float | bool) for value in missing):
            is_kind = self._has_number_names
            self.unknown = {
                value: len(self.names) + place
                for place, value in enumerate(sorted(missing, key=_sort_key))
                if value != "" and (isinstance(value, str) or is_kind)
            }

    def _checked(self, source: Sequence[str] | None) -> list[str] | None:
        """Return the names of a schema; None if it has none but numbers that are indices."""
        if source is None or (list(source) == [str(i) for i in range(len(self.names))]):
            return None
        if not all(name in self._index for name in source):
            raise LabelError(
                f"The names of the column's `ClassLabel` must be those of the task, [{listed(self.names)}]; found "
                f"[{listed(source)}]. Cast the column to strings or to these names, or set `label_names`."
            )
        return list(source)

    def _is_index(self, value: Any) -> bool:
        return isinstance(value, int) and 0 <= value < len(self.names)

    def _find(self, value: Any) -> int | None:
        """Return the index of a label; None if it is no class of the task."""
        if isinstance(value, bool):
            return self._find_bool(value)
        if self._source is not None and isinstance(value, int):
            return self._index[self._source[value]] if 0 <= value < len(self._source) else None
        index = self._index.get(str(value))
        if index is not None or isinstance(value, str):
            return index
        if value in self._numbers:
            return self._numbers[value]
        return value if self._takes_indices and self._is_index(value) else None

    def _find_bool(self, value: bool) -> int | None:
        lower = {name.lower(): index for name, index in self._index.items()}
        for name in (str(value).lower(), str(int(value))):
            if name in lower:
                return lower[name]
        if len(self.names) != 2:
            return None
        positive = known_positive(self.names)
        return int(value if positive is None else value == bool(positive))

    def __call__(self, value: Any) -> int:
        """Return the index, -100 for "no label"; raise a `LabelError` if the label is not known."""
        if isinstance(value, str) and value in self._index:
            return self._index[value]
        value = _plain(_hashable(value))
        if value in self._ignored:
            return IGNORE
        index = self._find(value)
        index = self.unknown.get(value) if index is None else index
        if index is None:
            raise self.refusal(value)
        return index

    def refusal(self, value: Any, row: int | None = None) -> LabelError:
        """Return the error for a label that is no class of the task."""
        others = f" The labels of the column are [{listed(self._values)}]." if len(self._values) > 1 else ""
        return LabelError(
            f"A label must be one of [{listed(self.names)}] or its index; found {truncated_repr(value)}.{others}", row
        )


def listed(names: Collection[Any]) -> str:
    """Return the first of some names for a message."""
    shown = list(names) if isinstance(names, Sequence) else sorted(names, key=_sort_key)
    return ", ".join(map(label_text, shown[:10])) + (", ..." if len(shown) > 10 else "")


def label_encoder(
    task: TaskConfig, dataset: Dataset, ignored: Collection[int] = (IGNORE,), names: Sequence[str] | None = None
) -> LabelEncoder:
    """Return the encoder of a task's class labels, as they are written in a raw dataset.

    ``names`` are those of the classes; default: the task's ``label_names``.
    """
    names = task.label_names if names is None else names
    assert names is not None
    assert isinstance(task.label_column, str)
    values = label_counts(dataset, task.label_column)
    return LabelEncoder(names, _schema_names(dataset, task.label_column), values, ignored_labels(task, ignored))


def refuse_unknown(task: TaskConfig, dataset: Dataset, ignored: Collection[int]) -> None:
    """Raise a `LabelError` for the first label in a raw training split that is no class of the task."""
    assert isinstance(task.label_column, str)
    encoder = label_encoder(task, dataset, ignored)
    for row, labels in enumerate(dataset.with_format(None)[task.label_column] if encoder.unknown else ()):
        for label in labels if isinstance(labels, list) else [labels]:
            if label in encoder.unknown:
                raise encoder.refusal(label, file_row(dataset, row))


def count_classes(task: TaskConfig, dataset: Dataset, ignored: Collection[int]) -> tuple[Counter[int], dict[Any, int]]:
    """Return how often each index occurs in raw rows, and the labels that are no classes -> their index.

    Both are empty if a label cannot be used: it is refused with its row when the rows are encoded.
    """
    assert isinstance(task.label_column, str)
    counts: Counter[int] = Counter()
    if task.label_column not in dataset.column_names:
        return counts, {}
    try:
        encoder = label_encoder(task, dataset, ignored)
        for label, count in label_counts(dataset, task.label_column).items():
            counts[encoder(label)] += count
    except (LabelError, UnicodeDecodeError):
        return Counter(), {}
    return counts, encoder.unknown
