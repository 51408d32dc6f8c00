"""The output folder of a run: checked before it begins, and removed if the run leaves nothing in it."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from ..training.checkpoint_files import STATE_FILE, read_state, refuse_version_1
from ..utils import nearest_existing
from ..validation import ConfigurationError


@contextmanager
def remove_empty_on_error(folder: Path) -> Iterator[None]:
    """Remove the folders that the block has created and has left empty, if it raises."""
    missing = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        yield
    except BaseException:
        for path in missing:
            with suppress(OSError):
                path.rmdir()
        raise


def check_output_dir(output_dir: Path, resume: str | bool | None) -> None:
    """Check the folder of a run, and a named checkpoint to resume from, before anything is loaded."""
    existing = nearest_existing(output_dir)
    if not existing.is_dir() or not os.access(existing, os.W_OK):
        reason = "cannot be written to" if existing.is_dir() else "is no folder"
        raise ConfigurationError(
            f"The output folder must be one that can be written to; {existing} {reason}. Choose another with "
            "--output-dir."
        )
    if isinstance(resume, str):
        refuse_version_1(Path(resume))
    if isinstance(resume, str) and read_state(Path(resume)) is None:
        raise ConfigurationError(
            f"`--resume` must name a complete checkpoint; {resume} has no {STATE_FILE}. Without a name, it "
            "takes the newest complete one of the output folder."
        )
    if not resume and output_dir.exists() and any(output_dir.iterdir()):
        raise ConfigurationError(
            f"The output folder {output_dir} must be empty or new. Choose another with --output-dir, or continue with "
            "--resume."
        )
