"""Our fields on `transformers.TrainingArguments`, checked when they are given."""

from __future__ import annotations

import dataclasses
import difflib
import os
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from transformers import TrainingArguments
from transformers.utils import logging

from ..balancing.build import check_parameters
from ..balancing.config import BalancingConfig
from ..convergence.criteria import ConvergenceConfig
from ..data.mixing import draws_per_task
from ..modeling.configuration_multitask import RENAMED, ConfigurationError
from ..report.model_card import without_folder

__all__ = [
    "REFUSED",
    "AsyncMTLTrainingArguments",
    "DistillationConfig",
    "MixingConfig",
    "ScheduleConfig",
    "check_keys",
    "settings",
]

logger = logging.get_logger(__name__)

REFUSED = {
    "label_smoothing_factor": "each head has a loss of its own",
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
"""Fields of `TrainingArguments` that have no effect here, or a wrong one; with the reason."""

_RENAMED = {**RENAMED, "limit": "max_samples", "label_share": "hard_label_weight"}

T = TypeVar("T")


def check_keys(section: str, given: Collection[str], known: Collection[str]) -> None:
    """Raise a `ConfigurationError` for an unknown key, and name its new name or the nearest known key."""
    for key in given:
        if key not in known:
            nearest = difflib.get_close_matches(str(key), list(known), n=1, cutoff=0.0)[0]
            name = f"{section}.{key}" if section else str(key)
            if _RENAMED.get(str(key)) in known:
                raise ConfigurationError(f"`{name}`: `{key}` is now `{_RENAMED[key]}`. Rename the key.")
            raise ConfigurationError(f"Unknown key `{name}`. The nearest known key is `{nearest}`.")


def settings(section: str, kind: type[T], given: Mapping[str, Any] | None) -> T:
    """Make a section's dataclass from its dictionary.

    Args:
        section: Its name, for messages.
        kind: The dataclass.
        given: The user's keys and values; None for the defaults.

    Raises:
        ConfigurationError: The section is no dictionary, a key is not known, or a value is out of range.
    """
    if not isinstance(given, Mapping | None):
        raise ConfigurationError(f"`{section}` must be a dictionary; found {given!r}.")
    check_keys(section, given or {}, [item.name for item in dataclasses.fields(kind)])  # type: ignore[arg-type]
    try:
        return kind(**(given or {}))
    except ConfigurationError:
        raise
    except ValueError as error:
        raise ConfigurationError(str(error)) from None


def _check(section: str, ok: bool, requirement: str, found: Any) -> None:
    if not ok:
        raise ConfigurationError(f"`{section}` must be {requirement}; found {found!r}.")


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


@dataclass(frozen=True)
class DistillationConfig:
    """How a converged task learns from its teacher.

    Args:
        temperature: > 0. Of the softmax in the divergence; see `hf_async_mtl.modeling.losses.categorical_kl`.
        hard_label_weight: 0..1. The share of the supervised loss: 0 is the teacher alone, 1 the labels alone.
        teachers: Task -> folder or Hub id of a model that is its teacher from the first step, in place of its own best.
    """

    temperature: float = 1.0
    hard_label_weight: float = 0.0
    teachers: Mapping[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        ok = _is_number(self.temperature) and self.temperature > 0
        _check("distillation.temperature", ok, "a number above 0", self.temperature)
        ok = _is_number(self.hard_label_weight) and 0 <= self.hard_label_weight <= 1
        _check("distillation.hard_label_weight", ok, "a number from 0 to 1", self.hard_label_weight)
        ok = isinstance(self.teachers, Mapping) and all(isinstance(x, str) and x for x in self.teachers.values())
        _check("distillation.teachers", ok, "a dictionary: task -> folder or Hub id", self.teachers)


@dataclass(frozen=True)
class MixingConfig:
    """How often each task is drawn; see `hf_async_mtl.data.mixing.draws_per_task`."""

    strategy: str = "proportional"
    temperature: float = 1.0

    def __post_init__(self) -> None:
        _check("mixing.temperature", _is_number(self.temperature), "a number of at least 1", self.temperature)
        draws_per_task([1], self.strategy, self.temperature)


@dataclass(frozen=True)
class ScheduleConfig:
    """When the tasks join the run.

    Args:
        mode: ``joint``: all from the start. ``sequential``: one after the other, each when those before have converged.
        order: Of a sequential run: the names of all tasks, or ``size``: those with most training examples first.
    """

    mode: str = "joint"
    order: Sequence[str] | str = "size"

    def __post_init__(self) -> None:
        _check("schedule.mode", self.mode in ("joint", "sequential"), "joint or sequential", self.mode)
        ok = self.order == "size" or (
            isinstance(self.order, list | tuple) and all(isinstance(x, str) for x in self.order)
        )
        _check("schedule.order", ok, "size, or a list of all tasks", self.order)
        _check(
            "schedule.order", self.mode == "sequential" or self.order == "size", "left out in a joint run", self.order
        )


@dataclass
class AsyncMTLTrainingArguments(TrainingArguments):
    """`transformers.TrainingArguments` with the sections of the configuration file.

    Args:
        head_learning_rate: Of the heads; ``learning_rate`` where absent. New heads on a pretrained encoder often want
            ten times as much.
        convergence: The fields of `ConvergenceConfig` for all tasks; ``tasks: {name: {...}}`` overrides them for one;
            ``final_evaluations`` (default 3): when no task learns any more, the run ends after so many further
            evaluations; None: when the budget is spent.
        distillation: The fields of `DistillationConfig`.
        mixing: The fields of `MixingConfig`.
        balancing: The fields of `BalancingConfig`.
        schedule: The fields of `ScheduleConfig`.
        conflict_steps: Number of optimizer steps between two measurements of the cosines between the tasks' gradients,
            over the parameters of the last shared layer; 0 (the default): never. At 50 it costs 1 to 2 % of the time.

    Raises:
        ConfigurationError: A key is not known, a value is out of range, or a field has no effect here.

    Examples:
        >>> args = AsyncMTLTrainingArguments("out", convergence={"patience": 5}, use_cpu=True)
        >>> args.convergence_of("rte").patience
        5
    """

    eval_strategy: str = field(default="steps", metadata={"help": "steps or epoch."})
    eval_steps: float | None = field(default=None, metadata={"help": "Default: logging_steps."})
    save_strategy: str = field(default="steps", metadata={"help": "steps, epoch, best or no."})
    save_steps: float | None = field(default=None, metadata={"help": "Default: eval_steps."})
    load_best_model_at_end: bool = field(default=True, metadata={"help": "End with the best checkpoint."})
    metric_for_best_model: str | None = field(default="average", metadata={"help": "average, or <task>_<metric>."})
    remove_unused_columns: bool = field(default=False, metadata={"help": "Refused."})
    ddp_find_unused_parameters: bool | None = field(default=False, metadata={"help": "Refused."})
    head_learning_rate: float | None = field(default=None, metadata={"help": "Learning rate of the heads."})
    conflict_steps: int = field(default=0, metadata={"help": "Measure gradient conflicts every n steps; 0: never."})
    convergence: dict[str, Any] | str | None = field(default=None, metadata={"help": "When a task has converged."})
    distillation: dict[str, Any] | str | None = field(default=None, metadata={"help": "How it then learns."})
    mixing: dict[str, Any] | str | None = field(default=None, metadata={"help": "How often a task is drawn."})
    balancing: dict[str, Any] | str | None = field(default=None, metadata={"help": "How losses become an update."})
    schedule: dict[str, Any] | str | None = field(default=None, metadata={"help": "When the tasks join."})

    # Upstream reads the names of the fields that may come as JSON on the command line from here.
    _VALID_DICT_FIELDS = [
        *TrainingArguments._VALID_DICT_FIELDS,
        "convergence",
        "distillation",
        "mixing",
        "balancing",
        "schedule",
    ]

    def __post_init__(self) -> None:
        self._refuse_without_effect()
        if self.eval_strategy == "steps" and not self.eval_steps:
            self.eval_steps = self.logging_steps
        if self.save_steps is None:
            self.save_steps = self.eval_steps or 500
        super().__post_init__()
        if self.n_gpu > 1:
            # Trainer would wrap the model in DataParallel, which scatters packed rows.
            logger.warning(
                "One process uses one GPU here. To use all: accelerate launch --multi_gpu scripts/train.py ..."
            )
            self._n_gpu = 1
        if self.device.type == "cpu":
            # There is no memory to pin for; torch warns at every loader.
            self.dataloader_pin_memory = False
        self._check_own()

    def _check_own(self) -> None:
        """Check our fields, and make the sections that are read as objects."""
        self.convergence_of("")
        self.final_evaluations  # noqa: B018 - checks the value before training starts
        self.distillation_config = settings("distillation", DistillationConfig, self.section("distillation"))
        self.mixing_config = settings("mixing", MixingConfig, self.section("mixing"))
        self.balancing_config = settings("balancing", BalancingConfig, self.section("balancing"))
        self.schedule_config = settings("schedule", ScheduleConfig, self.section("schedule"))
        check_parameters(self.balancing_config)
        self._refuse_what_balancing_cannot()
        steps = self.conflict_steps
        ok = isinstance(steps, int) and not isinstance(steps, bool) and steps >= 0
        _check("training.conflict_steps", ok, "a whole number of at least 0", steps)

    def __getstate__(self) -> dict[str, Any]:
        # Upstream pickles the arguments into the folder that `hub_strategy: every_save` pushes.
        sources = self.distillation_config.teachers
        teachers = {name: without_folder(source) for name, source in sources.items()}
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
        if str(getattr(self.hub_strategy, "value", self.hub_strategy)) in ("checkpoint", "all_checkpoints"):
            raise ConfigurationError(
                f"`training.hub_strategy: {self.hub_strategy}` would upload the teachers that a checkpoint holds. Use "
                "end or every_save."
            )
        if str(getattr(self.eval_strategy, "value", self.eval_strategy)) not in ("steps", "epoch"):
            raise ConfigurationError(
                "`training.eval_strategy` must be steps or epoch: convergence is decided on evaluations; found "
                f"{self.eval_strategy!r}."
            )
        lr = self.head_learning_rate
        _check("training.head_learning_rate", lr is None or (_is_number(lr) and lr > 0), "a number above 0", lr)

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
        """``FSDP``, ``DeepSpeed`` or None, whether a field says so or the configuration of ``accelerate launch``."""
        for name, given, variable in (
            ("DeepSpeed", self.deepspeed, "ACCELERATE_USE_DEEPSPEED"),
            ("FSDP", self.fsdp, "ACCELERATE_USE_FSDP"),
        ):
            if given or os.environ.get(variable, "false").lower() == "true":
                return name
        return None

    def section(self, name: str) -> Mapping[str, Any]:
        """A section as it was given; empty, where it was not."""
        section = getattr(self, name) or {}
        if not isinstance(section, Mapping):
            raise ConfigurationError(f"`{name}` must be a dictionary; found {section!r}.")
        return section

    def convergence_of(self, task: str) -> ConvergenceConfig:
        """The convergence settings of a task: its own where it has any, else those of all."""
        section = dict(self.section("convergence"))
        section.pop("final_evaluations", None)
        tasks = section.pop("tasks", None) or {}
        _check("convergence.tasks", isinstance(tasks, Mapping), "a dictionary", tasks)
        own = tasks.get(task) or {}
        _check(f"tasks.{task}.convergence", isinstance(own, Mapping), "a dictionary", own)
        settings("convergence", ConvergenceConfig, section)
        return settings(f"tasks.{task}.convergence", ConvergenceConfig, {**section, **own})

    @property
    def final_evaluations(self) -> int | None:
        """How many evaluations follow the last convergence; None: as many as the budget has."""
        value = self.section("convergence").get("final_evaluations", 3)
        ok = value is None or (isinstance(value, int) and not isinstance(value, bool) and value >= 0)
        _check("convergence.final_evaluations", ok, "a whole number of at least 0, or null", value)
        return value
