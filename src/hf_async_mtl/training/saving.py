"""The part of the Trainer that keeps: self-contained checkpoints, what a resumed run takes up from them, the card."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from torch import nn
from transformers.trainer import TRAINER_STATE_NAME, TRAINING_ARGS_NAME
from transformers.trainer_utils import PREFIX_CHECKPOINT_DIR, HubStrategy

from ..building.freezing import trainable_hash
from ..building.lora import merged_copy
from .callbacks import ConvergenceCallback
from .checkpoint_validation import placement
from .checkpoints import TEACHERS_FOLDER, link_best
from .controller import ConvergingTrainer
from .distributed import share_rng_states
from .publishing import publish
from .state_dict import savable

if TYPE_CHECKING:
    import optuna

__all__ = ["SavingTrainer"]


class SavingTrainer(ConvergingTrainer):
    """A Trainer whose checkpoints resume anywhere, and whose model goes to the Hub with its code and its card.

    `AsyncMTLTrainer` makes one, and fills in what is declared here.
    """

    # For the card: task -> its `data` section, of which what is the Hub's is published.
    data_sources: dict[str, Mapping[str, Any]]
    # The best checkpoint of the run that this one goes on with.
    _adopted_best: Path | None

    def _run_state(self) -> dict[str, Any]:
        """What a checkpoint holds of this run, beside weights and files."""
        return {
            "schedule": self.schedule.state_dict(),
            "teachers": self.teachers.state_dict(),
            "batch_loss": self.batch_loss.state_dict(),
            "placement": placement(self.args),
            "learns": trainable_hash(self.batch_loss.model),
        }

    def _load_callback_state(self) -> None:
        """Restore the phases, whatever is asked of the other callbacks."""
        # Upstream restores all callbacks or none, and makes new objects, which would not be the ones that we hold.
        name = ConvergenceCallback.__name__
        saved = self.state.stateful_callbacks.pop(name)
        super()._load_callback_state()
        self.state.stateful_callbacks[name] = saved
        attributes = saved["attributes"]
        self.schedule.load_state_dict(attributes["schedule"])
        self.batch_loss.load_state_dict(attributes["batch_loss"])
        self.teachers.load(name for name, phase in self.schedule.phases.items() if phase == "distilling")
        if self._adopted_best is not None:
            self.state.best_model_checkpoint = str(self._adopted_best)

    def _save_checkpoint(self, model: nn.Module, trial: optuna.Trial | dict[str, Any] | None) -> None:
        """Write a checkpoint with all that it needs elsewhere: teachers, and the best weights so far."""
        if self.args.should_save:
            output_dir = Path(self._get_output_dir(trial))
            checkpoint = output_dir / f"checkpoint-{self.state.global_step}"
            # An earlier try's. While it is written over it is no whole checkpoint; and weights that are written in
            # place would change under the checkpoints that are linked to them.
            for path in [checkpoint / TRAINER_STATE_NAME, *checkpoint.glob("*.safetensors")]:
                path.unlink(missing_ok=True)
            # Before the rest: the Trainer's state is written last, and makes the checkpoint whole.
            self.teachers.store.link_into(checkpoint / TEACHERS_FOLDER)
            best = self._best_checkpoint()
            if best is not None and self.state.best_global_step != self.state.global_step:
                link_best(best, checkpoint)
        super()._save_checkpoint(model, trial)

    def _push_from_checkpoint(self, checkpoint_folder: str) -> None:
        """Push in the middle of a run, as upstream, the modelling code and a card too: without them nothing loads."""
        if self.is_world_process_zero() and self.args.hub_strategy != HubStrategy.END:
            for code in Path(checkpoint_folder).glob("*.py"):
                shutil.copy(code, self.args.output_dir)
            self.create_model_card()
        super()._push_from_checkpoint(checkpoint_folder)

    def _save_rng_state(self, output_dir: str) -> None:
        """Save the random states of all processes before the Trainer's state makes the checkpoint whole."""
        super()._save_rng_state(output_dir)
        share_rng_states(Path(output_dir), self.args)

    def _best_checkpoint(self) -> Path | None:
        """The checkpoint that would be loaded at the end. A better evaluation may have come without a checkpoint."""
        best = self.state.best_model_checkpoint
        return Path(best) if best is not None and self.args.load_best_model_at_end else None

    def _save(self, output_dir: str | None = None, state_dict: dict | None = None) -> None:
        """Save as upstream, without the pickled arguments: they hold local paths and the Hub's token.

        Low-rank layers are merged, except in checkpoints, from which they are resumed.
        """
        folder = Path(output_dir or self.args.output_dir)
        with savable(self.model):
            super()._save(output_dir, state_dict)
            if self.model.config.lora is not None and not folder.name.startswith(PREFIX_CHECKPOINT_DIR):
                merged = merged_copy(self.model, state_dict)
                with savable(merged):
                    merged.save_pretrained(folder)
        (folder / TRAINING_ARGS_NAME).unlink(missing_ok=True)

    def create_model_card(
        self,
        language: str | None = None,
        license: str | None = None,
        tags: str | list[str] | None = None,
        model_name: str | None = None,
        finetuned_from: str | None = None,
        tasks: str | list[str] | None = None,
        dataset_tags: str | list[str] | None = None,
        dataset: str | list[str] | None = None,
        dataset_args: str | list[str] | None = None,
    ) -> None:
        """Write ``README.md`` and the plots that it shows, from what the run left. Arguments as upstream.

        The Trainer's own card has no result at all where there are several evaluation sets.
        """
        if not self.is_world_process_zero():
            return
        splits = {"train": self.encoded_train, "validation": self.eval_dataset}
        publish(
            self.model,
            self.args,
            self.report(),
            # Upstream gives the last part of the repository's name, which would not load.
            model_name=self.hub_model_id or model_name,
            results=self._final_results(),
            finetuned_from=finetuned_from,
            license=license,
            language=language,
            metadata={
                "tags": tags,
                "datasets": dataset_tags or dataset,
                "pipeline_tag": tasks,
                "dataset_args": dataset_args,
            },
            data=self.data_sources,
            rows={
                name: {split: len(sets[name]) for split, sets in splits.items() if name in sets} for name in self.tasks
            },
        )

    def _final_results(self) -> dict[str, float]:
        """The validation metrics of the weights that the run ended with, as they were logged."""
        step = self.schedule.report().get("final", {}).get("step")
        logged = [entry for entry in self.state.log_history if entry["step"] == step]
        return {key: value for entry in logged for key, value in entry.items() if key.startswith("eval_")}
