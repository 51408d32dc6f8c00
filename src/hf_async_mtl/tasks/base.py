"""The base class of the task types: all of a type but its head, such as its data, predictions and names."""

from __future__ import annotations

import dataclasses
import re
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import pyarrow as pa

from ..modeling.configuration_multitask import TaskConfig
from ..modeling.losses import IGNORE
from ..utils import truncated_repr
from ..validation import ConfigurationError
from .labels import HINT, check_form, count_classes, find_column_labels, ignored_labels, refuse_unknown
from .pretruncation import shorten
from .windows import Windows, length_error, tokenize_windows

if TYPE_CHECKING:
    from datasets import Dataset
    from torch import Tensor

    from .loss import LossConfig

Columns = Mapping[str, Sequence[Any]]
"""Column name -> the values of some rows."""
Target = Callable[[Mapping[str, Any], Mapping[str, Any]], Any]
"""(raw row, tokenized row) -> the row's target, or a dictionary of ``labels`` and the columns that the metrics read.

Raises a `LabelError` if the label cannot be used.
"""


class TaskType(ABC):
    """One type of task. The head of the same name is in `hf_async_mtl.modeling.heads.HEADS`.

    The methods defined here fit a task that reads one text or a pair of texts, and that has one integer as target and
    one row of logits per example. A subclass overrides what differs. An instance has no state.
    """

    hub_name: ClassVar[str]
    """The Hub's name of the type: its pipeline tag."""
    problem_type: ClassVar[str | None] = None
    """``problem_type`` of a stock model for sequence classification; None if no stock model has such a head."""
    text_counts: ClassVar[tuple[int, ...]] = (1, 2)
    """Numbers of text columns that a task may have."""
    min_labels: ClassVar[int] = 2
    """Minimum number of label names, if the type has some."""
    takes_label_columns: ClassVar[bool] = False
    """Whether the labels may be in several columns of 0 and 1."""
    has_windows: ClassVar[bool] = False
    """Whether a long text can be read in windows."""
    metrics: ClassVar[tuple[str, ...]]
    """Built-in metrics that fit the type."""
    default_metric: ClassVar[str]
    """Metric of a task that names none."""
    metric_aliases: ClassVar[Mapping[str, str]] = {}
    """Name of a metric of the type -> name of the built-in metric that computes it, if that is another one."""
    target_type: ClassVar[Any] = "int64"
    """Arrow type of a target; ``["int64"]`` is a list of integers."""
    prediction_fields: ClassVar[tuple[str, ...]]
    """Keys of `format_prediction`, which are the columns of a CSV file of predictions."""
    reads_words: ClassVar[bool] = False
    """Whether a text is a list of words."""
    has_label_lists: ClassVar[bool] = False
    """Whether the label of a row is a list of class labels."""
    has_positive_label: ClassVar[bool] = False
    """Whether one of two classes may be the positive one."""
    ignored: ClassVar[tuple[int, ...]] = (IGNORE,)
    """Labels that say "no label": no loss and no metric. A row without any other label is left out."""
    loss_options: ClassVar[tuple[str, ...]] = ()
    """The fields of `LossConfig` that the type has."""
    card_note: ClassVar[str | None] = None
    """A sentence about the type for the model card."""

    # Configuration

    def check_text_columns(self, task: TaskConfig) -> None:
        """Raise a `ConfigurationError` unless the task names its text columns; turn a single name into a list."""
        columns: Any = [task.text_columns] if isinstance(task.text_columns, str) else task.text_columns
        if not is_names(columns) or len(columns) not in self.text_counts:
            wanted = " or ".join(map(str, self.text_counts))
            raise ConfigurationError(
                f"`text_columns` of a {task.type} task must be a list of {wanted} column name(s); found {columns!r}."
            )
        task.text_columns = columns

    # Raw rows to tokens and targets

    def text_error(self, task: TaskConfig, column: str, text: Any, tokenizer: Any, max_length: int) -> str | None:
        """Return what is wrong with a value of a text column; None if it can be tokenized."""
        if self.reads_words:
            ok = isinstance(text, list) and len(text) > 0 and all(isinstance(word, str) for word in text)
        else:
            ok = isinstance(text, str)
        if ok and self.reads_windows(task) and column == task.input_columns[-1]:
            return length_error(text, tokenizer, max_length)
        wanted = "a list of words" if self.reads_words else "a string"
        return None if ok else f"the text must be {wanted}; found {truncated_repr(text)}. {HINT}"

    def reads_windows(self, task: TaskConfig) -> bool:
        """Return whether a long text of the task is read in windows."""
        return task.doc_stride is not None

    def truncated_texts(self, task: TaskConfig) -> str:
        """Return what a truncated row has, for the message "... have texts of more than 128 tokens"."""
        return "first texts of more than half of" if self.reads_windows(task) else "texts of more than"

    def tokenize(self, rows: Columns, task: TaskConfig, tokenizer: Any, max_length: int) -> dict[str, list[Any]]:
        """Tokenize some rows.

        Args:
            rows: Their text columns.
            task: The task.
            tokenizer: A fast tokenizer.
            max_length: Maximum length of a segment, in tokens.

        Returns:
            ``input_ids`` and, if the tokenizer returns them, ``token_type_ids``: one list per segment for each row;
            ``truncated``: whether a segment lost tokens; and the columns that `features` or `target_function` need.
        """
        if task.doc_stride is not None:
            columns = [list(rows[column]) for column in task.input_columns]
            return group_windows(tokenize_windows(columns, tokenizer, max_length, task.doc_stride))
        texts = [[shorten(text, tokenizer, max_length) for text in rows[column]] for column in task.input_columns]
        encoded = tokenizer(*texts, truncation=True, max_length=max_length)
        return group_segments(encoded, [[i] for i in range(len(texts[0]))])

    def features(self, with_labels: bool) -> dict[str, Any]:
        """Return the columns of an encoded row besides its tokens, with their Arrow types; see `target_type`."""
        return {"labels": self.target_type} if with_labels else {}

    @abstractmethod
    def target_function(self, task: TaskConfig, dataset: Dataset) -> Target:
        """Return the function that computes the target of a row.

        Args:
            task: The resolved task.
            dataset: Raw rows, whose schema may name integer labels.
        """

    # Labels

    def resolve(self, task: TaskConfig, dataset: Dataset) -> TaskConfig:
        """Return the task with what its raw training split tells, here the class names; see `TaskConfig.resolve`."""
        if not task.has_label_names or task.label_names is not None:
            return task
        (column,) = task.target_columns
        check_form(dataset, column, task.type, self.has_label_lists)
        names = find_column_labels(dataset, column, ignored_labels(task, self.ignored))
        return dataclasses.replace(task, label_names=names)

    def check_training_labels(self, task: TaskConfig, dataset: Dataset) -> None:
        """Raise a `ConfigurationError` if the labels of a raw training split leave nothing to learn."""
        return

    def loss_arguments(self, task: TaskConfig, loss: LossConfig, rows: Dataset) -> dict[str, Any]:
        """Return what the loss of the head takes while training; ``rows`` are the encoded training rows."""
        return {}

    def class_counts(self, task: TaskConfig, dataset: Dataset) -> tuple[Counter[Any], dict[Any, int]]:
        """Return `count_classes` of raw rows; nothing for a type, or a form of labels, without class labels."""
        if not task.has_label_names or not isinstance(task.label_column, str):
            return Counter(), {}
        return count_classes(task, dataset, self.ignored)

    def check_known(self, task: TaskConfig, dataset: Dataset) -> None:
        """Raise a `LabelError` if a raw training split has a label that is no class of the task."""
        if task.has_label_names and isinstance(task.label_column, str):
            refuse_unknown(task, dataset, self.ignored)

    def check_unlabeled(self, task: TaskConfig) -> None:
        """Raise a `ConfigurationError` if a task without labeled rows lacks what `resolve` would find in them."""
        if task.has_label_names and task.label_names is None:
            raise ConfigurationError(
                "Training rows without labels do not say what the labels are. Give `label_names`, in the order of the "
                "teacher."
            )

    @abstractmethod
    def placeholder(self, task: TaskConfig, row: Mapping[str, Any]) -> Any:
        """Return a valid label for a raw row that has none. No loss may be computed on it."""

    # Logits to predictions

    def distributions(self, logits: Tensor, targets: Sequence[Any]) -> Tensor | None:
        """Return the probabilities of the decisions that recorded logits stand for.

        Args:
            logits: ``[U, *logit_shape]`` of some examples.
            targets: Their encoded ``labels``.

        Returns:
            ``[n, C]``; None if the type has no distributions over the same number of outcomes.
        """
        return logits.softmax(-1)

    def logit_shape(self, task: TaskConfig) -> tuple[int, ...]:
        """Return the shape of the logits of one example, or of one token if the head reads tokens."""
        return (task.num_labels,)

    def predictions(self, task: TaskConfig, logits: Any, rows: Dataset) -> list[Any]:
        """Return the predictions as the metrics take them; by default class indices.

        Args:
            task: The resolved task.
            logits: ``[N, *logit_shape]``; ``[N, U, *logit_shape]`` for a head on tokens, padded behind the tokens of
                each example, or a list of ``[U, *logit_shape]``.
            rows: The encoded split, in the same order.
        """
        return np.asarray(logits).argmax(-1).tolist()

    def class_of_metric(self, task: TaskConfig, metric: str) -> str | None:
        """Return the name of the class that a metric is that of; None if it is one of all classes."""
        return None

    def metric_predictions(self, task: TaskConfig, logits: Any, rows: Dataset) -> list[Any]:
        """Return the `predictions` of an encoded split with labels, each in the form of its reference."""
        return self.predictions(task, logits, rows)

    def probabilities(self, task: TaskConfig, logits: Any) -> list[Any]:
        """Return the probabilities as the metrics that read them take them, by default ``[N, C]`` of the classes."""
        shifted = np.asarray(logits, np.float64)
        powers = np.exp(shifted - shifted.max(-1, keepdims=True))
        return (powers / powers.sum(-1, keepdims=True)).tolist()

    def references(self, task: TaskConfig, rows: Dataset) -> list[Any]:
        """Return the true values of an encoded split, in the format of `predictions`; None for a row without label."""
        return [None if self.ignored and target == IGNORE else target for target in rows["labels"]]

    def in_metric_order(self, task: TaskConfig, values: list[Any]) -> list[Any]:
        """Return predictions, references or probabilities with the classes in the order of the metrics."""
        return values

    def known_targets(self, task: TaskConfig, targets: Sequence[Any]) -> list[Any]:
        """Return encoded targets for the loss: -100 for labels that the head cannot predict; see `LabelEncoder`."""
        if not task.has_label_names:
            return list(targets)
        count = task.num_labels
        return [target if target < count else IGNORE for target in targets]

    def has_loss(self, task: TaskConfig, rows: Dataset) -> np.ndarray:
        """Return which examples of an encoded split have a label that the head can predict, ``[N]``."""
        if self.target_type != "int64":
            return np.ones(len(rows), dtype=bool)
        return np.asarray(self.known_targets(task, rows["labels"])) != IGNORE

    def label_array(self, task: TaskConfig, rows: Dataset, units: int) -> Any:
        """Return the targets of an encoded split as ``label_ids`` of an `EvalPrediction`, by default an array ``[N]``.

        Args:
            task: The resolved task.
            rows: The encoded split.
            units: Number of tokens of the longest example, to which targets of tokens are padded with -100.
        """
        return np.asarray(self.known_targets(task, rows["labels"]))

    def is_constant(self, predictions: Sequence[Any]) -> bool:
        """Return whether all predictions are the same."""
        return all(prediction == predictions[0] for prediction in predictions)

    @abstractmethod
    def format_prediction(
        self, task: TaskConfig, prediction: Any, logits: np.ndarray, encoded: Mapping[str, Any], row: Mapping[str, Any]
    ) -> dict[str, Any]:
        """Return a prediction as users read it, with the keys `prediction_fields`.

        Args:
            task: The resolved task.
            prediction: One of `predictions`.
            logits: Its logits, ``logit_shape`` or ``[U, *logit_shape]``.
            encoded: The encoded row.
            row: The raw row.
        """

    @abstractmethod
    def sample_predictions(self, task: TaskConfig) -> tuple[list[Any], list[Any]]:
        """Return some correct predictions and their references, on which a metric is tried out."""

    # Model card

    def tokenizer_call(self, task: TaskConfig) -> str:
        """Return the expression that computes a model's inputs from one row of a task."""
        texts = ", ".join(f'["{example_text(column)}"]' for column in task.input_columns)
        return tokenizer_call(texts)

    @abstractmethod
    def card_lines(self, task: TaskConfig) -> list[str]:
        """Return the lines of code that turn ``logits`` into predictions; ``{name}`` stands for the task's name."""

    def card_example(self, name: str, task: TaskConfig) -> list[str]:
        """Return the lines of code that run one task, given ``tokenizer``, ``model`` and ``torch``."""
        return [
            f"inputs = {self.tokenizer_call(task)}",
            "with torch.no_grad():",
            f'    logits = model(**inputs, tasks=["{name}"]).logits["{name}"]',
            *(line.replace("{name}", name) for line in self.card_lines(task)),
        ]


