"""What has been read is let go, so that memory does not grow with the rows.

Rows are read through memory maps. A page of a mapped file, once read, counts as the process's own until the system is
short of memory, and the fifteen around it with it: a pass over a large split, or some thousands of rows drawn at
random, would show as much memory as the file has bytes, and a limit on it (a batch system's, a container's) may end
the run.
"""

from __future__ import annotations

import bisect
import ctypes
import mmap
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import pyarrow as pa
from datasets import Dataset

__all__ = ["MappedPages", "release_unused", "scan"]

# The hash of a run's training examples is made piece by piece: with another size, no older checkpoint resumes.
_PIECE = 1000


class MappedPages:
    """The memory maps that a dataset is read through.

    Args:
        rows: Any dataset. One that is held in memory has no maps; they are known on Linux alone.
    """

    def __init__(self, rows: Dataset) -> None:
        self._rows = rows
        # The table keeps the files mapped: another use of their addresses would lose its content. A dataset may let go
        # of it.
        self._table = rows.data
        self._ranges = _file_ranges(self._table)

    def __reduce__(self) -> tuple[type[MappedPages], tuple[Dataset]]:
        # In another process they are mapped elsewhere.
        return MappedPages, (self._rows,)

    def release(self) -> None:
        """Let the pages go that were read. Whoever reads one again finds it where the system keeps the file."""
        for start, length in self._ranges:
            # Refused for locked pages, which then stay.
            ctypes.CDLL(None).madvise(ctypes.c_void_p(start), ctypes.c_size_t(length), mmap.MADV_DONTNEED)


def scan(rows: Dataset, columns: Sequence[str]) -> Iterator[pa.Table]:
    """Go through some columns once, 1,000 rows at a time, and let go what was read.

    Examples:
        >>> [len(piece) for piece in scan(Dataset.from_dict({"a": range(2500)}), ["a"])]
        [1000, 1000, 500]
    """
    pages = MappedPages(rows)
    for piece in rows.select_columns(list(columns)).with_format("arrow").iter(batch_size=_PIECE):
        yield piece
        pages.release()


def release_unused() -> None:
    """Give back to the system what reading has used, and the allocators keep for the next time."""
    pa.default_memory_pool().release_unused()
    if sys.platform == "linux":
        trim = getattr(ctypes.CDLL(None), "malloc_trim", None)  # glibc has it, musl has not
        if trim is not None:
            trim(0)


def _file_ranges(table: pa.Table) -> list[tuple[int, int]]:
    """Start and length of the mapped files that a table's buffers lie in: read-only, so nothing is lost with a page."""
    listing = Path("/proc/self/maps")
    if not listing.exists():
        return []
    # start-end permissions offset device inode path
    entries = [line.split(maxsplit=5) for line in listing.read_text(encoding="utf-8", errors="replace").splitlines()]
    edges = [
        [int(edge, 16) for edge in entry[0].split("-")]
        for entry in entries
        if len(entry) == 6 and entry[1].startswith("r--") and entry[5].startswith("/")
    ]
    starts, found = [start for start, _ in edges], set()
    for column in table.columns:
        for chunk in column.chunks:
            # None and those of no bytes, whose address may be another's, left out.
            for buffer in filter(None, chunk.buffers()):
                place = bisect.bisect_right(starts, buffer.address) - 1
                if place >= 0 and buffer.address < edges[place][1]:
                    found.add(place)
    return [(edges[place][0], edges[place][1] - edges[place][0]) for place in sorted(found)]
