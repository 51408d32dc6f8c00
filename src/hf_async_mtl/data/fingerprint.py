"""A hash of tokenized examples, which tells whether recorded logits belong to them."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import numpy as np
import pyarrow as pa
from datasets import Dataset

from ..utils import write_atomic

# Rows that are hashed at a time. Another number gives other hashes, and no older checkpoint would resume.
_ROWS = 1000


def fingerprint(rows: Dataset) -> str:
    """Return a hash of ``input_ids`` and ``labels`` of encoded rows, whatever file they are in: 64 hexadecimal digits.

    It is kept beside the cache file of the rows, if they have one: hashing millions of rows takes seconds.
    """
    kept = None
    if rows.cache_files:
        # The library's own fingerprint names the content there; it is another one where the file is copied to.
        kept = Path(rows.cache_files[0]["filename"]).parent / f"examples-{rows._fingerprint}.sha256"
        if kept.is_file():
            return kept.read_text(encoding="ascii")
    digest = hashlib.sha256()
    for piece in rows.select_columns(["input_ids", "labels"]).with_format("arrow").iter(batch_size=_ROWS):
        for column in piece.columns:
            array = column.combine_chunks()
            while pa.types.is_list(array.type) or pa.types.is_large_list(array.type):
                digest.update(array.value_lengths().to_numpy(zero_copy_only=False).astype(np.int64).tobytes())
                array = array.flatten()
            digest.update(np.ascontiguousarray(array.to_numpy(zero_copy_only=False)).astype(np.float64).tobytes())
    found = digest.hexdigest()
    if kept is not None and os.access(kept.parent, os.W_OK):
        write_atomic(kept, found, unique=True)
    return found
