"""The training arguments: those of Transformers, with a section for each part of the method."""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, get_type_hints

from transformers import TrainingArguments
from transformers.utils import is_in_notebook, logging

from ..balancing.build import check_parameters
from ..convergence.config import ConvergenceConfig
from ..validation import ConfigurationError, check, number, of_type, optional, whole_number
from .sections import SECTIONS, parse_sections

logger = logging.get_logger(__name__)

REFUSED = {
    "label_smoothing_factor": "each task has its own, `loss: {label_smoothing: ...}`",
    "remove_unused_columns": "the trainer tokenizes the columns that the tasks name",
    "train_sampling_strategy": "the order of the examples is `mixing`'s",
    "length_column_name": "packing makes grouping by length needless",
    "auto_find_batch_size": "a restart would keep the phases of the failed try",
    "label_names": "the labels are those of the tasks",
    "prediction_loss_only": "convergence is decided on metrics",
    "batch_eval_metrics": "metrics are those of a whole split",
    "eval_do_concat_batches": "metrics are those of a whole split",
    "include_for_metrics": "metrics are those of the tasks",
    "use_liger_kernel": "it has no kernels for encoders",
    "do_train": "the command or the method that is called says it",
    "do_predict": "the command or the method that is called says it",
    "resume_from_checkpoint": "`--resume`, or the argument of `train`, says it",
    "ddp_find_unused_parameters": "every parameter has a gradient at every step",
}
"""Fields of `transformers.TrainingArguments` that have no effect here, or a wrong one, each with the reason."""

# Upstream checks these at the first step, or not at all.
_ABOVE_ZERO = (
    *("per_device_train_batch_size", "per_device_eval_batch_size", "gradient_accumulation_steps", "num_train_epochs"),
    *("learning_rate", "eval_steps", "save_steps", "logging_steps", "save_total_limit"),
)


