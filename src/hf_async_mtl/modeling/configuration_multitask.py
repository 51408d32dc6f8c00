"""What a multi-task model is: its encoder's configuration and its tasks, as they stand in ``config.json``."""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Mapping
from typing import Any

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
    "check_max_length",
]

RENAMED = {"text": "text_columns", "label": "label_column", "labels": "label_names", "stride": "doc_stride"}
"""Fields of `TaskConfig` in version 0.1, each with its name today."""

POOLINGS = ("cls", "mean", "max")
PACKINGS = ("auto", "off")
_NOT_INSTALLED = "Presets, and labels found in data, need the package: `pip install hf_async_mtl`."


def _package_checks() -> Any:
    """Return `hf_async_mtl.tasks.checks`, or None if the code was loaded from the Hub and the package is not installed.

    A configuration that was saved has been checked before.
    """
    try:
        from hf_async_mtl.tasks import checks
    except ModuleNotFoundError:
        return None
    return checks


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
        metrics: Names of metrics; the first is monitored. Default: the ``default_metric`` of its type.
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
        checks = _package_checks()
        if checks is not None:
            checks.check_task(self)

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
        except ModuleNotFoundError as error:
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
        except ModuleNotFoundError as error:
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


def check_max_length(value: Any) -> None:
    """Raise a `ConfigurationError` unless a maximum length can be used."""
    if not isinstance(value, int) or value < 8:
        raise ConfigurationError(f"`max_length` must be a whole number of at least 8; found {value!r}.")


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
        checks = _package_checks()
        if self.tasks and checks is not None:
            checks.check_task_names({name: task["metrics"] for name, task in self.tasks.items()})
        if self.pooling not in POOLINGS:
            raise ConfigurationError(f"`pooling` must be one of {', '.join(POOLINGS)}; found {self.pooling!r}.")
        if self.packing not in PACKINGS:
            raise ConfigurationError(f"`packing` must be one of {', '.join(PACKINGS)}; found {self.packing!r}.")
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
        """The configuration that has the vocabulary: the encoder's. Upstream's resizing of embeddings asks for it."""
        return self if self.encoder_config is None else self.encoder_config

    @property
    def task_configs(self) -> dict[str, TaskConfig]:
        """Name -> `TaskConfig`, in the order of the task ids."""
        return {name: TaskConfig(**task) for name, task in self.tasks.items()}
