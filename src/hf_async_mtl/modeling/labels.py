"""Labels: find their names in a training split, and turn a raw label into what a loss is computed on."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

__all__ = ["WAY_OUT", "LabelEncoder", "LabelError", "check_number", "find_label_names", "is_missing", "shown"]

WAY_OUT = "Correct the row, or leave it out."
"""What to do about a row that a message has named."""


class LabelError(ValueError):
    """A label that cannot be used. The message says what was required and what was found."""


def shown(value: Any) -> str:
    """A value for a message: as Python writes it, up to what fits a line or two.

    Examples:
        >>> shown("good"), len(shown("good cat" * 1_000_000))
        ("'good'", 200)
    """
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


def _plain(value: Any) -> Any:
    """Booleans and whole floats are integers: CSV readers turn a column of integers with a gap into floats."""
    if isinstance(value, bool):
        return int(value)
    if isinstance(value, float) and value.is_integer():
        return int(value)
    return value


def is_missing(value: Any) -> bool:
    """Whether a label says "no label": None, NaN, or the -1 of the Hub's unlabelled test splits."""
    return value is None or value == -1 or (isinstance(value, float) and math.isnan(value))


def _sort_key(name: Any) -> tuple[bool, bool, float, str]:
    # "O" first, as every tagger has it; numbers in their own order, so that "10" follows "9".
    is_number = isinstance(name, int | float)
    return name != "O", not is_number, float(name) if is_number else 0.0, str(name)


def find_label_names(values: Iterable[Any]) -> list[str]:
    """Find the names of the classes in the labels of a training split.

    Integers that fill 0..n-1 are class indices. All other values, strings and integers such as 1..5, are names, and are
    sorted: numbers in their own order, ``"O"`` before all other tags.

    Args:
        values: All labels of the split, flattened.

    Returns:
        The names, at index i the name of class i.

    Raises:
        LabelError: A label is missing or empty, is a number with a fraction, or strings and numbers are mixed.

    Examples:
        >>> find_label_names(["neg", "pos", "neg"])
        ['neg', 'pos']
        >>> find_label_names([2, 0, 1])
        ['0', '1', '2']
    """
    found = set()
    for value in values:
        if isinstance(value, list | dict):
            raise LabelError(f"A class label must be a string or a whole number; found {shown(value)}.")
        found.add(_plain(value))
    for value in found:
        if is_missing(value) or value == "" or not isinstance(value, str | int):
            raise LabelError(
                "A class label must be a string or a whole number other than -1, which says that there is no label; "
                f"found {shown(value)}."
            )
    strings = [value for value in found if isinstance(value, str)]
    if 0 < len(strings) < len(found):
        number = min(value for value in found if not isinstance(value, str))
        raise LabelError(
            "The labels of a task must be all strings or all whole numbers; found both, "
            f"{shown(min(strings))} and {number}."
        )
    return [str(value) for value in sorted(found, key=_sort_key)]


class LabelEncoder:
    """Turns a raw class label into its index.

    Args:
        labels: The names of the classes.
        source_names: The names behind integers in the data, where the data's own schema has them (``ClassLabel``).

    Examples:
        >>> encode = LabelEncoder(["neg", "pos"])
        >>> encode("pos"), encode(0)
        (1, 0)
    """

    def __init__(self, labels: Sequence[str], source_names: Sequence[str] | None = None) -> None:
        self.labels = list(labels)
        self._index: Mapping[str, int] = {name: index for index, name in enumerate(labels)}
        # A schema whose names are not ours (a preset's labels, renamed by the user) speaks in indices.
        known = source_names is not None and all(name in self._index for name in source_names)
        self._source_names = source_names if known else None
        self._named_by_numbers = any(name.lstrip("-").isdigit() for name in labels)

    def __call__(self, value: Any) -> int:
        value = _plain(value)
        if self._source_names is not None and isinstance(value, int) and 0 <= value < len(self._source_names):
            value = self._source_names[value]
        index = self._index.get(str(value))
        if index is not None:
            return index
        if isinstance(value, int) and 0 <= value < len(self.labels) and not self._named_by_numbers:
            return value
        known = ", ".join(self.labels[:10]) + (", ..." if len(self.labels) > 10 else "")
        raise LabelError(f"A label must be one of [{known}] or its index; found {shown(value)}.")


def check_number(value: Any) -> float:
    """Return a regression target as a finite float, or raise a `LabelError` that shows what was found."""
    try:
        number = float(value)
    except (TypeError, ValueError):
        raise LabelError(f"A regression label must be a number; found {shown(value)}.") from None
    if not math.isfinite(number):
        raise LabelError(f"A regression label must be a finite number; found {value!r}.")
    return number
