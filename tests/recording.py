"""Recorded logits for tests: given an example at a time."""

from collections.abc import Sequence
from contextlib import AbstractContextManager

import numpy as np
import torch

from hf_async_mtl.distillation.logits import LogitsFiles, LogitsWriter, record_logits


def write_all(recording: AbstractContextManager[LogitsWriter], logits: Sequence[np.ndarray]) -> None:
    """Record one array an example, and close the files."""
    with recording as writer:
        for example, rows in enumerate(logits):
            writer.write(torch.tensor([example]), torch.from_numpy(np.asarray(rows)))


def write_logits(files: LogitsFiles, logits: Sequence[np.ndarray], example_hash: str, step: int) -> None:
    """The files of a recording: one array an example, ``[U, C]`` or ``[U]``."""
    columns = logits[0].shape[1] if logits[0].ndim == 2 else None
    write_all(record_logits(files, [len(rows) for rows in logits], columns, example_hash, step), logits)
