"""Check before training that a checkpoint can be resumed: complete, of this run's data, and without code in it."""

from __future__ import annotations

import pickle
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.trainer_pt_utils import safe_globals
from transformers.utils import logging

from ..convergence.schedule import ConvergenceSchedule
from ..distillation.logits import TeacherError
from ..distillation.snapshots import TeacherStore
from ..distillation.teachers import Teachers
from ..validation import ConfigurationError
from .arguments import AsyncMTLTrainingArguments
from .checkpoint_files import STATE_FILE, TEACHERS_FOLDER, read_state, read_trainer_state, refuse_version_1

logger = logging.get_logger(__name__)

Shapes = Mapping[str, Sequence[int]]


def check_checkpoint(
    checkpoint: Path,
    args: AsyncMTLTrainingArguments,
    schedule: ConvergenceSchedule,
    teachers: Teachers,
    shapes: Shapes,
    own_state: Mapping[str, Any],
) -> dict[str, Any]:
    """Check all that resuming would read, and load the schedule; return the state that the checkpoint holds."""
    refuse_version_1(checkpoint)
    state = read_state(checkpoint)
    if state is None or read_trainer_state(checkpoint) is None:
        name = STATE_FILE if state is None else TRAINER_STATE_NAME
        raise ConfigurationError(
            f"`resume_from_checkpoint` must be a complete checkpoint of this trainer; {checkpoint} has no readable "
            f"{name}. Was it written by another Trainer or another version, or cut short?"
        )
    if state.keys() != own_state.keys():
        raise ConfigurationError(
            f"`resume_from_checkpoint` must be a checkpoint of this version; {checkpoint} holds the state of "
            f"{', '.join(state)}. Resume with the version that wrote it, or start afresh."
        )
    try:
        schedule.load_state_dict(state["schedule"])
    except ValueError as error:
        raise ConfigurationError(f"{checkpoint} cannot be resumed: {error}") from None
    _check_same_run(checkpoint, state, teachers.examples, own_state["learns"])
    _check_files(checkpoint, args, state["placement"]["processes"])
    store = TeacherStore(checkpoint / TEACHERS_FOLDER)
    try:
        for step in schedule.snapshots_needed():
            store.check_snapshot(step, shapes)
        store.load_resamples(schedule.evaluated_steps)
        for task, phase in schedule.phases.items():
            if phase == "distilling":
                teachers.read(task, store)
    except TeacherError as error:
        raise ConfigurationError(f"{checkpoint} cannot be resumed: {error}") from None
    if (message := other_placement(state["placement"], own_state["placement"])) is not None:
        logger.warning(message)
    return state


def _check_same_run(checkpoint: Path, state: Mapping[str, Any], examples: Mapping[str, str], trainable: Any) -> None:
    """Check that a checkpoint is of a run with the same training examples and trainable weights."""
    saved = state["teachers"]["examples"]
    for task, own in examples.items():
        if saved.get(task) != own:
            raise ConfigurationError(
                f"A run must be resumed with its own training examples; those of task {task!r} are others than in "
                f"{checkpoint}. Give the data, tokenizer and `data_seed` of the first run, or start afresh."
            )
    if state["learns"] != trainable:
        raise ConfigurationError(
            f"A run must be resumed with the weights that learn in it; those of {checkpoint} are others. Give the "
            "`freeze`, `lora` and `head` of the first run, or start afresh."
        )


def _check_files(checkpoint: Path, args: AsyncMTLTrainingArguments, processes: int) -> None:
    """Check that the files that Transformers and torch will read are there, complete, and without code."""
    needed = ["model.safetensors*", "scheduler.pt"]
    if args.sharded_by is None:
        needed.append("optimizer.pt")
    if processes == args.world_size:
        own = f"_{args.process_index}" if processes > 1 else ""
        needed.append(f"rng_state{own}.pth")
    for pattern in needed:
        if not any(checkpoint.glob(pattern)):
            raise ConfigurationError(
                f"A checkpoint must be complete; {checkpoint} has no {pattern.rstrip('*')}. Was it copied in part? "
                "Copy it again, or resume from another."
            )
    for path in sorted(checkpoint.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt"):
                pass
        except SafetensorError as error:
            raise _damaged(path, error) from None
    for path in sorted([*checkpoint.glob("*.pt"), *checkpoint.glob("*.pth")]):
        try:
            with safe_globals():
                torch.load(path, map_location="meta", mmap=True, weights_only=True)
        except (OSError, RuntimeError, ValueError, EOFError, pickle.UnpicklingError) as error:
            raise _damaged(path, error) from None


def _damaged(path: Path, error: Exception) -> ConfigurationError:
    reason = next(iter(str(error).splitlines()), type(error).__name__)
    return ConfigurationError(
        f"Every file of a checkpoint must be as it was written; {path} is cut short, damaged, or holds more than "
        f"numbers, and was not loaded ({reason}). Copy it again, or resume from another checkpoint."
    )


def placement(args: AsyncMTLTrainingArguments) -> dict[str, int]:
    """Return how the examples of an optimizer step are spread, as JSON values."""
    return {
        "processes": args.world_size,
        "batch": args.per_device_train_batch_size,
        "accumulation": args.gradient_accumulation_steps,
    }


def other_placement(saved: Mapping[str, Any], now: Mapping[str, Any]) -> str | None:
    """Return what is not exact when a run goes on with other processes or batches; None if all is."""
    if saved == now:
        return None
    sizes = [values["processes"] * values["batch"] * values["accumulation"] for values in (saved, now)]
    ways = (
        f"Resumed with {now['processes']} process{'' if now['processes'] == 1 else 'es'} x batch {now['batch']} x "
        f"accumulation {now['accumulation']}, after {saved['processes']} x {saved['batch']} x {saved['accumulation']}."
    )
    if sizes[0] == sizes[1]:
        return f"{ways} A step's examples are the same; dropout and the last digits of sums are not."
    return (
        f"{ways} A step has {sizes[1]} examples, after {sizes[0]}: the run goes on at its step, so that the place in "
        "the epoch moves (some examples of it come twice or not at all), and the number of steps and the learning "
        "rate's schedule are those of the new size."
    )
