"""Raw rows: sets of any format, sets with a transform, and one table whose rows belong to some of its tasks."""

from typing import Any

import pandas as pd
import pytest
from datasets import Dataset, DatasetDict, IterableDataset, Value
from tiny import raw_sets, task_configs, tiny_tokenizer

from hf_async_mtl import ConfigurationError, TaskConfig
from hf_async_mtl.data.tokenization import encode
from hf_async_mtl.tasks.rows import labeled_rows, labeled_sets, plain_rows

TASKS = task_configs()


def unresolved(name: str) -> TaskConfig:
    task = TASKS[name]
    return TaskConfig(task.type, task.text_columns, label_column=task.label_column)


@pytest.mark.parametrize("kind", ["numpy", "pandas", "arrow", "torch"])
@pytest.mark.parametrize("name", TASKS)
def test_a_format_changes_nothing(name: str, kind: str) -> None:
    """Bug: labels that are arrays or scalars of a library are refused, or named "tensor(1)"."""
    rows, task = raw_sets(12)[name], unresolved(name)
    expected = task.resolve(rows)
    formatted = rows.with_format(kind)
    assert task.resolve(formatted) == expected
    encoded = [encode(given, name, expected, tiny_tokenizer(), 32)[:] for given in (rows, formatted)]
    assert encoded[0] == encoded[1]
    # A format of some columns hides the others.
    assert task.resolve(rows.with_format(kind, columns=task.target_columns)) == expected


def test_a_dataset_dict_is_resolved_by_its_training_split() -> None:
    """Bug: what `load_dataset` returns without a split is an AttributeError; or names are taken from all splits."""
    train = Dataset.from_dict({"text": ["a", "b"], "label": ["yes", "no"]})
    other = Dataset.from_dict({"text": ["c"], "label": ["maybe"]})
    task = TaskConfig("classification", ["text"])
    assert task.resolve(DatasetDict(train=train, test=other)).label_names == ["no", "yes"]
    with pytest.raises(ConfigurationError, match=r"found DatasetDict. Take one of its splits: 'dev', 'test'\."):
        task.resolve(DatasetDict(dev=train, test=other))


@pytest.mark.parametrize(
    "rows",
    [
        pd.DataFrame({"text": ["a"], "label": [1]}),
        [{"text": "a", "label": 1}],
        IterableDataset.from_generator(lambda: iter([{"text": "a", "label": 1}])),
        None,
    ],
    ids=lambda rows: type(rows).__name__,
)
def test_rows_of_another_library_are_refused_in_words(rows: Any) -> None:
    """Bug: a table of pandas, a list or a stream is a traceback."""
    with pytest.raises(ConfigurationError, match=rf"found {type(rows).__name__}\. `Dataset.from_pandas`"):
        TaskConfig("classification", ["text"]).resolve(rows)


@pytest.mark.parametrize("name", [name for name in TASKS if name not in ("choice", "answer")])
def test_a_set_without_the_labels_is_refused_in_words(name: str) -> None:
    """Bug: a label column of another name is a KeyError; or rows without labels are refused where none are needed."""
    rows, task = raw_sets(4)[name], unresolved(name)
    bare = rows.rename_columns({column: f"{column}s" for column in task.target_columns})
    (column,) = task.target_columns
    with pytest.raises(ConfigurationError, match=rf"column of labels '{column}'; they have .*nearest is '{column}s'"):
        task.resolve(bare)
    known = task.resolve(rows)
    assert known.resolve(bare) == known


def upper(batch: dict[str, list[Any]]) -> dict[str, list[Any]]:
    return {**batch, "text": [text.upper() for text in batch["text"]]}


def test_a_transform_is_refused_with_the_way_out() -> None:
    """Bug: `set_transform` is dropped without a word, and the model reads other texts than the user's."""
    rows, task = raw_sets(4)["polarity"], TASKS["polarity"]
    lazy = rows.with_transform(upper)
    for read in (task.resolve, plain_rows, lambda rows: encode(rows, "polarity", task, tiny_tokenizer(), 32)):
        with pytest.raises(ConfigurationError, match=r"must have no transform .*map\(transform, batched=True\)"):
            read(lazy)
    applied = plain_rows(lazy.with_format(None).map(upper, batched=True))
    assert applied["text"] == [text.upper() for text in rows["text"]]


NULLS: dict[str, Any] = dict.fromkeys(TASKS) | {"answer": {"text": None, "answer_start": None}}


@pytest.mark.parametrize("name", TASKS)
def test_rows_without_a_label_do_not_belong_to_the_task(name: str) -> None:
    """Bug: the rows of a table that another task labels are refused, or trained on as a class "None"."""
    rows, task = raw_sets(12)[name].to_list(), unresolved(name)
    gaps = [{**row, **dict.fromkeys(task.target_columns, NULLS[name] if i % 3 else None)} for i, row in enumerate(rows)]
    table = Dataset.from_list([row for pair in zip(gaps, rows, strict=True) for row in pair])
    own = labeled_rows(table, task)
    assert own.to_list() == rows
    assert task.resolve(table) == task.resolve(Dataset.from_list(rows))
    assert labeled_rows(own, task).to_list() == rows
    assert labeled_rows(table.remove_columns(task.target_columns), task).num_rows == 24


def test_a_row_with_one_of_several_labels_belongs_to_the_task() -> None:
    """Bug: of columns of 0 and 1, a row with one gap is left out, though it has labels; it must be refused."""
    rows = [{"text": "a", "x": 1, "y": None}, {"text": "b", "x": None, "y": None}, {"text": "c", "x": 0, "y": 1}]
    task = TaskConfig("multilabel", ["text"], label_column=["x", "y"], label_names=["x", "y"])
    own = labeled_rows(Dataset.from_list(rows), task)
    assert own["text"] == ["a", "c"]
    with pytest.raises(ConfigurationError, match=r"must hold 0 or 1; found None\. If it is not known, write -100"):
        encode(own, "topics", task, tiny_tokenizer(), 16)


@pytest.mark.parametrize("kind", ["uint8", "uint64", "int8", "int64", "float16", "float32", "float64", "large_string"])
def test_labels_of_any_width_have_gaps(kind: str) -> None:
    """Bug: -100 is no value of the type of the labels, and looking for it among them is a traceback."""
    labels = Dataset.from_dict({"label": [0, None, 1]}).cast_column("label", Value(kind))
    rows = labels.add_column("text", ["a", "b", "c"])
    task = TaskConfig("classification", ["text"])
    assert labeled_rows(rows, task)["text"] == ["a", "c"]
    assert task.resolve(rows).label_names == ["0", "1"]


def test_rows_without_a_label_are_counted_once() -> None:
    """Bug: most of a table is left out, and nobody says so; or a split without a label is an empty one later."""
    task = TaskConfig("regression", ["text"], label_column="stars")
    table = Dataset.from_dict({"text": list("abcd"), "stars": [1.0, None, 3.0, None]})
    whole = table.select([0, 2])
    sets, message = labeled_sets("stars", task, {"train": table, "validation": table.select([0, 1]), "test": whole})
    assert [rows["text"] for rows in sets.values()] == [["a", "c"], ["a"], ["a", "c"]]
    assert message == (
        "Task 'stars': 2 of 4 train rows and 1 of 2 validation rows have no label in 'stars', and are left out of the "
        "task."
    )
    assert labeled_sets("stars", task, {"train": whole})[1] is None
    with pytest.raises(ConfigurationError, match=r"the test rows must have labels; found none in 'stars' of 2 rows\."):
        labeled_sets("stars", task, {"train": table, "test": table.select([1, 3])})
