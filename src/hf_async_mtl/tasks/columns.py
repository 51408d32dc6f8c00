"""Columns of raw rows, read from their Arrow table, and the places of rows in the file that they come from.

`Dataset` reads rows that were selected one at a time: a column of two million rows takes a minute.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import numpy as np
import pyarrow as pa

if TYPE_CHECKING:
    from datasets import Dataset


def select_rows(rows: Dataset, indices: np.ndarray) -> Dataset:
    """Return some rows of a set, for `file_row`: `Dataset.select` forgets where a range of rows begins."""
    return rows._select_with_indices_mapping(indices)


def file_row(rows: Dataset, row: int) -> int:
    """Return the row of the file that a row of a set comes from, where rows were left out, drawn or split off."""
    return row if rows._indices is None else int(rows._indices.column(0)[row].as_py())


def column_pieces(rows: Dataset, column: str) -> Iterator[tuple[np.ndarray, pa.Array]]:
    """Yield the values of a column as they are stored, a chunk of the table at a time, with their rows ``[n]``."""
    chunks = rows.data.column(column).chunks
    starts = np.cumsum([0, *map(len, chunks)])
    if rows._indices is None:
        for chunk, start in zip(chunks, starts, strict=False):
            yield np.arange(start, start + len(chunk)), chunk
        return
    places = rows._indices.column(0).to_numpy().astype(np.int64)
    order = np.argsort(places, kind="stable")
    bounds = np.searchsorted(places[order], starts)
    for chunk, start, first, last in zip(chunks, starts, bounds, bounds[1:], strict=False):
        own = order[first:last]
        yield own, chunk.take(pa.array(places[own] - start))
