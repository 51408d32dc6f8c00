"""Configuration of a multi-task model: its encoder's configuration and its tasks, as in ``config.json``."""

from __future__ import annotations

import copy
import dataclasses
import importlib
import re
from collections.abc import Mapping
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from .heads import HEADS

try:
    from hf_async_mtl.validation import RENAMED as RENAMED
    from hf_async_mtl.validation import ConfigurationError as ConfigurationError
except ImportError:  # The code was loaded from the Hub, and the package is not installed.
    # What is saved with this code has today's names.
    RENAMED = {}

    class ConfigurationError(ValueError):  # type: ignore[no-redef]
        """The user's input is wrong. The message gives the requirement, the value found and the way out."""


POOLINGS = ("cls", "mean", "max")
PACKINGS = ("auto", "off")
# `eval_average` is ours; the others would make keys such as `train_loss` or `eval_loss`, which are the Trainer's own.
_RESERVED = frozenset({"average", "encoder", "eval", "test", "train", "total", "loss", "all"})


def from_package(module: str) -> Any:
    """Import a module of the package. It is needed for training only, and does not travel with a model."""
    try:
        return importlib.import_module(f"hf_async_mtl.{module}")
    except ModuleNotFoundError as error:
        if error.name != "hf_async_mtl":
            raise
        raise ImportError("This needs the package hf_async_mtl. Run `pip install hf-async-mtl`.") from error


