"""Folders that a run is to write into: looked at before it begins, and taken away where it leaves nothing."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..modeling.configuration_multitask import ConfigurationError
from ..training.checkpoint_files import STATE_FILE, read_state
from ..utils import nearest_existing

__all__ = ["check_output_dir", "removed_where_nothing_is_written"]


@contextmanager
def removed_where_nothing_is_written(folder: Path) -> Iterator[None]:
    """Take away the folders that a failed run has made and has left empty."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise


def check_output_dir(output_dir: Path, resume: str | bool | None) -> None:
    """Look at the folder of a run before anything is loaded.

    Args:
        output_dir: The folder.
        resume: A checkpoint, or whether to go on from the newest.

    Raises:
        ConfigurationError: It cannot be written to, holds something that is not to be gone on with, or ``resume`` is no
            whole checkpoint.
    """
    existing = nearest_existing(output_dir)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        reason = "cannot be written to" if existing.is_dir() else "is no folder"
        raise ConfigurationError(
            f"The output folder must be one that can be written to; {existing} {reason}. Choose another with "
            "--output-dir."
        )
    if isinstance(resume, str) and read_state(Path(resume)) is None:
        raise ConfigurationError(
            f"`--resume` must name a whole checkpoint; {resume} has no {STATE_FILE}. Without a name it "
            "takes the newest whole one of the output folder."
        )
    if not resume and output_dir.exists() and any(output_dir.iterdir()):
        raise ConfigurationError(
            f"The output folder {output_dir} must be empty or new. Choose another with --output-dir, or go on with "
            "--resume."
        )
