"""What a multi-task model is: its encoder's configuration and its tasks, as they stand in ``config.json``."""

from __future__ import annotations

import copy
import dataclasses
import re
from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from .heads import HEADS

try:
    from hf_async_mtl.validation import ConfigurationError
except ImportError:  # The code was loaded from the Hub, and the package is not installed.

    class ConfigurationError(ValueError):  # type: ignore[no-redef]
        """The user's input is wrong. The message gives the requirement, the value found and the way out."""


__all__ = [
    "RENAMED",
    "ConfigurationError",
    "MultiTaskConfig",
    "TaskConfig",
    "check_task_names",
    "truncated_repr",
]

RENAMED = {"text": "text_columns", "label": "label_column", "labels": "label_names", "stride": "doc_stride"}
"""Fields of `TaskConfig` in version 0.1, each with its name today."""

POOLINGS = ("cls", "mean", "max")
PACKINGS = ("auto", "off")
# `eval_average` is ours; the others would make keys such as `train_loss` or `eval_loss`, which are the Trainer's own.
_RESERVED = frozenset({"average", "encoder", "eval", "test", "train", "total", "loss", "all"})
_NOT_INSTALLED = "Presets, and labels found in data, need the package: `pip install hf_async_mtl`."
_SPEED_KEYS = ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


def truncated_repr(value: Any) -> str:
    """Return the ``repr`` of a value for a message, of at most 200 characters.

    Examples:
        >>> truncated_repr("good"), len(truncated_repr("good cat" * 1_000_000))
        ("'good'", 200)
    """
    text = repr(value)
    return text if len(text) <= 200 else f"{text[:197]}..."