@dataclasses.dataclass
class TaskConfig:
    """One task: what is needed to use its head, and nothing about its training.

    Args:
        type: One of ``classification``, ``multilabel``, ``regression``, ``token_classification``, ``multiple_choice``,
            ``question_answering``.
        text_columns: One column, or two for a pair; the column of word lists for ``token_classification``;
            ``[question, context]``; ``{"prompt": [...], "choices": [...]}``.
        label_column: The column of labels; several 0/1 columns for ``multilabel``; ``answers`` for
            ``question_answering``.
        label_names: Names of the classes, in the order of the logits. Default: found by `resolve`.
        positive_label: Of two classes, the one that ``f1``, ``precision``, ``recall`` and ``average_precision`` are
            those of. Default: the one that the names say (yes, true, 1, positive, or spam beside not_spam); otherwise
            `resolve` takes the rarer one.
        metrics: Names of metrics; the first is monitored. Default: the ``default_metric`` of the type.
        max_length: Maximum length of a sequence in tokens. Default: that of the model.
        doc_stride: Number of tokens that two windows of a long text share. Without it a long text is cut to its first
            ``max_length`` tokens; a question-answering context is always read in windows.
        doc_pooling: How the windows' logits become those of a text: ``mean`` (the default) or ``max``.
        target_mean: Mean of the training targets of a regression task; found by `resolve`.
        target_std: Their standard deviation; found by `resolve`. Losses are those of standardized targets.

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
    doc_pooling: str | None = None
    target_mean: float | None = None
    target_std: float | None = None
    positive_label: str | None = None

    def __new__(cls, *args: Any, **fields: Any) -> TaskConfig:
        for key in fields:
            if RENAMED.get(key) in cls.__dataclass_fields__:
                raise ConfigurationError(f"`{key}` is now `{RENAMED[key]}`. Rename the key.")
        return super().__new__(cls)

    def __post_init__(self) -> None:
        if self.type not in HEADS:
            raise ConfigurationError(f"`type` must be one of {', '.join(HEADS)}; found {self.type!r}.")
        try:
            from hf_async_mtl.tasks.checks import check_task
        except ModuleNotFoundError:  # The package is not installed. The configuration was checked when it was saved.
            return
        check_task(self)

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
        """The number of outputs of the head: one per label name, or a number fixed by the type."""
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
        """Return the task of a preset.

        Args:
            name: A name in `hf_async_mtl.tasks.presets.PRESETS`, such as ``glue/mrpc``.
            **overrides: Fields that replace those of the preset.

        Examples:
            >>> TaskConfig.from_preset("glue/rte").label_names
            ['entailment', 'not_entailment']
        """
        presets = from_package("tasks.presets").PRESETS
        if name not in presets:
            raise ConfigurationError(f"`preset` must be one of {', '.join(sorted(presets))}; found {name!r}.")
        fields = {key: value for key, value in presets[name].items() if key != "data"}
        return cls(**copy.deepcopy({**fields, **overrides}))

    def resolve(self, dataset: Any) -> TaskConfig:
        """Return a task with the label names, or the mean and deviation of the targets, of its training split.

        Args:
            dataset: The raw training split, a `datasets.Dataset` of any format, or a `datasets.DatasetDict` with a
                split ``train``. Rows whose label is null do not belong to the task. Fields that are set are kept.

        Raises:
            ConfigurationError: The labels have no column, a label is not a number, all targets are equal, or there is
                only one class.
        """
        rows = from_package("tasks.rows").training_rows(dataset, self)
        resolved: TaskConfig = from_package("tasks.registry").TASK_TYPES[self.type].resolve(self, rows)
        return resolved

    def to_dict(self) -> dict[str, Any]:
        """Return the fields that are set, for ``config.json``."""
        return {key: value for key, value in dataclasses.asdict(self).items() if value is not None}


def _task_from(task: TaskConfig | Mapping[str, Any]) -> TaskConfig:
    """Return a task from its entry in ``config.json``, in which version 0.1 used other names."""
    if isinstance(task, TaskConfig):
        return task
    return TaskConfig(**{RENAMED.get(key, key): value for key, value in task.items()})


def check_max_length(value: Any) -> None:
    """Raise a `ConfigurationError` unless a maximum length can be used."""
    if not isinstance(value, int) or value < 8:
        raise ConfigurationError(f"`max_length` must be a whole number of at least 8; found {value!r}.")


def check_task_name(name: Any) -> None:
    """Raise a `ConfigurationError` if a name is not an identifier, or is reserved."""
    if not isinstance(name, str) or not re.fullmatch(r"[a-z][a-z0-9_]*", name):
        raise ConfigurationError(
            "A task's name must begin with a lower-case letter and go on with lower-case letters, digits and "
            f"underscores; found {name!r}."
        )
    if name in _RESERVED or hasattr(nn.ModuleDict(), name):
        raise ConfigurationError(f"The task name {name!r} is reserved. Choose another, such as {name + '_task'!r}.")


class MultiTaskConfig(PreTrainedConfig):
    """Configuration of a `MultiTaskModel`.

    Args:
        encoder_config: Configuration of the encoder, or its dictionary with a ``model_type``.
        tasks: Name -> `TaskConfig` or its dictionary.
        pooling: What a sequence head reads of the token states: ``cls`` (the first), ``mean`` or ``max``.
        packing: ``auto`` packs if a probe shows that the encoder can; ``off`` never does.
        max_length: Maximum length of a sequence in tokens, for tasks without their own.
        task_order: Names of the tasks in the order of their ids; default: that of ``tasks``. It is a field of its own
            because ``config.json`` is written with sorted keys.
        lora: Low-rank layers of the encoder: fields of `peft.LoraConfig`.
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
                f"`task_order` must name each of {', '.join(tasks)} once; found {self.task_order!r}. Leave it out."
            )
        self.tasks = {name: tasks[name] for name in self.task_order}
        for name in self.tasks:
            check_task_name(name)
        for key, values in (("pooling", POOLINGS), ("packing", PACKINGS)):
            if getattr(self, key) not in values:
                raise ConfigurationError(f"`{key}` must be one of {', '.join(values)}; found {getattr(self, key)!r}.")
        check_max_length(self.max_length)
        # Keys that version 0.1 wrote.
        kwargs.pop("lora_base", None)
        if kwargs.pop("lora_only", False):
            raise ConfigurationError(
                "A checkpoint must hold the weights of its encoder; this one was saved by version 0.1 with "
                "`--adapter-only`. Push the run again, with its weights merged."
            )
        super().__post_init__(**kwargs)

    def get_text_config(self, decoder: bool | None = None, encoder: bool | None = None) -> Any:
        """Return the encoder's configuration, whose vocabulary upstream resizes."""
        return self if self.encoder_config is None else self.encoder_config

    @property
    def task_configs(self) -> dict[str, TaskConfig]:
        """Name -> `TaskConfig`, in the order of the task ids."""
        return {name: TaskConfig(**task) for name, task in self.tasks.items()}
