"""Teachers on disk: snapshots of weights while a task learns, recorded logits once it has converged.

All files are safetensors, written beside their place and moved into it, so that a killed run never leaves half of one.
Recorded logits are read through a memory map and carry a hash of the examples they were made for.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..modeling.packing import segment_tokens
from ..utils import atomic_path, link_or_copy, write_atomic
from .logits import LogitsWriter, TeacherError

__all__ = ["RecordedLogits", "TeacherStore"]


def _save_atomically(tensors: Mapping[str, Tensor], path: Path, metadata: Mapping[str, str]) -> None:
    # A tensor may be a view of a larger one, which safetensors refuses.
    plain = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with atomic_path(path) as partial:
        save_file(plain, partial, dict(metadata))


def _damaged(path: Path, error: Exception) -> TeacherError:
    return TeacherError(
        f"The file {path} is damaged ({error}). Was its checkpoint copied in part? Copy it again, or resume from "
        "another checkpoint."
    )


class RecordedLogits:
    """A teacher's logits over a task's training set, looked up by example.

    Args:
        path: A file that `RecordedLogits.write` made.

    Raises:
        TeacherError: There is no such file, or it is damaged.
    """

    def __init__(self, path: Path) -> None:
        if not path.is_file():
            raise TeacherError(
                f"The recorded logits {path} are missing. Resume from a checkpoint that holds them, or start afresh."
            )
        try:
            with safe_open(path, framework="pt") as file:  # memory-mapped
                self.metadata = dict(file.metadata())
                self.offsets = file.get_tensor("offsets")
                self.logits = file.get_tensor("logits")
        except SafetensorError as error:
            raise _damaged(path, error) from error

    @staticmethod
    def writer(path: Path, units: np.ndarray, columns: int | None, example_hash: str, step: int) -> LogitsWriter:
        """Begin to record.

        Args:
            path: Where to.
            units: ``[N]``, the rows of logits of each example; see `LogitsWriter`.
            columns: Of the logits; None for one number a row.
            example_hash: `fingerprint` of the examples.
            step: Optimizer step of the teacher.
        """
        return LogitsWriter(path, units, columns, {"examples": example_hash, "step": str(step)})

    def check(self, example_hash: str, task: str, examples: int, columns: int | None) -> None:
        """Raise a `TeacherError` unless the logits are those of a task and its examples.

        Args:
            example_hash: `fingerprint` of the examples.
            task: For the message.
            examples: How many they are.
            columns: Of the logits; None for one number a row.
        """
        if self.metadata["examples"] != example_hash:
            raise TeacherError(
                f"The recorded logits of task {task!r} belong to other training examples (hash "
                f"{self.metadata['examples'][:12]}, now {example_hash[:12]}). Resume with the data, tokenizer and "
                "`data_seed` of the first run, or start afresh."
            )
        wanted = [int(self.offsets[-1]), *([] if columns is None else [columns])]
        if len(self.offsets) != examples + 1 or list(self.logits.shape) != wanted:
            raise TeacherError(
                f"The recorded logits of task {task!r} must be of {examples} examples and of the shape {wanted}; found "
                f"{len(self.offsets) - 1} and {list(self.logits.shape)}. Was the file made for another task? Resume "
                "from another checkpoint, or start afresh."
            )

    def lookup(self, example_ids: Tensor) -> Tensor:
        """The logits of some examples, one after the other.

        Args:
            example_ids: ``[B]``, places in the task's training set.

        Returns:
            ``[sum of their units, C]``, or ``[sum of their units]``; float32, on the CPU.
        """
        ids = example_ids.cpu()
        starts = self.offsets[ids]
        return self.logits[segment_tokens(starts, self.offsets[ids + 1] - starts)]


class TeacherStore:
    """The folder in which a run keeps its teachers.

    Args:
        folder: Made when it is first written to. Its name begins with an underscore: the Trainer does not push it.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def snapshot_path(self, step: int) -> Path:
        """Where the weights of a step are: one file, however many tasks were at their best."""
        return self.folder / f"snapshot-{step}.safetensors"

    def logits_path(self, task: str) -> Path:
        """Where a task's recorded logits are."""
        return self.folder / f"logits-{task}.safetensors"

    def save_snapshot(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Keep the weights of a step."""
        _save_atomically(weights, self.snapshot_path(step), {"format": "pt"})

    def load_snapshot(self, step: int) -> dict[str, Tensor]:
        """The weights of a step, on the CPU."""
        path = self._existing_snapshot(step)
        try:
            return load_file(path)
        except SafetensorError as error:
            raise _damaged(path, error) from error

    def check_snapshot(self, step: int, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raise a `TeacherError` unless the weights of a step are there and fit a model; they are not read."""
        path = self._existing_snapshot(step)
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise _damaged(path, error) from error
        for name in sorted(found.keys() | shapes.keys()):
            wanted = list(shapes[name]) if name in shapes else None
            if found.get(name) != wanted:
                raise TeacherError(
                    f"The snapshot {path} must be of this model, in which {name} has the shape {wanted}; found "
                    f"{found.get(name)}. Resume from another checkpoint, or start afresh."
                )

    def _existing_snapshot(self, step: int) -> Path:
        path = self.snapshot_path(step)
        if not path.is_file():
            raise TeacherError(
                f"The snapshot {path} is missing: a task's teacher would be read from it. Was `on_convergence` changed "
                "to distill on resuming? Start afresh, or resume from an earlier checkpoint with the first settings."
            )
        return path

    def save_answers(self, task: str, step: int, answers: Sequence[Any]) -> None:
        """Keep a task's validation predictions of a step, in the place of an earlier step's."""
        write_atomic(self._answers_path(task), json.dumps({"step": step, "answers": list(answers)}))

    def load_answers(self, task: str, step: int) -> list[Any]:
        """The validation predictions of a step.

        Raises:
            TeacherError: They are missing, damaged, or another step's.
        """
        path = self._answers_path(task)
        try:
            kept = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            kept = {"step": "none"}
        except (json.JSONDecodeError, UnicodeDecodeError) as error:
            raise _damaged(path, error) from error
        if kept["step"] != step:
            found = f"those of step {kept['step']}" if path.exists() else "no such file"
            raise TeacherError(
                f"The validation predictions {path} must be those of step {step}, which the next evaluation is "
                f"compared with; found {found}. Resume from a checkpoint that was written with "
                "this criterion, or start afresh."
            )
        return kept["answers"]

    def _answers_path(self, task: str) -> Path:
        return self.folder / f"answers-{task}.json"

    def keep_snapshots(self, steps: Iterable[int]) -> None:
        """Delete all snapshots but those of some steps."""
        kept = {self.snapshot_path(step) for step in steps}
        for path in self.folder.glob("snapshot-*.safetensors"):
            if path not in kept:
                path.unlink()

    def link_into(self, folder: Path) -> None:
        """Put all files into another folder too, as hard links where that can be."""
        for path in sorted([*self.folder.glob("*.safetensors"), *self.folder.glob("answers-*.json")]):
            link_or_copy(path, folder / path.name)

    def replace_with(self, folder: Path) -> None:
        """Hold exactly the files of another folder (a checkpoint's)."""
        self.clear()
        TeacherStore(folder).link_into(self.folder)

    def clear(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
