"""Raw rows as users have them: without a format of their own, and of a table the rows that belong to a task."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from datasets import Dataset

from ..modeling.configuration_multitask import TaskConfig
from ..validation import ConfigurationError


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
    """Return the plain rows that have a label of a task: one that is not null, or one of several label columns.

    Rows without the columns of the labels are returned as they are.
    """
    rows = plain_rows(rows, what)
    columns = [column for column in task.target_columns if column in rows.column_names]
    if not columns or len(rows) == 0:
        return rows
    pieces = rows.select_columns(columns).with_format("arrow").iter(batch_size=10_000)
    labeled = np.concatenate([~np.all([_is_null(column) for column in piece.columns], axis=0) for piece in pieces])
    return rows if labeled.all() else rows.select(np.flatnonzero(labeled))


def _is_null(column: pa.ChunkedArray) -> np.ndarray:
    """Return which values of a column are null, ``[N]``; a dictionary is null if all its values are."""
    found = pc.is_null(column).to_numpy()
    if pa.types.is_struct(column.type):
        found = found | np.all([_is_null(pc.struct_field(column, i)) for i in range(column.type.num_fields)], axis=0)
    return found


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
