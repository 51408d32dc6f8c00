"""Recorded logits: write them batch by batch in any order, look them up by example.

A recording is three files: ``logits-<task>.npy`` ``[U, C]`` (or ``[U]``), ``offsets-<task>.npy`` ``[N + 1]`` and
``logits-<task>.json``, which names the examples and the step, and is written last. The arrays are memory maps, so that
memory does not grow with the examples, and are never pickled.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.lib.format import open_memmap
from torch import Tensor

from ..utils import atomic_path, nearest_existing, write_atomic


class TeacherError(RuntimeError):
    """A teacher's file is missing or damaged, was made for other examples, or does not fit on the disk."""

    @classmethod
    def of_damaged(cls, path: Path, reason: object) -> TeacherError:
        """Return the error for a file that cannot be read."""
        return cls(
            f"The file {path} is damaged ({reason}). Was its checkpoint copied in part? Copy it again, or resume from "
            "another checkpoint."
        )


class LogitsFiles(NamedTuple):
    """The files of one recording."""

    logits: Path
    offsets: Path
    info: Path

    @classmethod
    def of(cls, folder: Path, task: str) -> LogitsFiles:
        """Return the files of a task's recording in a folder."""
        return cls(folder / f"logits-{task}.npy", folder / f"offsets-{task}.npy", folder / f"logits-{task}.json")


def check_disk_space(folder: Path, needed: int, what: str) -> None:
    """Raise a `TeacherError` if the disk of a folder, which need not exist yet, has less than ``needed`` bytes left."""
    free = shutil.disk_usage(nearest_existing(folder)).free
    if free < needed:
        raise TeacherError(
            f"{what} needs {needed / 2**20:,.1f} MiB in {folder}; its disk has {free / 2**20:,.1f} MiB left. Free "
            "some, choose another output folder, or train on fewer examples (`max_samples: {train: ...}`)."
        )


@contextmanager
def record_logits(
    files: LogitsFiles, units: Sequence[int] | np.ndarray, columns: int | None, example_hash: str, step: int
) -> Iterator[LogitsWriter]:
    """Record the logits of a teacher. The files exist when the block ends with all examples recorded.

    ``units`` ``[N]`` are the numbers of rows of logits of the examples, and ``columns`` is C, or None for one number
    per row.
    """
    offsets = np.concatenate([[0], np.cumsum(units, dtype=np.int64)])
    shape = (int(offsets[-1]),) if columns is None else (int(offsets[-1]), columns)
    what = f"Recording the logits {files.logits.name}"
    check_disk_space(files.logits.parent, 4 * int(np.prod(shape)) + offsets.nbytes, what)
    with atomic_path(files.logits) as partial:
        logits = open_memmap(partial, mode="w+", dtype=np.float32, shape=shape)
        if hasattr(os, "posix_fallocate"):
            # A full disk raises here, and not as a fatal signal when a page of the map is written.
            with partial.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, partial.stat().st_size)
        writer = LogitsWriter(files.logits.name, offsets, logits)
        yield writer
        writer.check_complete()
        logits.flush()
    with atomic_path(files.offsets) as partial, partial.open("wb") as file:
        np.save(file, offsets, allow_pickle=False)
    write_atomic(files.info, json.dumps({"examples": example_hash, "step": step}))


class LogitsWriter:
    """Fill an array ``[U, C]`` or ``[U]`` batch by batch; ``offsets`` ``[N + 1]`` say where an example begins."""

    def __init__(self, name: str, offsets: np.ndarray, logits: np.ndarray) -> None:
        self._name, self._offsets, self._logits = name, offsets, logits
        self._seen = np.zeros(len(offsets) - 1, dtype=bool)

    def write(self, example_ids: Tensor, logits: Tensor) -> None:
        """Record examples ``[B]`` with the logits ``[U, C]`` or ``[U]`` of their units; a second time overwrites."""
        ids, values = example_ids.cpu().numpy(), logits.detach().float().cpu().numpy()
        finite = np.isfinite(values).reshape(len(values), -1).all(axis=1)
        if not finite.all():
            example = np.repeat(ids, self._offsets[ids + 1] - self._offsets[ids])[np.flatnonzero(~finite)[0]]
            raise TeacherError(
                f"A teacher must give finite logits; those of training row {example} in {self._name} are not. Lower "
                "the learning rate or use bf16 in place of fp16, and resume from the last checkpoint."
            )
        self._logits[_rows_of(self._offsets, ids)] = values
        self._seen[ids] = True

    def check_complete(self) -> None:
        """Raise a `TeacherError` unless all examples were recorded."""
        missing = np.flatnonzero(~self._seen)
        if len(missing):
            raise TeacherError(
                f"Every example must be recorded; {len(missing)} of {len(self._seen)} in {self._name} were not, "
                f"the first is {missing[0]}."
            )


class RecordedLogits:
    """A teacher's logits over a task's training set, looked up by example."""

    def __init__(self, files: LogitsFiles) -> None:
        self.example_hash, self.step = _read_info(files.info)
        self.offsets = _read_array(files.offsets, np.int64)
        self.logits = _read_array(files.logits, np.float32)

    def check(self, example_hash: str, task: str, examples: int, columns: int | None) -> None:
        """Raise a `TeacherError` unless the logits are those of a task and its examples."""
        if self.example_hash != example_hash:
            raise TeacherError(
                f"The recorded logits of task {task!r} belong to other training examples (hash "
                f"{self.example_hash[:12]}, now {example_hash[:12]}). Resume with the data, tokenizer and "
                "`data_seed` of the first run, or start afresh."
            )
        wanted = [int(self.offsets[-1]), *([] if columns is None else [columns])]
        if len(self.offsets) != examples + 1 or list(self.logits.shape) != wanted:
            raise TeacherError(
                f"The recorded logits of task {task!r} must be of {examples} examples and of the shape {wanted}; found "
                f"{len(self.offsets) - 1} and {list(self.logits.shape)}. Was the file made for another task? Resume "
                "from another checkpoint, or start afresh."
            )

    def lookup(self, example_ids: Sequence[int] | np.ndarray | Tensor) -> Tensor:
        """Return the logits ``[U]`` or ``[U, C]`` of the units of some examples, float32, on the CPU."""
        return torch.from_numpy(self.logits[_rows_of(self.offsets, np.asarray(example_ids, dtype=np.int64))])


def _rows_of(offsets: np.ndarray, ids: np.ndarray) -> np.ndarray:
    """Return the rows of logits of some examples, one example after the other."""
    starts, lengths = offsets[ids], offsets[ids + 1] - offsets[ids]
    ends = lengths.cumsum()
    return np.arange(lengths.sum()) + np.repeat(starts - (ends - lengths), lengths)


def _read_info(path: Path) -> tuple[str, int]:
    if not path.is_file():
        raise TeacherError(
            f"The recorded logits {path} are missing. Resume from a checkpoint that holds them, or start afresh."
        )
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        return str(info["examples"]), int(info["step"])
    except (ValueError, KeyError, TypeError) as error:
        raise TeacherError.of_damaged(path, error) from error


def _read_array(path: Path, dtype: Any) -> np.ndarray:
    try:
        array = np.load(path, mmap_mode="r", allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise TeacherError.of_damaged(path, error) from error
    if array.dtype != dtype:
        raise TeacherError.of_damaged(path, f"it holds {array.dtype}")
    return array
