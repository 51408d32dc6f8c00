"""The files of a checkpoint: which checkpoints are complete, and the best weights that travel inside them."""

from __future__ import annotations

import json
from pathlib import Path, PurePath
from typing import Any

from transformers.trainer import TRAINER_STATE_NAME

from ..utils import link_or_copy
from ..validation import ConfigurationError

STATE_FILE = "async_mtl_state.json"
"""Our state, which is written last: its presence makes a checkpoint complete."""
TEACHERS_FOLDER = "_teachers"
BEST_FOLDER = "_best"
"""The weights that ``load_best_model_at_end`` would load, inside a checkpoint that does not hold them itself."""

# FSDP reads its own copy.
_WEIGHTS = ("*.safetensors", "*.safetensors.index.json", "config.json", "pytorch_model_fsdp.bin")


def checkpoint_step(checkpoint: Path) -> int:
    """Return the optimizer step that a checkpoint is named after."""
    return int(checkpoint.name.removeprefix("checkpoint-"))


def read_state(checkpoint: Path) -> dict[str, Any] | None:
    """Return our state; None if it is missing or cut short."""
    return _read(checkpoint / STATE_FILE)


def read_trainer_state(checkpoint: Path) -> dict[str, Any] | None:
    """Return the Trainer's state; None if it is missing or cut short."""
    return _read(checkpoint / TRAINER_STATE_NAME)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError, json.JSONDecodeError):
        return None


def complete_checkpoints(output_dir: Path) -> dict[int, Path]:
    """Return step -> checkpoint, for the checkpoints that were written to their end."""
    numbered = {path.name.removeprefix("checkpoint-"): path for path in output_dir.glob("checkpoint-*")}
    return {int(step): path for step, path in numbered.items() if step.isdigit() and read_state(path) is not None}


def refuse_version_1(checkpoint: Path) -> None:
    """Raise a `ConfigurationError` for a checkpoint of version 0.1, whose state was among the Trainer's callbacks."""
    state = read_trainer_state(checkpoint) or {}
    if read_state(checkpoint) is None and "ConvergenceCallback" in state.get("stateful_callbacks", {}):
        raise ConfigurationError(
            f"A run must be resumed from a checkpoint of this version; {checkpoint} was written by version 0.1, whose "
            "runs cannot be resumed. Choose another output folder, or continue with the version that began the run."
        )


def link_best(best: Path, checkpoint: Path) -> None:
    """Add the weights of the best checkpoint to another one, as hard links where possible."""
    for pattern in _WEIGHTS:
        for path in best.glob(pattern):
            link_or_copy(path, checkpoint / BEST_FOLDER / path.name)


def adopt_best(checkpoint: Path, output_dir: Path) -> Path | None:
    """Make the best weights that a checkpoint brings a checkpoint of this output folder; return it, if there is one."""
    state = read_trainer_state(checkpoint)
    if state is None or not state.get("best_model_checkpoint"):
        return None
    best = output_dir / PurePath(state["best_model_checkpoint"]).name
    # By its step, not by its folder's name, which a copy may have changed.
    source = checkpoint if checkpoint_step(best) == state["global_step"] else checkpoint / BEST_FOLDER
    if not _has_weights(best) and source.is_dir():
        for pattern in _WEIGHTS:
            for path in source.glob(pattern):
                link_or_copy(path, best / path.name)
    return best if _has_weights(best) else None


def _has_weights(folder: Path) -> bool:
    # A folder alone may be what a run left that was killed while it was linking.
    return any(folder.glob("*.safetensors"))
