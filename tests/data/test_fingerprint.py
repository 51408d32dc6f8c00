"""The hash of the examples that logits belong to: of their content alone, and of the smallest change in it."""

import pytest
from datasets import Dataset, concatenate_datasets, load_dataset, load_from_disk
from tiny import raw_sets, task_configs, tiny_tokenizer

from hf_async_mtl import TaskConfig
from hf_async_mtl.data.fingerprint import fingerprint
from hf_async_mtl.data.tokenization import encode


def encoded(name, rows=30, seed=0, **changes):
    task = TaskConfig(**{**task_configs()[name].to_dict(), **changes})
    return encode(raw_sets(rows, seed)[name], name, task, tiny_tokenizer(), task.max_length or 40)


def test_the_hash_of_cached_rows_is_kept_beside_them(tmp_path):
    """Hashing millions of rows at every start would cost each resumed run its first minute."""
    raw_sets(20)["polarity"].to_json(tmp_path / "rows.jsonl")
    raw = load_dataset(
        "json", data_files=str(tmp_path / "rows.jsonl"), split="train", cache_dir=str(tmp_path / "cache")
    )
    rows = encode(raw, "polarity", task_configs()["polarity"], tiny_tokenizer(), 40)
    found = fingerprint(rows)
    assert found == fingerprint(encoded("polarity", 20))
    (kept,) = (tmp_path / "cache").rglob("examples-*.sha256")
    assert kept.read_text() == found
    kept.write_text("it was read")
    assert fingerprint(rows) == "it was read"
    # Some of the rows are other rows.
    assert fingerprint(rows.select(range(10))) == fingerprint(encoded("polarity", 20).select(range(10)))


def copied(rows, folder):
    rows.save_to_disk(folder / "copy", num_shards=3)
    return load_from_disk(folder / "copy")


SAME = {
    "itself": lambda rows, folder: rows,
    "copied": copied,
    "in_memory": lambda rows, folder: Dataset.from_list(list(rows), features=rows.features),
    "types_found": lambda rows, folder: Dataset.from_list(list(rows)),
    "chunks": lambda rows, folder: concatenate_datasets(
        [rows.select(range(i, min(i + 7, len(rows)))) for i in range(0, len(rows), 7)]
    ),
    "selected": lambda rows, folder: rows.select(list(range(len(rows)))),
    "reordered_twice": lambda rows, folder: rows.select(range(len(rows))[::-1]).select(range(len(rows))[::-1]),
    "part_of_more": lambda rows, folder: concatenate_datasets([rows, rows]).select(range(len(rows))),
    "columns": lambda rows, folder: rows.select_columns(["labels", "input_ids"]),
    "format": lambda rows, folder: rows.with_format("numpy"),
}


@pytest.mark.parametrize("name", task_configs())
@pytest.mark.parametrize("same", SAME)
def test_fingerprint_is_of_the_content_alone(tmp_path, name, same):
    """A hash of the file, its chunks or its order on disk would refuse to resume on another machine."""
    rows = encoded(name)
    assert fingerprint(SAME[same](rows, tmp_path)) == fingerprint(rows)


def test_fingerprint_does_not_know_batches():
    """More rows than one batch of the reader, and chunks across its borders, must give the same hash."""
    rows = Dataset.from_dict({"input_ids": [[[i, i + 1]] for i in range(2300)], "labels": list(range(2300))})
    parts = [rows.select(range(a, b)) for a, b in [(0, 999), (999, 1001), (1001, 2300)]]
    assert fingerprint(concatenate_datasets(parts)) == fingerprint(rows)


def changed(rows, place, column, value):
    return Dataset.from_list([{**row, column: value(row[column])} if i == place else row for i, row in enumerate(rows)])


OTHER = {
    "token": lambda rows: changed(rows, 17, "input_ids", lambda ids: [[*ids[0][:-1], ids[0][-1] + 1], *ids[1:]]),
    "label": lambda rows: changed(rows, 17, "labels", lambda label: 1 - label),
    "order": lambda rows: rows.select([1, 0, *range(2, len(rows))]),
    "fewer": lambda rows: rows.select(range(len(rows) - 1)),
    "more": lambda rows: concatenate_datasets([rows, rows.select([0])]),
    "border": lambda rows: changed(
        changed(rows, 3, "input_ids", lambda ids: [[*ids[0], rows[4]["input_ids"][0][0]]]),
        4,
        "input_ids",
        lambda ids: [ids[0][1:]],
    ),
    "segments": lambda rows: changed(rows, 17, "input_ids", lambda ids: [ids[0][:2], ids[0][2:]]),
}


@pytest.mark.parametrize("other", OTHER)
def test_fingerprint_sees_the_smallest_change(other):
    """One token moved over the border of two examples leaves all values as they were, and is other data."""
    rows = encoded("polarity")
    assert fingerprint(OTHER[other](rows)) != fingerprint(rows)


def test_fingerprint_sees_the_length_limit_and_the_label_order():
    """Rows cut elsewhere have other tokens to teach; swapped labels would teach the wrong class."""
    swapped = encoded("polarity", label_names=["pos", "neg"])
    shorter = encoded("polarity", max_length=8)
    assert len({fingerprint(rows) for rows in (encoded("polarity"), swapped, shorter)}) == 3
