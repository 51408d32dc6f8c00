"""The state of a run in a Trainer checkpoint: written last, and read before training goes on."""

from __future__ import annotations

import copy
import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from accelerate import Accelerator
from torch import nn
from transformers import TrainerState
from transformers.trainer import TRAINER_STATE_NAME

from ..building.freezing import trainable_hash
from ..convergence.schedule import ConvergenceSchedule
from ..distillation.teachers import Teachers
from ..utils import write_atomic
from ..validation import ConfigurationError
from .arguments import AsyncMTLTrainingArguments
from .checkpoint_files import STATE_FILE, TEACHERS_FOLDER, adopt_best, checkpoint_step, link_best
from .checkpoint_validation import check_checkpoint, placement
from .distributed import check_files_reach, newest_checkpoint, share_rng_states
from .loss import MultiTaskLoss


@dataclass(eq=False)
class RunCheckpoint:
    """Write what a run needs beside the Trainer's own files into its checkpoints, and resume from it.

    Attributes:
        best: The best checkpoint of the run that this one goes on with, in this run's folder; or None.
    """

    args: AsyncMTLTrainingArguments
    model: nn.Module
    accelerator: Accelerator
    schedule: ConvergenceSchedule
    teachers: Teachers
    loss: MultiTaskLoss
    best: Path | None = field(default=None, init=False)

    def __post_init__(self) -> None:
        self._new = copy.deepcopy({"schedule": self.schedule.state_dict(), "loss": self.loss.state_dict()})

    def state(self) -> dict[str, Any]:
        """Return the state of the run, as JSON values."""
        return {
            "schedule": self.schedule.state_dict(),
            "teachers": {"examples": dict(self.teachers.examples)},
            "loss": self.loss.state_dict(),
            "placement": placement(self.args),
            "learns": trainable_hash(self.model),
        }

    # -- write --------------------------------------------------------------------------------------------------------

    def prepare(self, checkpoint: Path, state: TrainerState) -> None:
        """Write what a resume elsewhere needs into a checkpoint, before the Trainer writes its own files."""
        self.loss.finite.flush(self.accelerator)
        if not self.args.should_save:
            return
        # While it is written again it is not complete; and weights that are written in place would change under the
        # checkpoints that are linked to them.
        for path in [checkpoint / STATE_FILE, *checkpoint.glob("*.safetensors")]:
            path.unlink(missing_ok=True)
        self.teachers.store.link_into(checkpoint / TEACHERS_FOLDER)
        best = self.final(state)
        if best is not None and state.best_global_step != state.global_step:
            link_best(best, checkpoint)

    def complete(self, checkpoint: Path) -> None:
        """Write our state, once all ranks have written what is theirs."""
        if not self.args.save_only_model:
            share_rng_states(checkpoint, self.args)
        if self.args.should_save:
            write_atomic(checkpoint / STATE_FILE, json.dumps(self.state()))

    # -- read ---------------------------------------------------------------------------------------------------------

    def begin(self, resume_from: str | bool | None) -> tuple[Path | None, int]:
        """Begin a run, new or resumed; return the checkpoint that it goes on from and its step, or None and -1."""
        self.schedule.load_state_dict(self._new["schedule"])
        self.loss.load_state_dict(self._new["loss"])
        self.teachers.begin()
        checkpoint = self._find(resume_from)
        check_files_reach(self.args, self.accelerator)
        if checkpoint is not None:
            shapes = {name: tensor.shape for name, tensor in self.model.state_dict().items()}
            state = check_checkpoint(checkpoint, self.args, self.schedule, self.teachers, shapes, self.state())
            self.loss.load_state_dict(state["loss"])
        output_dir, store = Path(self.args.output_dir), self.teachers.store
        if self.args.should_save:
            store.clear()
            if checkpoint is not None:
                store.replace_with(checkpoint / TEACHERS_FOLDER)
                adopt_best(checkpoint, output_dir)
        self.accelerator.wait_for_everyone()
        self.best = None
        if checkpoint is None:
            return None, -1
        # All ranks must load the same weights at the end.
        self.best = adopt_best(checkpoint, output_dir)
        self.teachers.load(name for name, phase in self.schedule.phases.items() if phase == "distilling")
        return checkpoint, TrainerState.load_from_json(str(checkpoint / TRAINER_STATE_NAME)).global_step

    def final_step(self, state: TrainerState) -> int:
        """Return the step of the weights that the run ends with."""
        final = self.final(state)
        return state.global_step if final is None else checkpoint_step(final)

    def final(self, state: TrainerState) -> Path | None:
        """Return the checkpoint whose weights the run ends with; None for its last weights.

        It may lag behind the best evaluation, which may have come without a checkpoint.
        """
        best = state.best_model_checkpoint
        return Path(best) if best is not None and self.args.load_best_model_at_end else None

    def _find(self, resume_from: str | bool | None) -> Path | None:
        if resume_from is not True:
            return Path(resume_from) if resume_from else None
        found = newest_checkpoint(Path(self.args.output_dir))
        if found is None:
            raise ConfigurationError(
                f"`resume_from_checkpoint` needs a complete checkpoint in {self.args.output_dir}; found none. Leave it "
                "out to start afresh."
            )
        return found
