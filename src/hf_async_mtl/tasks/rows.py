"""Prepare raw sets: remove their output format, and leave out the rows without a label of the task."""

from __future__ import annotations

from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ..modeling.configuration_multitask import TaskConfig
from ..modeling.losses import IGNORE
from ..utils import nearest_hint
from ..validation import ConfigurationError
from .columns import column_pieces, select_rows
from .labels import ignored_labels, label_text, listed
from .registry import TASK_TYPES
from .special_labels import known_positive, positive_index


def plain_rows(rows: Any, what: str = "The rows of a task") -> Dataset:
    """Return a raw set whose rows are Python values, whatever its format: numpy, pandas, polars, arrow, torch, ...

    A message says ``what`` the set is to the user.

    Raises:
        ConfigurationError: It is not a set of `datasets`, or a transform computes its rows while they are read.
    """
    if not isinstance(rows, Dataset):
        splits = f" Take one of its splits: {', '.join(map(repr, rows))}." if isinstance(rows, Mapping) else ""
        raise ConfigurationError(
            f"{what} must be a `datasets.Dataset`; found {type(rows).__name__}."
            f"{splits or ' `Dataset.from_pandas`, `from_polars`, `from_list` and `from_generator` make one.'}"
        )
    if rows.format["type"] == "custom":
        raise ConfigurationError(
            f"{what} must have no transform (`set_transform`, `with_transform`): they are tokenized once, before "
            "training. Apply it to all rows with `rows.with_format(None).map(transform, batched=True)`, or remove it "
            "with `rows.with_format(None)`."
        )
    return rows.with_format(None)


def labeled_rows(rows: Dataset, task: TaskConfig, what: str = "The rows of a task") -> Dataset:
    """Return the plain rows that have a label of a task, in one of its label columns: not null, and not ignored.

    Rows without the columns of the labels are returned as they are.
    """
    rows = plain_rows(rows, what)
    found = _have_labels(rows, task, _ignored(task))
    return rows if found.all() else select_rows(rows, np.flatnonzero(found))


def training_rows(rows: Any, task: TaskConfig) -> Dataset:
    """Return the `labeled_rows` of a raw training set, or of the split ``train`` of a dictionary of splits.

    Raises:
        ConfigurationError: They are no plain set, or lack the labels that `TaskConfig.resolve` needs.
    """
    rows = labeled_rows(rows["train"] if isinstance(rows, Mapping) and "train" in rows else rows, task)
    missing = [column for column in task.target_columns if column not in rows.column_names]
    try:
        TASK_TYPES[task.type].check_unlabeled(task)
    except ConfigurationError:
        if missing:
            raise ConfigurationError(
                f"The training rows must have the column of labels {missing[0]!r}; they have "
                f"{', '.join(rows.column_names)}.{nearest_hint(missing[0], rows.column_names)}"
            ) from None
    return rows


def is_scored(rows: Dataset, task: TaskConfig) -> bool:
    """Return whether rows to predict can be scored: none has a null for its label, and some have a label."""
    rows = plain_rows(rows)
    return bool(_have_labels(rows, task, ()).all() and _have_labels(rows, task, _ignored(task)).any())


def _ignored(task: TaskConfig) -> set[int | str]:
    return ignored_labels(task, TASK_TYPES[task.type].ignored)


def _have_labels(rows: Dataset, task: TaskConfig, ignored: Collection[int | str]) -> np.ndarray:
    columns = [column for column in task.target_columns if column in rows.column_names]
    if not columns or len(rows) == 0:
        return np.ones(len(rows), dtype=bool)
    found = np.zeros(len(rows), dtype=bool)
    for column in columns:
        for places, values in column_pieces(rows, column):
            found[places] |= ~_is_missing(values, ignored)
    return found


def _is_missing(column: pa.Array, ignored: Collection[int | str]) -> np.ndarray:
    """Return which values of a column say "no label", ``[N]``; a dictionary does if all its values do.

    A list does if all its labels are ignored; a null in a list is a mistake.
    """
    found = pc.is_null(column).to_numpy(zero_copy_only=False)
    if pa.types.is_struct(column.type):
        fields = [pc.struct_field(column, index) for index in range(column.type.num_fields)]
        return found | np.all([_is_missing(field, ignored) for field in fields], axis=0)
    if pa.types.is_fixed_size_list(column.type):
        column = column.cast(pa.list_(column.type.value_type))
    if not pa.types.is_nested(column.type):
        return found | _is_ignored(column, ignored)
    lists, labels = pc.list_parent_indices(column).to_numpy(), _is_ignored(column.flatten(), ignored)
    counts = np.bincount(lists, minlength=len(column))
    return found | (counts > 0) & (counts == np.bincount(lists[labels], minlength=len(column)))


