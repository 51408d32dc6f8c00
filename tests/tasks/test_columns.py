"""Columns read from Arrow: the same values and rows as Python reads, whatever was selected before."""

import numpy as np
import pytest
from datasets import Dataset, concatenate_datasets

from hf_async_mtl.tasks.columns import column_pieces, file_row, select_rows
from hf_async_mtl.tasks.labels import label_counts


def numbered(count: int) -> Dataset:
    """Rows of two chunks, with their number."""
    rows = Dataset.from_dict({"row": list(range(count)), "label": [f"c{row % 3}" for row in range(count)]})
    return concatenate_datasets([rows.select(range(4)), rows.select(range(4, count))])


@pytest.mark.parametrize("indices", [None, [7, 2, 2, 9], [5], list(range(3, 8)), []])
def test_pieces_have_the_values_of_their_rows(indices: list[int] | None) -> None:
    """Bug: a chunk is read from its beginning, and a label is counted or dropped for another row."""
    rows = numbered(10)
    if indices is not None:
        rows = select_rows(rows, np.array(indices, dtype=np.int64))
    found = {
        row: value
        for places, values in column_pieces(rows, "row")
        for row, value in zip(places, values.to_pylist(), strict=True)
    }
    assert found == dict(enumerate(rows["row"]))
    assert label_counts(rows, "label").total() == len(rows)
    assert [file_row(rows, row) for row in range(len(rows))] == list(rows["row"])


def test_a_range_of_rows_is_traced_to_its_file() -> None:
    """Bug: `Dataset.select` of a range forgets where it began, and a message names another row of the file."""
    rows = select_rows(select_rows(numbered(10), np.arange(2, 9)), np.arange(3, 5))
    assert [file_row(rows, row) for row in range(2)] == [5, 6]
