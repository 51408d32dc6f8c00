"""What a multi-task model is: its encoder's configuration and its tasks, as they stand in ``config.json``."""

from __future__ import annotations

import array
import copy
import dataclasses
import re
import statistics
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from torch import nn
from transformers import AutoConfig, PreTrainedConfig

from .heads import HEADS
from .labels import WAY_OUT, LabelEncoder, LabelError, check_number, find_label_names, shown
from .presets import PRESETS

try:
    from hf_async_mtl.validation import ConfigurationError
except ImportError:  # The code was loaded from the Hub, and the package is not installed.

    class ConfigurationError(ValueError):  # type: ignore[no-redef]
        """The user's input is wrong. The message gives the requirement, the value found and the way out."""


__all__ = [
    "DEFAULT_METRICS",
    "RENAMED",
    "ConfigurationError",
    "MultiTaskConfig",
    "TaskConfig",
    "check_task_names",
    "distinct",
]

DEFAULT_METRICS = {name: head.default_metric for name, head in HEADS.items()}
"""The task types, each with the metric that is monitored unless the task names others."""

RENAMED = {"text": "text_columns", "label": "label_column", "labels": "label_names", "stride": "doc_stride"}
"""Fields of `TaskConfig` in version 0.1, each with its name today."""

POOLINGS = ("cls", "mean", "max")
PACKINGS = ("auto", "off")
_CLASS_TYPES = ("classification", "multilabel", "token_classification")
# `eval_average` is ours; the others would make keys such as `train_loss` or `eval_loss`, which are the Trainer's own.
_RESERVED = frozenset({"average", "encoder", "eval", "test", "train", "total", "loss", "all"})
_SPEED_KEYS = ("loss", "runtime", "samples_per_second", "steps_per_second", "model_preparation_time")


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
        metrics: Names of metrics; the first is monitored. Default: the one that `DEFAULT_METRICS` names.
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
        if self.type not in DEFAULT_METRICS:
            raise ConfigurationError(f"`type` must be one of {', '.join(DEFAULT_METRICS)}; found {self.type!r}.")
        if isinstance(self.text_columns, str):
            self.text_columns = [self.text_columns]
        self._check_text()
        if self.metrics is None:
            self.metrics = [DEFAULT_METRICS[self.type]]
        if isinstance(self.metrics, str):
            self.metrics = [self.metrics]
        if not self.metrics or len(set(self.metrics)) < len(self.metrics):
            raise ConfigurationError(f"`metrics` must name at least one metric, each once; found {self.metrics!r}.")
        self._check_label()
        if self.label_names is not None:
            if not isinstance(self.label_names, list | tuple):
                raise ConfigurationError(f"`label_names` must be a list of names; found {self.label_names!r}.")
            self.label_names = [str(label) for label in self.label_names]
            if self.type not in _CLASS_TYPES:
                raise ConfigurationError(
                    f"A {self.type} task has no `label_names`; found {self.label_names!r}. Remove the key."
                )
            if len(set(self.label_names)) < len(self.label_names):
                (twice, count), *_ = Counter(self.label_names).most_common(1)
                raise ConfigurationError(
                    f"`label_names` must differ from each other; found {shown(twice)} {count} times. Name it once."
                )
            self._check_number_of_labels()
            if isinstance(self.label_column, list) and len(self.label_column) != len(self.label_names):
                raise ConfigurationError(
                    f"`label_names` must name each of the columns {self.label_column!r}; found {self.label_names!r}. "
                    "Without the key, "
                    "the labels have the names of their columns."
                )
        if self.max_length is not None:
            _check_max_length(self.max_length)
        if self.doc_stride is not None and (
            self.type != "question_answering" or not isinstance(self.doc_stride, int) or self.doc_stride < 0
        ):
            raise ConfigurationError(
                "`doc_stride` must be a whole number of at least 0, and only question_answering has one; found "
                f"{self.doc_stride!r} in a {self.type} task."
            )
        if self.target_std is not None and not self.target_std > 0:
            raise ConfigurationError(
                f"`target_std` must be greater than 0; found {self.target_std!r}. Leave it out: "
                "`task.resolve(train_dataset)` finds it."
            )

    def _check_label(self) -> None:
        if isinstance(self.label_column, list) and self.type != "multilabel":
            raise ConfigurationError(
                f"`label_column` must be one column in a {self.type} task; found {self.label_column!r}. Several 0/1 "
                "columns are "
                "type multilabel."
            )
        if not _are_names(self.target_columns):
            raise ConfigurationError(f"`label_column` must be the name of a column; found {self.label_column!r}.")

    def _check_text(self) -> None:
        if self.type == "multiple_choice":
            sides: dict[str, Any] = dict(self.text_columns) if isinstance(self.text_columns, Mapping) else {}
            if isinstance(sides.get("prompt"), str):
                sides["prompt"] = [sides["prompt"]]
            ok = set(sides) == {"prompt", "choices"} and all(_are_names(columns) for columns in sides.values())
            if ok and len(sides["choices"]) > 1:
                self.text_columns = sides
            else:
                raise ConfigurationError(
                    "`text_columns` of a multiple_choice task must be {prompt: [column, ...], choices: [column, "
                    "column, ...]} "
                    f"with two choices or more; found {self.text_columns!r}."
                )
            return
        counts = {"token_classification": (1,), "question_answering": (2,)}.get(self.type, (1, 2))
        columns = self.text_columns
        if not _are_names(columns) or len(columns) not in counts:
            wanted = " or ".join(map(str, counts))
            raise ConfigurationError(
                f"`text_columns` of a {self.type} task must be a list of {wanted} column name(s); found {columns!r}."
            )

    def _check_number_of_labels(self) -> None:
        if self.label_names is not None and len(self.label_names) < (1 if self.type == "multilabel" else 2):
            raise ConfigurationError(
                f"A {self.type} task needs two classes or more; found {self.label_names!r}. Remove the task, or give "
                "it "
                "data in which it can be wrong."
            )

    @property
    def input_columns(self) -> list[str]:
        """All columns that hold text."""
        if isinstance(self.text_columns, Mapping):
            return [*self.text_columns["prompt"], *self.text_columns["choices"]]
        return list(self.text_columns)

    @property
    def target_columns(self) -> list[str]:
        """All columns that hold labels."""
        return list(self.label_column) if isinstance(self.label_column, list) else [self.label_column]

    @property
    def monitored(self) -> str:
        """The name of the metric that convergence is decided on."""
        assert self.metrics is not None
        return self.metrics[0]

    @property
    def num_labels(self) -> int:
        """The number of logits: classes, or 1 where a head gives a single score.

        Raises:
            ConfigurationError: The classes are not known yet; see `resolve`.
        """
        if self.type not in _CLASS_TYPES:
            return 2 if self.type == "question_answering" else 1
        if self.label_names is None:
            raise ConfigurationError(
                f"The labels of a {self.type} task are not known yet. Give `label_names`, or call "
                "`task.resolve(train_dataset)`."
            )
        return len(self.label_names)

    @classmethod
    def from_preset(cls, name: str, **overrides: Any) -> TaskConfig:
        """Make the task that a preset names, such as ``glue/mrpc``.

        Args:
            name: A name in `hf_async_mtl.modeling.presets.PRESETS`.
            **overrides: Fields that replace the preset's own.

        Examples:
            >>> TaskConfig.from_preset("glue/rte").label_names
            ['entailment', 'not_entailment']
        """
        if name not in PRESETS:
            raise ConfigurationError(f"`preset` must be one of {', '.join(sorted(PRESETS))}; found {name!r}.")
        fields = {key: value for key, value in PRESETS[name].items() if key != "data"}
        return cls(**copy.deepcopy({**fields, **overrides}))

    def resolve(self, dataset: Any) -> TaskConfig:
        """Find what the training split knows: the labels and their number, or the targets' mean and deviation.

        Args:
            dataset: The raw training split, a `datasets.Dataset`. What is known already is kept.

        Returns:
            A new task.

        Raises:
            ConfigurationError: A label is missing or no number, all targets are the same, or there is one class only.
        """
        if self.type in _CLASS_TYPES and self.label_names is None:
            labels = list(self.label_column) if isinstance(self.label_column, list) else self._find_labels(dataset)
            resolved = dataclasses.replace(self, label_names=labels)
            resolved._check_number_of_labels()
            return resolved
        if self.type == "regression" and (self.target_mean is None or self.target_std is None):
            assert isinstance(self.label_column, str)
            # Eight bytes a row: a list of numbers takes four times as much.
            targets = array.array("d")
            try:
                targets.extend(check_number(value) for value in dataset[self.label_column])
            except LabelError as error:
                raise ConfigurationError(
                    f"Column {self.label_column!r}, row {len(targets)}: {error} {WAY_OUT}"
                ) from None
            if not targets or min(targets) == max(targets):
                raise ConfigurationError(
                    f"A regression task needs targets that differ; column {self.label_column!r} has {len(targets)} "
                    "rows and "
                    f"no value but {list(targets[:1])}. Remove the task, or give it other data."
                )
            mean = statistics.fmean(targets) if self.target_mean is None else self.target_mean
            std = statistics.pstdev(targets) if self.target_std is None else self.target_std
            return dataclasses.replace(self, target_mean=mean, target_std=std)
        return self

    def _find_labels(self, dataset: Any) -> list[str]:
        assert isinstance(self.label_column, str)
        names = source_label_names(dataset, self.label_column)
        if names is not None:
            return names
        try:
            return find_label_names(self._labels_of(dataset))
        except LabelError as error:
            row = self._first_bad_label(dataset)
            if row is None:
                raise ConfigurationError(f"Column {self.label_column!r}: {error} Write all in one way.") from None
            raise ConfigurationError(f"Column {self.label_column!r}, row {row}: {error} {WAY_OUT}") from None

    def _first_bad_label(self, dataset: Any) -> int | None:
        """The first row with a label that is none; None where only all of them together are at fault."""
        assert isinstance(self.label_column, str)
        for row, value in enumerate(dataset[self.label_column]):
            try:
                find_label_names([value] if self.type == "classification" else value or ())
            except LabelError:
                return row
        return None

    def _labels_of(self, dataset: Any) -> Iterator[Any]:
        """The class labels of a split, each at least once."""
        assert isinstance(self.label_column, str)
        if self.type == "classification":
            yield from distinct(dataset, self.label_column)
            return
        for row, labels in enumerate(dataset[self.label_column]):
            if labels is not None and not isinstance(labels, list):
                raise ConfigurationError(
                    f"Column {self.label_column!r}, row {row}: a row of a {self.type} task must have a list of "
                    "labels; found "
                    f"{shown(labels)}. CSV files have no lists: use JSON lines or Parquet."
                )
            yield from labels or ()

    def label_encoder(self, dataset: Any) -> LabelEncoder:
        """The encoder of this task's class labels, as they are written in ``dataset``."""
        assert self.label_names is not None
        assert isinstance(self.label_column, str)
        return LabelEncoder(self.label_names, source_label_names(dataset, self.label_column))

    def to_dict(self) -> dict[str, Any]:
        """The fields that are set, for ``config.json``."""
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


def distinct(dataset: Any, column: str) -> Iterable[Any]:
    """The values of a column, each at least once.

    In Arrow, where that can be: as Python objects, those of millions of rows take a minute.
    """
    is_plain = type(dataset.features[column]).__name__ == "Value"
    return dataset.select_columns([column]).unique(column) if is_plain else dataset[column]


def source_label_names(dataset: Any, column: str) -> list[str] | None:
    """The names of a column of class labels, where the dataset's own schema has them."""
    feature = dataset.features[column]
    feature = getattr(feature, "feature", feature)
    names = getattr(feature, "names", None)
    return list(names) if names else None


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
        lora: The low-rank layers beside the encoder's; see `hf_async_mtl.modeling.adapters.add_lora`.
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
