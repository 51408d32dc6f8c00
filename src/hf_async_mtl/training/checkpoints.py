"""What makes a checkpoint whole, and self-contained: copied alone to another machine, it resumes."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any

from ..utils import link_or_copy

__all__ = [
    "BEST_FOLDER",
    "TEACHERS_FOLDER",
    "adopt_best",
    "checkpoint_step",
    "last_whole_checkpoint",
    "link_best",
    "read_state",
    "whole_checkpoints",
]

TEACHERS_FOLDER = "_teachers"
BEST_FOLDER = "_best"
"""Inside a checkpoint: the weights that `load_best_model_at_end` would load, where they are another checkpoint's."""

# FSDP reads its own copy.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", "pytorch_model_fsdp.bin")


def checkpoint_step(checkpoint: Path) -> int:
    """The optimizer step that a checkpoint is named after."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def read_state(checkpoint: Path) -> dict[str, Any] | None:
    """The Trainer's state, which is written last; None where it is missing or cut short."""
    try:
        return json.loads((checkpoint / "trainer_state.json").read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def whole_checkpoints(output_dir: Path) -> dict[int, Path]:
    """Step -> checkpoint, of those that were written to their end."""
    numbered = {path.name.removeprefix("checkpoint-"): path for path in output_dir.glob("checkpoint-*")}
    return {int(step): path for step, path in numbered.items() if step.isdigit() and read_state(path) is not None}


def last_whole_checkpoint(output_dir: Path) -> Path | None:
    """The newest checkpoint that was written to its end, or None."""
    whole = whole_checkpoints(output_dir)
    return whole[max(whole)] if whole else None


def link_best(best: Path, checkpoint: Path) -> None:
    """Put the weights of the best checkpoint into another one, as hard links where that can be."""
    for pattern in _WEIGHTS:
        for path in best.glob(pattern):
            link_or_copy(path, checkpoint / BEST_FOLDER / path.name)


def adopt_best(checkpoint: Path, output_dir: Path) -> Path | None:
    """Make the best weights that a checkpoint brings a checkpoint of this output folder.

    Returns:
        Where they are; None where the checkpoint knows of none.
    """
    state = read_state(checkpoint)
    if state is None or not state.get("best_model_checkpoint"):
        return None
    best = output_dir / PurePath(state["best_model_checkpoint"]).name
    # By its steps, not by its folder's name, which a copy may have changed.
    source = checkpoint if checkpoint_step(best) == state["global_step"] else checkpoint / BEST_FOLDER
    if not _has_weights(best) and source.is_dir():
        for pattern in _WEIGHTS:
            for path in source.glob(pattern):
                link_or_copy(path, best / path.name)
    return best if _has_weights(best) else None


def _has_weights(folder: Path) -> bool:
    # A folder alone may be what a run left that was killed as it was linking.
    return any(folder.glob("*.safetensors"))