def group_segments(encoded: Any, groups: Sequence[Sequence[int]]) -> dict[str, list[Any]]:
    """Group the sequences of a fast tokenizer's output by row: a group has the indices of the row's sequences."""
    keys = [key for key in ("input_ids", "token_type_ids") if key in encoded]
    result: dict[str, list[Any]] = {key: [[encoded[key][i] for i in group] for group in groups] for key in keys}
    result["truncated"] = [any(encoded.encodings[i].overflowing for i in group) for group in groups]
    return result


def group_windows(windows: Windows) -> dict[str, list[Any]]:
    """Return `group_segments` of windows. Cutting a text into windows loses nothing."""
    return {**group_segments(windows.encoded, windows.rows), "truncated": windows.truncated}


def label_values(rows: Dataset) -> np.ndarray:
    """Return the labels of encoded rows in one dimension: those of tokens or of multilabel one row after another."""
    column = rows.select_columns("labels").with_format("arrow")[:].column(0).combine_chunks()
    return (column.flatten() if isinstance(column, pa.ListArray) else column).to_numpy(zero_copy_only=False)


def is_names(columns: Any) -> bool:
    """Return whether a value is a list of column names."""
    return isinstance(columns, list) and bool(columns) and all(isinstance(name, str) and name for name in columns)


def example_text(column: str) -> str:
    """Return a text that stands for the values of a column: its words, and dots."""
    return " ".join([*re.findall(r"\w+", column), "..."])


def tokenizer_call(texts: str) -> str:
    """Return the call of a tokenizer, given its first arguments as source code."""
    return f'tokenizer({texts}, return_tensors="pt", padding=True, truncation=True)'
