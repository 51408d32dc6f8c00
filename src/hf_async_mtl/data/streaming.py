"""From a stream of rows to a table on disk, once: what is trained on has a length, and is read in any order."""

from __future__ import annotations

from functools import partial

from datasets import Dataset, DatasetBuilder, NamedSplit
from datasets.fingerprint import Hasher

__all__ = ["materialise"]

# Rows that are held in memory to draw from. A stream is seldom in a random order.
_BUFFER = 10_000


def materialise(builder: DatasetBuilder, split: str, rows: int | None, seed: int) -> Dataset:
    """Write the rows of a stream to a memory-mapped Arrow file in the cache of `datasets`, with a progress bar.

    A later call with the same arguments finds them there, as long as the source is unchanged (its commit on the Hub,
    the time of a file's last change).

    Args:
        builder: Of the data: ``datasets.load_dataset_builder(...)``.
        split: Which split, in its words.
        rows: At most so many, drawn with a buffer: the shards in a random order, and each row out of the next 10,000.
            More than ``rows + 10,000`` are never read. None: all, in their order.
        seed: Of the draw.

    Returns:
        The rows.
    """
    stream = builder.as_streaming_dataset(split=split)
    if rows is not None:
        stream = stream.shuffle(seed=seed, buffer_size=_BUFFER).take(rows)
    return Dataset.from_generator(
        partial(iter, stream),
        features=stream.features,
        split=NamedSplit(split),
        fingerprint=Hasher.hash([builder.cache_dir, split, rows, seed]),
    )