@dataclasses.dataclass
class TaskConfig:
    """One task: all that is needed to use its head, and nothing of how it was trained.

    Args:
        type: One of ``classification``, ``multilabel``, ``regression``, ``token_classification``, ``multiple_choice``,
            ``question_answering``.
        text_columns: The columns that are read: one, or two for a pair; the column of word lists for
            ``token_classification``; ``[question, context]``; ``{"prompt": [...], "choices": [...]}``.
        label_column: The column of the labels; several 0/1 columns for ``multilabel``; ``answers`` for
            ``question_answering``.
        label_names: The names of the classes, in the order of the logits. Found by `resolve` where they are not given.
        metrics: Names of metrics; the first is monitored. Default: the ``default_metric`` of its head.
        max_length: The longest sequence of the task, in tokens. Default: the bundle's.
        doc_stride: Tokens that two windows of a long question-answering context share.
        target_mean: Mean of a regression task's training targets; found by `resolve`.
        target_std: Their standard deviation; found by `resolve`. A head learns standardised targets, so that tasks
            with other units weigh the same; its logits are in the data's own units.

    Raises:
        ConfigurationError: A value does not fit the type.

    Examples:
        >>> TaskConfig(type="classification", text_columns=["sentence"], label_names=["neg", "pos"]).num_labels
        2
    """

    type: str
    text_columns: list[str] | dict[str, list[str]]
    label_column: str | list[str] = "label"
    label_names: list[str] | None = None
    metrics: list[str] | None = None
    max_length: int | None = None
    doc_stride: int | None = None
    target_mean: float | None = None
    target_std: float | None = None

    def __new__(cls, *args: Any, **fields: Any) -> TaskConfig:
        for key in fields:
            if key in RENAMED:
                raise ConfigurationError(f"`{key}` is now `{RENAMED[key]}`. Rename the key.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if self.type not in HEADS:
            raise ConfigurationError(f"`type` must be one of {', '.join(HEADS)}; found {self.type!r}.")
        self._check_text_columns()
        self._check_metrics()
        self._check_label_column()
        if self.label_names is not None:
            self._check_label_names()
        if self.max_length is not None:
            _check_max_length(self.max_length)
        if self.doc_stride is not None:
            self._check_doc_stride()
        if self.target_std is not None and not self.target_std > 0:
            raise ConfigurationError(
                f"`target_std` must be greater than 0; found {self.target_std!r}. Leave it out: "
                "`task.resolve(train_dataset)` finds it."
            )

    def _check_text_columns(self) -> None:
        if isinstance(self.text_columns, str):
            self.text_columns = [self.text_columns]
        if HEADS[self.type].has_choices:
            self._check_choices()
            return
        counts, columns = HEADS[self.type].text_counts, self.text_columns
        if not _are_names(columns) or len(columns) not in counts:
            wanted = " or ".join(map(str, counts))
            raise ConfigurationError(
                f"`text_columns` of a {self.type} task must be a list of {wanted} column name(s); found {columns!r}."
            )

    def _check_choices(self) -> None:
        sides: dict[str, Any] = dict(self.text_columns) if isinstance(self.text_columns, Mapping) else {}
        if isinstance(sides.get("prompt"), str):
            sides["prompt"] = [sides["prompt"]]
        ok = set(sides) == {"prompt", "choices"} and all(_are_names(columns) for columns in sides.values())
        if not ok or len(sides["choices"]) < 2:
            raise ConfigurationError(
                f"`text_columns` of a {self.type} task must be {{prompt: [column, ...], choices: [column, column, "
                f"...]}} with two choices or more; found {self.text_columns!r}."
            )
        self.text_columns = sides

    def _check_metrics(self) -> None:
        if self.metrics is None:
            self.metrics = [HEADS[self.type].default_metric]
        if isinstance(self.metrics, str):
            self.metrics = [self.metrics]
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ConfigurationError(f"`metrics` must name at least one metric, each once; found {self.metrics!r}.")

    def _check_label_column(self) -> None:
        if isinstance(self.label_column, list) and not HEADS[self.type].takes_label_columns:
            fitting = " or ".join(name for name, head in HEADS.items() if head.takes_label_columns)
            raise ConfigurationError(
                f"`label_column` must be one column in a {self.type} task; found {self.label_column!r}. Several 0/1 "
                f"columns are type {fitting}."
            )
        if not _are_names(self.target_columns):
            raise ConfigurationError(f"`label_column` must be the name of a column; found {self.label_column!r}.")

    def _check_label_names(self) -> None:
        if not isinstance(self.label_names, list | tuple):
            raise ConfigurationError(f"`label_names` must be a list of names; found {self.label_names!r}.")
        self.label_names = [str(label) for label in self.label_names]
        if not self.has_label_names:
            raise ConfigurationError(
                f"A {self.type} task has no `label_names`; found {self.label_names!r}. Remove the key."
            )
        if len(set(self.label_names)) < len(self.label_names):
            (twice, count), *_ = Counter(self.label_names).most_common(1)
            raise ConfigurationError(
                f"`label_names` must differ from each other; found {truncated_repr(twice)} {count} times. Name it once."
            )
        if len(self.label_names) < HEADS[self.type].min_labels:
            raise ConfigurationError(
                f"A {self.type} task needs two classes or more; found {self.label_names!r}. Remove the task, or give "
                "it data in which it can be wrong."
            )
        if isinstance(self.label_column, list) and len(self.label_column) != len(self.label_names):
            raise ConfigurationError(
                f"`label_names` must name each of the columns {self.label_column!r}; found {self.label_names!r}. "
                "Without the key, the labels have the names of their columns."
            )

    def _check_doc_stride(self) -> None:
        if not HEADS[self.type].has_windows or not isinstance(self.doc_stride, int) or self.doc_stride < 0:
            fitting = " or ".join(name for name, head in HEADS.items() if head.has_windows)
            raise ConfigurationError(
                f"`doc_stride` must be a whole number of at least 0, and only {fitting} has one; found "
                f"{self.doc_stride!r} in a {self.type} task."
            )

    @property
    def input_columns(self) -> list[str]:
        """All columns of text."""
        if isinstance(self.text_columns, Mapping):
            return [*self.text_columns["prompt"], *self.text_columns["choices"]]
        return list(self.text_columns)

    @property
    def target_columns(self) -> list[str]:
        """All columns of labels."""
        return list(self.label_column) if isinstance(self.label_column, list) else [self.label_column]

    @property
    def monitored(self) -> str:
        """The metric that convergence is decided on."""
        assert self.metrics is not None
        return self.metrics[0]

    @property
    def has_label_names(self) -> bool:
        """Whether each output of the head has a name: that of a class or a label."""
        return HEADS[self.type].num_outputs is None

    @property
    def num_labels(self) -> int:
        """The number of outputs of the head: one per label name, or a number fixed by the type.

        Raises:
            ConfigurationError: The label names are not known yet; see `resolve`.
        """
        outputs = HEADS[self.type].num_outputs
        if outputs is not None:
            return outputs
        if self.label_names is None:
            raise ConfigurationError(
                f"The labels of a {self.type} task are not known yet. Give `label_names`, or call "
                "`task.resolve(train_dataset)`."
            )
        return len(self.label_names)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> TaskConfig:
        """Return the task of a preset, such as ``glue/mrpc``.

        Args:
            name: A name in `hf_async_mtl.tasks.presets.PRESETS`.
            **overrides: Fields that replace the preset's own.

        Examples:
            >>> TaskConfig.from_preset("glue/rte").label_names
            ['entailment', 'not_entailment']
        """
        try:
            from hf_async_mtl.tasks.presets import PRESETS
        except ImportError as error:
            raise ConfigurationError(_NOT_INSTALLED) from error
        if name not in PRESETS:
            raise ConfigurationError(f"`preset` must be one of {', '.join(sorted(PRESETS))}; found {name!r}.")
        fields = {key: value for key, value in PRESETS[name].items() if key != "data"}
        return cls(**copy.deepcopy({**fields, **overrides}))

    def resolve(self, dataset: Any) -> TaskConfig:
        """Return the task with what its training split tells: the label names, or the targets' mean and deviation.

        Args:
            dataset: The raw training split, a `datasets.Dataset`. Fields that are set already are kept.

        Returns:
            A new task.

        Raises:
            ConfigurationError: A label is missing or no number, all targets are the same, or there is one class only.
        """
        try:
            from hf_async_mtl.tasks.registry import TASK_TYPES
        except ImportError as error:
            raise ConfigurationError(_NOT_INSTALLED) from error
        return TASK_TYPES[self.type].resolve(self, dataset)

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set, for ``config.json``."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


def _task_from(task: TaskConfig | Mapping[str, Any]) -> TaskConfig:
    """Return a task as it stands in ``config.json``, which version 0.1 wrote with other names."""
    if isinstance(task, TaskConfig):
        return task
    return TaskConfig(**{RENAMED.get(key, key): value for key, value in task.items()})


def _are_names(columns: Any) -> bool:
    return isinstance(columns, list) and bool(columns) and all(isinstance(name, str) and name for name in columns)


def _check_max_length(value: Any) -> None:
    if not isinstance(value, int) or value < 8:
        raise ConfigurationError(f"`max_length` must be a whole number of at least 8; found {value!r}.")


def check_task_names(metrics: Mapping[str, Iterable[str]]) -> None:
    """Check the names of the tasks of a bundle against each other and against all that has a name already.

    Args:
        metrics: For every task (and every further evaluation set of one) the names of its metrics.

    Raises:
        ConfigurationError: A name is no identifier, is reserved, or two tasks would log under one key.
    """
    if not metrics:
        raise ConfigurationError("A bundle needs at least one task; found none. Add one under `tasks`.")
    modules = nn.ModuleDict()
    owners: dict[str, str] = {}
    for name, metric_names in metrics.items():
        if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
            raise ConfigurationError(
                "A task's name must begin with a lower-case letter and go on with lower-case letters, digits and "
                f"underscores; found {name!r}."
            )
        if name in _RESERVED or hasattr(modules, name):
            raise ConfigurationError(f"The task name {name!r} is reserved. Choose another, such as {name + '_task'!r}.")
        for key in (f"{name}_{metric}" for metric in (*metric_names, *_SPEED_KEYS)):
            if key in owners:
                raise ConfigurationError(
                    f"The tasks {owners[key]!r} and {name!r} would both log {key!r}. Rename one of them."
                )
            owners[key] = name


class MultiTaskConfig(PreTrainedConfig):
    """The configuration of a `MultiTaskModel`.

    Args:
        encoder_config: The encoder's configuration, or its dictionary with a ``model_type``.
        tasks: Name -> `TaskConfig` or its dictionary.
        pooling: What a sequence head reads of a segment's states: ``cls`` (the first), ``mean`` or ``max``.
        packing: ``auto`` packs where a probe shows that the encoder can; ``off`` never does.
        max_length: The longest sequence, in tokens, where a task does not say.
        task_order: The names of the tasks in the order of their ids; found from ``tasks``. It is a field of its own
            because ``config.json`` is written with sorted keys.
        lora: The low-rank layers beside the encoder's; see `hf_async_mtl.building.lora.add_lora`.
    """

    model_type = "hf_async_mtl"
    sub_configs = {"encoder_config": AutoConfig}

    encoder_config: Any = None
    tasks: Any = None
    pooling: str = "cls"
    packing: str = "auto"
    max_length: int = 128
    task_order: list[str] | None = None
    lora: dict[str, Any] | None = None

    def __post_init__(self, **kwargs: Any) -> None:
        if isinstance(self.encoder_config, Mapping):
            settings = dict(self.encoder_config)
            self.encoder_config = AutoConfig.for_model(settings.pop("model_type"), **settings)
        tasks = {name: _task_from(task).to_dict() for name, task in (self.tasks or {}).items()}
        if self.task_order is None:
            self.task_order = list(tasks)
        if sorted(self.task_order) != sorted(tasks):
            raise ConfigurationError(
                f"`task_order` must name each of the tasks {', '.join(tasks)} once; found {self.task_order!r}. Without "
                "it, the order is that of `tasks`."
            )
        self.tasks = {name: tasks[name] for name in self.task_order}
        if self.tasks:
            check_task_names({name: task["metrics"] for name, task in self.tasks.items()})
        if self.pooling not in POOLINGS:
            raise ConfigurationError(f"`pooling` must be one of {', '.join(POOLINGS)}; found {self.pooling!r}.")
        if self.packing not in PACKINGS:
            raise ConfigurationError(f"`packing` must be one of {', '.join(PACKINGS)}; found {self.packing!r}.")
        _check_max_length(self.max_length)
        # Keys that version 0.1 wrote.
        kwargs.pop("lora_base", None)
        if kwargs.pop("lora_only", False):
            raise ConfigurationError(
                "A checkpoint must hold the weights of its encoder; this one was saved by version 0.1 with "
                "`--adapter-only`. Push the run again, with its weights merged."
            )
        super().__post_init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """The configuration that has the vocabulary: the encoder's. Upstream's resizing of embeddings asks for it."""
        return self if self.encoder_config is None else self.encoder_config

    @property
    def task_configs(self) -> dict[str, TaskConfig]:
        """Name -> `TaskConfig`, in the order of the task ids."""
        return {name: TaskConfig(**task) for name, task in self.tasks.items()}