@dataclass
class AsyncMTLTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the sections of the configuration file.

    Args:
        head_learning_rate: Learning rate of the heads; default: ``learning_rate``. New heads on a pretrained
            encoder often need ten times as much.
        conflict_steps: Number of optimizer steps between two measurements of the cosines between the tasks' gradients,
            over the parameters of the last shared layer; 0 (the default): never. At 50 it costs 1 to 2 % of the time.
        convergence: The fields of `ConvergenceConfig` and ``final_evaluations`` for all tasks; ``tasks: {name: {...}}``
            overrides them for one task. See `ConvergenceSettings`.
        distillation: The fields of `DistillationConfig`.
        mixing: The fields of `MixingConfig`.
        balancing: The fields of `BalancingConfig`.
        schedule: The fields of `ScheduleConfig`.
        losses: Task -> the fields of its `LossConfig`; in the configuration file ``tasks.<name>.loss``.

    Raises:
        ConfigurationError: A key is not known, a value is out of range, or a field has no effect here.

    Examples:
        >>> args = AsyncMTLTrainingArguments("out", convergence={"patience": 5}, use_cpu=True)
        >>> args.convergence_of("rte").patience
        5
    """

    eval_strategy: str | None = field(default=None, metadata={"help": "steps (the default) or epoch."})
    eval_steps: float | None = field(default=None, metadata={"help": "Default: logging_steps."})
    save_strategy: str | None = field(default=None, metadata={"help": "Default: eval_strategy. Also best or no."})
    save_steps: float | None = field(default=None, metadata={"help": "Default: eval_steps."})
    disable_tqdm: bool | None = field(default=None, metadata={"help": "Default: no bars where stderr is no terminal."})
    load_best_model_at_end: bool | None = field(default=None, metadata={"help": "Default: if checkpoints are saved."})
    metric_for_best_model: str | None = field(default="average", metadata={"help": "average, or <task>_<metric>."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Refused."})
    logging_nan_inf_filter: bool = field(default=False, metadata={"help": "Hide losses that are not finite."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Refused."})
    head_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of the heads."})
    conflict_steps: int = field(default=0, metadata={"help": "Measure gradient conflicts every n steps; 0: never."})
    convergence: dict[str, Any] | str | None = field(default=None, metadata={"help": "When a task has converged."})
    distillation: dict[str, Any] | str | None = field(default=None, metadata={"help": "How it then learns."})
    mixing: dict[str, Any] | str | None = field(default=None, metadata={"help": "How often a task is drawn."})
    balancing: dict[str, Any] | str | None = field(default=None, metadata={"help": "How losses become an update."})
    schedule: dict[str, Any] | str | None = field(default=None, metadata={"help": "When the tasks join."})
    losses: dict[str, Any] | str | None = field(default=None, metadata={"help": "Options of the tasks' losses."})

    # Upstream reads the names of the fields that may come as JSON on the command line from here.
    _VALID_DICT_FIELDS = [*TrainingArguments._VALID_DICT_FIELDS, *SECTIONS]

    def __post_init__(self) -> None:
        self._set_defaults()
        self._refuse_without_effect()
        transfer_is_default = self.accelerator_config is None
        if self.disable_tqdm is None and not (sys.stderr.isatty() or is_in_notebook()):
            # In a log file each step of a bar is a line.
            self.disable_tqdm = True
        try:
            super().__post_init__()
        except ValueError as error:
            if "load_best_model_at_end" not in str(error):
                raise
            raise ConfigurationError(
                "A run ends with its best checkpoint, so checkpoints must be those of evaluations: "
                "`save_strategy` must be `eval_strategy` or best, and `save_steps` a multiple of `eval_steps`; "
                f"found {_text(self.save_strategy)} ({self.save_steps}) and {_text(self.eval_strategy)} "
                f"({self.eval_steps}). Change them, or set `load_best_model_at_end: false`."
            ) from None
        if self.n_gpu > 1:
            # Trainer would wrap the model in DataParallel, which scatters packed rows.
            logger.warning(
                "One process uses one GPU here. To use all: accelerate launch --multi_gpu scripts/train.py ..."
            )
            self._n_gpu = 1
        if self.device.type == "cpu":
            # There is no memory to pin for; torch warns at every loader.
            self.dataloader_pin_memory = False
        if transfer_is_default and self.dataloader_pin_memory and self.device.type == "cuda":
            # From pinned memory a batch is copied while the device computes. Elsewhere nothing is pinned.
            self.accelerator_config.non_blocking = True
        self._parse_sections()
        check("training.conflict_steps", self.conflict_steps, whole_number(0))

    def _set_defaults(self) -> None:
        """Set the fields that say when to evaluate and to save: those that are not given follow those that are."""
        if self.eval_strategy is None:
            self.eval_strategy = "epoch" if _text(self.save_strategy) == "epoch" and not self.eval_steps else "steps"
        if self.save_strategy is None:
            self.save_strategy = _text(self.eval_strategy)
        if self.load_best_model_at_end is None:
            self.load_best_model_at_end = _text(self.save_strategy) != "no"
        if _text(self.eval_strategy) == "steps" and not self.eval_steps:
            fits = not self.save_steps or self.save_steps % self.logging_steps == 0
            self.eval_steps = self.logging_steps if fits else self.save_steps
        if self.save_steps is None:
            self.save_steps = self.eval_steps or 500

    def _parse_sections(self) -> None:
        sections = parse_sections({name: getattr(self, name) for name in SECTIONS})
        self.convergence_config, self.distillation_config, self.mixing_config = sections[:3]
        self.balancing_config, self.schedule_config, self.loss_configs = sections[3:]
        check_parameters(self.balancing_config)
        self._refuse_what_balancing_cannot()

    def __getstate__(self) -> dict[str, Any]:
        # Upstream pickles the arguments into the folder that `hub_strategy: every_save` pushes: no token, no paths.
        teachers = {name: _without_folder(source) for name, source in self.distillation_config.teachers.items()}
        return {
            **self.__dict__,
            "hub_token": None,
            "output_dir": Path(self.output_dir or "").name,
            "distillation": {**self.section("distillation"), "teachers": teachers},
            "distillation_config": dataclasses.replace(self.distillation_config, teachers=teachers),
        }

    def _refuse_without_effect(self) -> None:
        for item in dataclasses.fields(self):
            if item.name not in REFUSED:
                continue
            default = item.default_factory() if callable(item.default_factory) else item.default
            if getattr(self, item.name) != default:
                raise ConfigurationError(
                    f"`training.{item.name}` has no effect here: {REFUSED[item.name]}. Remove the key."
                )
        if _text(self.hub_strategy) in ("checkpoint", "all_checkpoints"):
            raise ConfigurationError(
                f"`training.hub_strategy: {self.hub_strategy}` would upload the teachers that a checkpoint holds. Use "
                "end or every_save."
            )
        if _text(self.eval_strategy) not in ("steps", "epoch"):
            raise ConfigurationError(
                "`training.eval_strategy` must be steps or epoch: convergence is decided on evaluations; found "
                f"{self.eval_strategy!r}."
            )
        check("training.head_learning_rate", self.head_learning_rate, optional(number(0, exclusive=True)))

    def _refuse_what_balancing_cannot(self) -> None:
        if self.balancing_config.kind != "gradients":
            return
        for name, given, reason in (
            ("`training.fp16`", self.fp16, "its gradients are scaled by a changing factor. Use bf16"),
            ("FSDP", self.sharded_by == "FSDP", "no process has a whole gradient. Use a method on losses"),
            ("DeepSpeed", self.sharded_by == "DeepSpeed", "it takes over the backward pass. Use a method on losses"),
        ):
            if given:
                raise ConfigurationError(
                    f"`balancing.method: {self.balancing_config.method}` cannot be used with {name}: {reason}."
                )

    @property
    def sharded_by(self) -> str | None:
        """``FSDP``, ``DeepSpeed`` or None, from a field or from the configuration of ``accelerate launch``."""
        for name, given, variable in (
            ("DeepSpeed", self.deepspeed, "ACCELERATE_USE_DEEPSPEED"),
            ("FSDP", self.fsdp, "ACCELERATE_USE_FSDP"),
        ):
            if given or os.environ.get(variable, "false").lower() == "true":
                return name
        return None

    def section(self, name: str) -> Mapping[str, Any]:
        """Return a section as it was given; empty where it was not."""
        return getattr(self, name) or {}

    def convergence_of(self, task: str) -> ConvergenceConfig:
        """Return the convergence settings of a task."""
        return self.convergence_config.of(task)

    @property
    def final_evaluations(self) -> int | None:
        """The number of evaluations after the last convergence; None: as many as the budget allows."""
        return self.convergence_config.final_evaluations


def _text(value: Any) -> str:
    """Return a strategy as text, also one that is a member of an enumeration of Transformers."""
    return str(getattr(value, "value", value))


def _without_folder(source: str) -> str:
    """Return the last name of an absolute path; a Hub id or a relative path as it is."""
    path = Path(source).expanduser()
    return path.name if path.is_absolute() else source


def check_types(values: Mapping[str, Any]) -> None:
    """Check values from a file against the types of their fields, which upstream does not."""
    hints = get_type_hints(AsyncMTLTrainingArguments)
    for key, value in values.items():
        requirement = of_type(hints[key])
        if key in _ABOVE_ZERO and isinstance(value, int | float):
            check(f"training.{key}", value, number(0, exclusive=True))
        if requirement is not None:
            check(f"training.{key}", value, requirement)
