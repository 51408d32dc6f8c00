"""Memory: rows are read through memory maps and do not become the process's own memory."""

import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
from datasets import Dataset, load_from_disk

from hf_async_mtl import TaskConfig
from hf_async_mtl.data.dataset import TaskDataset
from hf_async_mtl.data.fingerprint import fingerprint
from hf_async_mtl.data.tokenization import token_counts

ROWS, TOKENS = 100_000, 200
TASK = TaskConfig("classification", ["text"], label_names=["no", "yes"])


@pytest.fixture(scope="module")
def rows(tmp_path_factory):
    """Encoded rows in a file of some 80 MiB."""
    tokens = pa.array(np.arange(ROWS * TOKENS, dtype=np.int32))
    segments = pa.ListArray.from_arrays(pa.array(np.arange(ROWS + 1) * TOKENS, pa.int32()), tokens)
    column = pa.ListArray.from_arrays(pa.array(np.arange(ROWS + 1), pa.int32()), segments)
    folder = tmp_path_factory.mktemp("many")
    Dataset(pa.table({"input_ids": column, "labels": pa.array(np.arange(ROWS) % 2)})).save_to_disk(folder)
    return load_from_disk(folder)


def anonymous_memory() -> float:
    """The memory of this process that no file holds, in MiB."""
    lines = Path("/proc/self/status").read_text(encoding="ascii").splitlines()
    return next(int(line.split()[1]) / 1024 for line in lines if line.startswith("RssAnon:"))


@contextmanager
def peak_growth() -> Iterator[list[float]]:
    """Measure by how many MiB anonymous memory grows at its peak; the list holds the figure afterwards."""
    before, found, over = anonymous_memory(), [0.0], threading.Event()

    def watch() -> None:
        while not over.wait(0.001):
            found[0] = max(found[0], anonymous_memory() - before)

    watcher = threading.Thread(target=watch)
    watcher.start()
    try:
        yield found
    finally:
        over.set()
        watcher.join()


@pytest.mark.skipif(sys.platform != "linux", reason="only Linux reports anonymous memory")
def test_a_pass_over_a_large_split_does_not_copy_it(rows):
    """Bug: a column is gathered as a whole, and memory grows with the rows until a limit on it ends the run."""
    examples = TaskDataset("kind", 0, TASK, rows)
    with peak_growth() as growth:
        token_counts(rows)
        fingerprint(rows)
        order = np.random.default_rng(0).permutation(ROWS)[:20_000]
        for first in range(0, len(order), 100):
            examples.__getitems__(order[first : first + 100].tolist())
    assert sum(Path(file["filename"]).stat().st_size for file in rows.cache_files) / 2**20 > 75
    assert growth[0] < 20
