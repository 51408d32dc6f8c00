"""Recorded logits for tests: given an example at a time."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch

from hf_async_mtl.distillation.logits import LogitsWriter
from hf_async_mtl.distillation.snapshots import RecordedLogits


def put_all(writer: LogitsWriter, logits: Sequence[np.ndarray]) -> None:
    """Record one array an example, and close the file."""
    with writer:
        for example, rows in enumerate(logits):
            writer.put(torch.tensor([example]), torch.from_numpy(np.asarray(rows)))


def write_logits(path: Path, logits: Sequence[np.ndarray], example_hash: str, step: int) -> None:
    """A file of logits: one array an example, ``[U, C]`` or ``[U]``."""
    columns = logits[0].shape[1] if logits[0].ndim == 2 else None
    put_all(RecordedLogits.writer(path, np.array([len(rows) for rows in logits]), columns, example_hash, step), logits)
