"""Memory: what was read through a map is let go, and nothing is lost by that."""

import json
import multiprocessing
import re
import sys
from pathlib import Path

import datasets
import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, concatenate_datasets, load_from_disk
from tiny import tiny_tokenizer

from hf_async_mtl import TaskConfig
from hf_async_mtl.data import memory
from hf_async_mtl.data.encoding import count_truncated, encode
from hf_async_mtl.data.fingerprint import fingerprint
from hf_async_mtl.data.loading import read_file
from hf_async_mtl.data.memory import MappedPages, release_unused, scan
from hf_async_mtl.data.mixing import EncodedTask
from hf_async_mtl.data.unlabelled import with_placeholders

ROWS = 42_000
TASK = TaskConfig("classification", ["text"], labels=["no", "yes"])

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="only Linux tells which pages of a file are mapped")


@pytest.fixture(scope="module")
def raw(tmp_path_factory):
    folder = tmp_path_factory.mktemp("raw")
    with (folder / "rows.jsonl").open("w", encoding="utf-8") as file:
        for row in range(ROWS):
            file.write(json.dumps({"text": f"the row of number {row % 97}", "label": ["no", "yes"][row % 2]}) + "\n")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", folder / "cache")
        return read_file(folder / "rows.jsonl", "the rows")


@pytest.fixture(scope="module")
def encoded(raw):
    return encode(raw, "kind", TASK, tiny_tokenizer(), 16)


@pytest.fixture(scope="module")
def many(tmp_path_factory):
    """Encoded rows in a file of some 40 MiB."""
    rows, tokens = 200_000, np.arange(4_000_000, dtype=np.int32)
    segments = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1) * 20, pa.int32()), pa.array(tokens))
    column = pa.ListArray.from_arrays(pa.array(np.arange(rows + 1), pa.int32()), segments)
    labels = pa.array(np.arange(rows) % 2)
    folder = tmp_path_factory.mktemp("many")
    Dataset(pa.table({"input_ids": column, "labels": labels})).save_to_disk(folder)
    return load_from_disk(folder)


def mapped(rows: Dataset) -> float:
    """MiB of a dataset's file that are in this process's memory now."""
    path = str(Path(rows.cache_files[0]["filename"]).resolve())
    areas = re.split(r"^(?=[0-9a-f]+-[0-9a-f]+ )", Path("/proc/self/smaps").read_text(encoding="utf-8"), flags=re.M)
    return sum(int(re.search(r"^Rss: +(\d+)", area, re.M)[1]) for area in areas if path in area.split("\n")[0]) / 1024


def touch(piece: pa.Table) -> None:
    for column in piece.columns:
        array = column.combine_chunks()
        while pa.types.is_list(array.type):
            array = array.flatten()
        array.unique()


def read_all(rows: Dataset) -> None:
    for piece in rows.with_format("arrow").iter(batch_size=1000):
        touch(piece)


@on_linux
def test_pages_that_were_read_leave_memory_and_are_read_again(encoded):
    """A pass over a large split showed all of its file as this process's memory, for good."""
    before = encoded[:50]
    read_all(encoded)
    held = mapped(encoded)
    MappedPages(encoded).release()
    assert held > 2
    assert mapped(encoded) < held / 20
    assert encoded[:50] == before


@on_linux
def test_a_pass_holds_little_of_the_file(many):
    """Pages that are let go at the end alone: the peak of memory was that of the whole file."""
    MappedPages(many).release()
    peaks = []
    for place, piece in enumerate(scan(many, many.column_names)):
        touch(piece)
        if place % 10 == 9:
            peaks.append(mapped(many))
    assert len(peaks) == 20
    assert 0 < max(peaks) < 2


@on_linux
@pytest.mark.parametrize("batch", [1, 8, 500])
def test_training_in_any_order_holds_little_of_the_file(many, batch):
    """Each row drawn at random brings sixteen pages for each column: after a while, all of the file."""
    examples = EncodedTask("kind", 0, TASK, many)
    order = np.random.default_rng(0).permutation(len(many))
    MappedPages(many).release()
    held = []
    for first in range(0, 2000, batch):
        examples.__getitems__(order[first : first + batch].tolist())
        if first % 100 < batch:
            held.append(mapped(many))
    read_all(many)
    assert len(held) in (4, 20)
    assert max(held) < mapped(many) / 2


@on_linux
def test_many_examples_are_read_a_few_at_a_time(many):
    """10,000 training rows all over the file were read at once to judge a teacher: all of the file came with them."""
    examples, places = EncodedTask("kind", 0, TASK, many), list(range(0, len(many), 40))
    MappedPages(many).release()
    found, held = [], []
    for example in examples.read(places):
        found.append((example["example_id"], example["labels"]))
        if len(found) % 500 == 0:
            held.append(mapped(many))
    assert found == [(place, place % 2) for place in places]
    assert max(held) < 5