def _is_ignored(labels: pa.Array, ignored: Collection[int | str]) -> np.ndarray:
    # Unsigned numbers have no values for "no label", which are negative.
    is_number = pa.types.is_signed_integer(labels.type) or pa.types.is_floating(labels.type)
    if not is_number and not pa.types.is_string(labels.type) and not pa.types.is_large_string(labels.type):
        return np.zeros(len(labels), dtype=bool)
    if pa.types.is_float16(labels.type):  # in which Arrow looks for nothing
        labels = labels.cast(pa.float32())
    kind = int if is_number else str
    values = pa.array([value for value in ignored if isinstance(value, kind)], labels.type)
    return pc.is_in(labels, value_set=values).to_numpy(zero_copy_only=False)


def labeled_sets(name: str, task: TaskConfig, sets: Mapping[str, Dataset]) -> tuple[dict[str, Dataset], str | None]:
    """Return the `labeled_rows` of some sets of a task, and the message about the other rows; None if there are none.

    Args:
        name: The task's name.
        task: The task.
        sets: Raw rows by their kind, for the message.
    """
    labeled = {kind: labeled_rows(rows, task, f"The rows of task {name!r}") for kind, rows in sets.items()}
    columns = " or ".join(map(repr, task.target_columns))
    for kind, rows in labeled.items():
        if len(rows) == 0 < len(sets[kind]):
            raise ConfigurationError(
                f"Task {name!r}: the {kind} rows must have labels; found none in {columns} of {len(sets[kind])} rows. "
                "Name another `label_column`, or leave the task out."
            )
    counts = {kind: len(rows) - len(labeled[kind]) for kind, rows in sets.items()}
    if not any(counts.values()):
        return labeled, None
    found = " and ".join(f"{count} of {len(sets[kind])} {kind} rows" for kind, count in counts.items() if count)
    return labeled, f"Task {name!r}: {found} have no label in {columns}, and are left out of the task."


# Labels of raw rows


def label_messages(name: str, task: TaskConfig, rows: Dataset, split: str) -> list[str]:
    """Return the messages about labels that are ignored, and about labels that are no classes of the task."""
    counts, unknown = TASK_TYPES[task.type].class_counts(task, rows)
    messages = []
    if counts[IGNORE]:
        messages.append(
            f"Task {name!r}: {counts[IGNORE]:,} of {counts.total():,} labels of the {split} split say that there is no "
            "label (-100, or -1 for a word), and are ignored."
        )
    if unknown:
        number, total = sum(counts[index] for index in unknown.values()), counts.total() - counts[IGNORE]
        found = [f"{label_text(label)}: {counts[index]:,}" for label, index in unknown.items()]
        messages.append(
            f"Task {name!r}: {number:,} of {total:,} labels of the {split} split are none of its classes "
            f"({listed(found)}). They count as errors of the model."
        )
    return messages


def positive_class(name: str, task: TaskConfig) -> str | None:
    """Return the message about the class that metrics are those of; None if there are none, or the names say it."""
    kind = TASK_TYPES[task.type]
    metrics = [metric for metric in task.metrics or () if kind.class_of_metric(task, metric) is not None]
    if not metrics or known_positive(task.label_names or ()) == positive_index(task):
        return None
    is_or_are = "is that" if len(metrics) == 1 else "are those"
    positive = kind.class_of_metric(task, metrics[0])
    return f"Task {name!r}: {', '.join(metrics)} {is_or_are} of class {positive!r}. `positive_label` names another one."


def untrained_classes(name: str, task: TaskConfig, train: Dataset, evaluation: Sequence[Dataset]) -> str | None:
    """Return the message about classes without a training row; None if there are none."""
    counts, _ = TASK_TYPES[task.type].class_counts(task, train)
    missing = [index for index in range(len(task.label_names or ())) if not counts[index]] if counts else []
    if not missing:
        return None
    held_out = sum((TASK_TYPES[task.type].class_counts(task, rows)[0] for rows in evaluation), Counter[int]())
    assert task.label_names is not None
    found = [f"{task.label_names[index]}: {held_out[index]:,}" for index in missing]
    return (
        f"Task {name!r}: {len(missing):,} of {task.num_labels:,} classes have no training row, and cannot be learned. "
        f"They, and their number in the evaluation sets: {listed(found)}."
    )
