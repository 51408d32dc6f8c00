"""Keep a sample of a dataset that is too large for the disk.

    python scripts/examples/streaming.py allenai/c4 data/c4 --name en --rows 100000
    python scripts/examples/streaming.py json data/rows --files rows.jsonl --rows 1000

The rows are read as a stream, and no more of them than are needed: the shards in random order, each row drawn from the
next 10,000. OUTPUT is a ``save_to_disk`` folder, to be named in the configuration: ``data: {train: data/c4, ...}``.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Sequence
from functools import partial
from pathlib import Path

from datasets import Dataset, load_dataset

# Rows that are held in memory to draw from.
BUFFER = 10_000


def main(argv: Sequence[str] | None = None) -> int:
    """Stream rows and save them as a folder."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("source", metavar="SOURCE", help="a Hub id, or a format (json, csv, parquet) with --files")
    parser.add_argument("output", metavar="OUTPUT", type=Path)
    parser.add_argument("--rows", type=int, required=True, metavar="N")
    parser.add_argument("--name", help="the configuration of the Hub dataset")
    parser.add_argument("--files", nargs="+", metavar="FILE")
    parser.add_argument("--split", default="train")
    parser.add_argument("--seed", type=int, default=42)
    args = parser.parse_args(argv)
    files = None if args.files is None else {args.split: args.files}
    stream = load_dataset(args.source, args.name, data_files=files, split=args.split, streaming=True)
    stream = stream.shuffle(seed=args.seed, buffer_size=BUFFER).take(args.rows)
    # The cache would be a second copy, and would not notice that a file has changed.
    with tempfile.TemporaryDirectory() as cache:
        rows = Dataset.from_generator(partial(iter, stream), features=stream.features, cache_dir=cache)
        rows.save_to_disk(args.output)
    print(f"{len(rows)} rows are in {args.output}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