@on_linux
def test_tokenizing_holds_little_of_the_raw_rows(raw, tmp_path):
    """Raw rows stayed in memory once they had been tokenized, for the whole of the training."""
    read_all(raw)
    assert mapped(raw) > 1
    encode(raw, "kind", TASK, tiny_tokenizer(), 12)
    assert mapped(raw) < 0.5


@on_linux
def test_rows_that_are_given_labels_do_not_stay(raw):
    """Of rows without labels, made ready for a teacher, the raw ones stayed in memory beside the others."""
    rows = raw.remove_columns("label")
    read_all(rows)
    assert mapped(raw) > 1
    assert with_placeholders(rows, TASK)["label"][0] == "no"
    assert mapped(raw) < 0.5


@on_linux
def test_a_file_of_many_rows_has_few_batches(raw, encoded):
    """The head of each batch is read when a file is opened: in batches of 1,000, a third of the file was."""
    assert raw.data.column(0).num_chunks <= ROWS / 20_000 + 1
    assert encoded.data.column(0).num_chunks == ROWS / 2000


@pytest.mark.parametrize(
    "made",
    [
        pytest.param(lambda rows: Dataset.from_dict(rows[:300]), id="in memory"),
        pytest.param(lambda rows: rows.select(range(5, 3000, 7)), id="selected"),
        pytest.param(lambda rows: rows.shuffle(seed=1).select(range(1500)), id="shuffled"),
        pytest.param(
            lambda rows: concatenate_datasets([rows.select(range(1200)), Dataset.from_dict(rows[:40])]), id="in parts"
        ),
        pytest.param(lambda rows: rows.select(range(1300)).with_format("numpy"), id="formatted"),
    ],
)
def test_a_scan_is_the_rows_in_their_order(raw, made):
    """A scan of a selection that reads the file behind it, or memory that is wiped since it is of no file."""
    rows = made(raw)
    wanted = rows.with_format(None)[:]
    found = [piece.to_pydict() for piece in scan(rows, ["label", "text"])]
    assert {key: [value for piece in found for value in piece[key]] for key in ("text", "label")} == wanted
    MappedPages(rows).release()
    assert rows.with_format(None)[:] == wanted


@on_linux
def test_only_files_are_let_go(raw):
    """Memory that belongs to no file is lost where its pages are let go."""
    assert MappedPages(Dataset.from_dict({"a": [1, 2]}))._ranges == []
    assert len(MappedPages(raw)._ranges) == 1


@on_linux
def test_a_dataset_that_lets_go_of_its_files_takes_nothing_along(tmp_path):
    """`datasets` drops a table at the end of a `with` block; whoever got its addresses then lost what it had there."""
    Dataset.from_dict({"a": range(300_000)}).save_to_disk(tmp_path)
    rows = load_from_disk(tmp_path)
    pages = MappedPages(rows)
    with rows:
        pass
    others = [np.ones(300_000) for _ in range(20)]
    pages.release()
    assert all(other.all() for other in others)
    assert pages._table.num_rows == 300_000


def test_where_maps_are_not_known_all_stays_as_it_is(raw, monkeypatch, tmp_path):
    """Elsewhere than on Linux there is no list of the maps: a run must not end for that."""
    monkeypatch.setattr(memory, "Path", lambda _: tmp_path / "none")
    pages = MappedPages(raw)
    pages.release()
    assert pages._ranges == []
    assert len(list(scan(raw, ["label"]))) == ROWS / 1000


def test_without_glibc_there_is_nothing_to_trim(monkeypatch):
    """Alpine's C library has no `malloc_trim`: a run ended there as it began."""
    monkeypatch.setattr(memory.ctypes, "CDLL", lambda _: object())
    release_unused()


def _rows_of(pages, examples, queue):
    pages.release()
    is_own = pages._ranges == memory._file_ranges(pages._table)
    queue.put((is_own, len(pages._ranges), examples.__getitems__([5, ROWS - 1])))


def test_another_process_lets_go_its_own_maps(encoded):
    """A spawned worker has the files at other addresses: letting go those of its parent would wipe its memory."""
    context = multiprocessing.get_context("spawn")
    queue = context.Queue()
    pages, examples = MappedPages(encoded), EncodedTask("kind", 0, TASK, encoded)
    worker = context.Process(target=_rows_of, args=(pages, examples, queue))
    worker.start()
    is_own, count, found = queue.get(timeout=120)
    worker.join()
    assert is_own
    assert count == len(pages._ranges)
    assert found == examples.__getitems__([5, ROWS - 1])


def test_pieces_change_nothing_of_what_is_made(raw):
    """Rows are tokenized and written in pieces: at their seams, a row that is lost, doubled or another's."""
    few = raw.select(range(4321))
    whole = encode(few, "kind", TASK, tiny_tokenizer(), 8)
    seams = (0, 499, 500, 1999, 2000, 4320)
    alone = [encode(few.select([row]), "kind", TASK, tiny_tokenizer(), 8)[0] for row in seams]
    assert [whole[row] for row in seams] == alone
    assert whole["labels"][:] == [row % 2 for row in range(4321)]
    assert count_truncated(whole) == sum(whole["truncated"])
    assert len(fingerprint(whole)) == 64
