"""Recording logits to a file, batch by batch and in any order: memory does not grow with the examples."""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from pathlib import Path
from types import TracebackType

import numpy as np
from torch import Tensor

from ..utils import nearest_existing

__all__ = ["LogitsWriter", "TeacherError", "check_room"]


class TeacherError(RuntimeError):
    """A teacher's file is missing or damaged, was made for other examples, or has no room on the disk."""


def check_room(folder: Path, needed: int, what: str) -> None:
    """Raise a `TeacherError` unless the disk of a folder, which need not exist yet, has so many bytes left.

    Args:
        folder: Where something is to be written.
        needed: Bytes.
        what: That something, for the message.
    """
    free = shutil.disk_usage(nearest_existing(folder)).free
    if free < needed:
        raise TeacherError(
            f"{what} needs {needed / 2**20:,.1f} MiB in {folder}; its disk has {free / 2**20:,.1f} MiB left. Free "
            "some, choose another output folder, or train on fewer examples (`max_samples: {train: ...}`)."
        )


class LogitsWriter:
    """Writes what `RecordedLogits` reads: a safetensors file with ``logits`` ``[U, C]`` and ``offsets`` ``[N + 1]``.

    A context manager: the file is moved into its place when the block ends with all examples recorded, and is gone
    when the block raises. Room for all is taken from the disk at the start.

    Args:
        path: Where to.
        units: ``[N]``, the rows of logits of each example: 1, or its tokens.
        columns: C; None for one number a row.
        metadata: Kept in the file's header.

    Raises:
        TeacherError: The disk has no room. At the end of the block: examples are missing.
    """

    def __init__(self, path: Path, units: np.ndarray, columns: int | None, metadata: Mapping[str, str]) -> None:
        self.path = path
        self._partial = path.with_name(path.name + ".partial")
        self._offsets = np.zeros(len(units) + 1, np.int64)
        np.cumsum(units, out=self._offsets[1:])
        self._seen = np.zeros(len(units), dtype=bool)
        shape = (int(self._offsets[-1]),) if columns is None else (int(self._offsets[-1]), columns)
        header, start = _header(shape, len(self._offsets), metadata)
        size = start + 8 * len(self._offsets) + 4 * int(np.prod(shape))
        path.parent.mkdir(parents=True, exist_ok=True)
        check_room(path.parent, size, f"Recording the logits {path.name}")
        try:
            with self._partial.open("wb") as file:
                file.write(header)
                file.write(self._offsets.data)
                if hasattr(os, "posix_fallocate"):
                    # A full disk says so here, and not as a fatal signal where the map is written to.
                    os.posix_fallocate(file.fileno(), 0, size)
                else:
                    file.truncate(size)
            self._logits = np.memmap(
                self._partial, np.float32, "r+", offset=start + 8 * len(self._offsets), shape=shape
            )
        except OSError:
            self._partial.unlink(missing_ok=True)
            raise

    def put(self, example_ids: Tensor, logits: Tensor) -> None:
        """Record some examples; one that was recorded before is written again.

        Args:
            example_ids: ``[B]``, places in the task's training set.
            logits: ``[sum of their units, C]``, or ``[sum of their units]``, one example after the other.

        Raises:
            TeacherError: A logit is not finite.
        """
        ids, values = example_ids.cpu().numpy(), logits.detach().float().cpu().numpy()
        starts, ends = self._offsets[ids], self._offsets[ids + 1]
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            owner = ids[np.searchsorted(np.cumsum(ends - starts), np.flatnonzero(~finite)[0], side="right")]
            raise TeacherError(
                f"A teacher must give finite logits; those of training row {owner} in {self.path.name} are not. Lower "
                "the learning rate or use bf16 in place of fp16, and resume from the last checkpoint."
            )
        first = 0
        for start, end in zip(starts, ends, strict=True):
            self._logits[start:end] = values[first : first + end - start]
            first += end - start
        self._seen[ids] = True

    def __enter__(self) -> LogitsWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._logits.flush()
        del self._logits
        if kind is None and self._seen.all():
            self._partial.replace(self.path)
            return
        self._partial.unlink()
        if kind is None:
            missing = np.flatnonzero(~self._seen)
            raise TeacherError(
                f"Every example must be recorded; {len(missing)} of {len(self._seen)} in {self.path.name} were not, "
                f"the first is {missing[0]}."
            )


def _header(shape: tuple[int, ...], offsets: int, metadata: Mapping[str, str]) -> tuple[bytes, int]:
    """The head of a safetensors file whose tensors follow one another, and its length.

    The library itself writes only what is in memory as a whole. The format: 8 bytes of length, then JSON, padded so
    that the tensors are aligned.
    """
    middle = 8 * offsets
    entries = {
        "__metadata__": dict(metadata),
        "offsets": {"dtype": "I64", "shape": [offsets], "data_offsets": [0, middle]},
        "logits": {"dtype": "F32", "shape": list(shape), "data_offsets": [middle, middle + 4 * int(np.prod(shape))]},
    }
    text = json.dumps(entries).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, 8 + len(text)
