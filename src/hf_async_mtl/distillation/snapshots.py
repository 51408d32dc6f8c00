"""The folder of a run's teachers: the weights of best steps, and the resampled scores that noise is measured with.

All files are written to a temporary name and renamed, so that a killed run never leaves half of one.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

import numpy as np
from safetensors import SafetensorError, safe_open
from safetensors.numpy import load_file as load_arrays
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import load_file, save_file
from torch import Tensor

from ..utils import atomic_path, link_or_copy
from .logits import LogitsFiles, TeacherError


class TeacherStore:
    """The folder of a run's teachers, created at the first write. A missing or damaged file is a `TeacherError`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def snapshot_path(self, step: int) -> Path:
        """Return the file of the weights of a step, which several tasks may share."""
        return self.folder / f"snapshot-{step}.safetensors"

    def logits_files(self, task: str) -> LogitsFiles:
        """Return the files of a task's recorded logits."""
        return LogitsFiles.of(self.folder, task)

    def save_snapshot(self, step: int, weights: Mapping[str, Tensor]) -> None:
        """Write the weights of a step."""
        # A tensor may be a view of a larger one, which safetensors refuses.
        plain = {name: tensor.detach().cpu().contiguous() for name, tensor in weights.items()}
        with atomic_path(self.snapshot_path(step)) as partial:
            save_file(plain, partial, {"format": "pt"})

    def load_snapshot(self, step: int) -> dict[str, Tensor]:
        """Read the weights of a step, to the CPU."""
        path = self._existing_snapshot(step)
        try:
            return load_file(path)
        except SafetensorError as error:
            raise TeacherError.of_damaged(path, error) from error

    def check_snapshot(self, step: int, shapes: Mapping[str, Sequence[int]]) -> None:
        """Raise a `TeacherError` unless the weights of a step exist and fit a model. They are not read."""
        path = self._existing_snapshot(step)
        try:
            with safe_open(path, framework="pt") as file:
                found = {name: list(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
        except SafetensorError as error:
            raise TeacherError.of_damaged(path, error) from error
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

    def keep_snapshots(self, steps: Iterable[int]) -> None:
        """Delete all snapshots but those of some steps."""
        kept = {self.snapshot_path(step) for step in steps}
        for path in self.folder.glob("snapshot-*.safetensors"):
            if path not in kept:
                path.unlink()

    def save_resamples(self, resamples: Mapping[int, Mapping[str, np.ndarray]]) -> None:
        """Write the resampled scores of all evaluations, step -> task -> ``[R]``, in place of earlier ones."""
        arrays = {f"{step}/{task}": row for step, tasks in resamples.items() for task, row in tasks.items()}
        with atomic_path(self._resamples_path) as partial:
            save_arrays(arrays, partial)

    def load_resamples(self, steps: Iterable[int]) -> dict[int, dict[str, np.ndarray]]:
        """Read what `save_resamples` wrote, which must have the evaluations of some steps; without a step, nothing."""
        needed, path = set(steps), self._resamples_path
        found: dict[int, dict[str, np.ndarray]] = {}
        if needed and path.is_file():
            try:
                arrays = load_arrays(path)
            except SafetensorError as error:
                raise TeacherError.of_damaged(path, error) from error
            for key, row in arrays.items():
                step, _, task = key.partition("/")
                found.setdefault(int(step), {})[task] = row
        if missing := needed - found.keys():
            raise TeacherError(
                f"The resampled scores {path} must have every evaluation, with which later ones are compared; that of "
                f"step {min(missing)} is missing. Was the checkpoint copied in part? Copy it again, or start afresh."
            )
        return dict(sorted(found.items()))

    @property
    def _resamples_path(self) -> Path:
        return self.folder / "resamples.safetensors"

    def link_into(self, folder: Path) -> None:
        """Link all files into another folder, or copy them where the file system has no hard links."""
        for pattern in ("*.safetensors", "*.npy", "*.json"):
            for path in sorted(self.folder.glob(pattern)):
                link_or_copy(path, folder / path.name)

    def replace_with(self, folder: Path) -> None:
        """Replace all files by those of another folder, such as a checkpoint's."""
        self.clear()
        TeacherStore(folder).link_into(self.folder)

    def clear(self) -> None:
        """Delete the folder."""
        shutil.rmtree(self.folder, ignore_errors=True)
