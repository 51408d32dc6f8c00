"""Predictions and references of one task -> named values, through `evaluate`.

The metrics in `METRICS` are `evaluate.Metric`s on scikit-learn, scipy and seqeval that need no network. Any other name
goes to `evaluate.load`. A new built-in metric is one class and one entry in `METRICS`.

The shape of predictions and references follows the task's type:

=====================  ===============================================================================
type                   predictions and references
=====================  ===============================================================================
`classification`       class indices, `[n]`
`multiple_choice`      indices of the choice, `[n]`
`multilabel`           0 or 1 for every label, `[n, labels]`
`regression`           numbers, `[n]`
`token_classification` one list of label names per example
`question_answering`   predictions: one text per question; references: the list of its gold answers
=====================  ===============================================================================
"""

import difflib
import functools
import math
import re
import string
import tempfile
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import evaluate
import numpy as np
from datasets import Features, Value
from scipy import stats
from seqeval import metrics as seqeval_metrics
from sklearn import metrics as sklearn_metrics

from hf_async_mtl.modeling.configuration_multitask import ConfigurationError, TaskConfig

__all__ = ["METRICS", "check_metric", "chunk_tag", "compute", "normalize_answer"]

_CLASS = Value("int64")
_NUMBER = Value("float64")
_TEXT = Value("string")
# task type -> what one prediction is, what one reference is
_INPUTS: dict[str, tuple[Any, Any]] = {
    "classification": (_CLASS, _CLASS),
    "multiple_choice": (_CLASS, _CLASS),
    "multilabel": ([_CLASS], [_CLASS]),
    "regression": (_NUMBER, _NUMBER),
    "token_classification": ([_TEXT], [_TEXT]),
    "question_answering": (_TEXT, [_TEXT]),
}


class _BuiltInMetric(evaluate.Metric):
    """A metric that needs no network; its `config_name` is the type of the task that it scores, at first `types[0]`.

    Subclasses say which `types` they score and write `score`, which gets plain lists.
    """

    types: ClassVar[tuple[str, ...]]
    greater_is_better: ClassVar[bool] = True

    @property
    def task_type(self) -> str:
        return self.types[0] if self.config_name == "default" else self.config_name

    def _info(self) -> evaluate.MetricInfo:
        if self.task_type not in self.types:
            raise ValueError(f"`config_name` must be one of {', '.join(self.types)}; found {self.task_type!r}.")
        prediction, reference = _INPUTS[self.task_type]
        features = Features({"predictions": prediction, "references": reference})
        return evaluate.MetricInfo(description=self.__doc__ or "", citation="", features=features)

    def _compute(self, predictions: list[Any], references: list[Any]) -> dict[str, float]:
        return {self.name: float(self.score(predictions, references))}

    def score(self, predictions: list[Any], references: list[Any]) -> float:
        raise NotImplementedError


class Accuracy(_BuiltInMetric):
    """Share of examples predicted right; multilabel: all labels right; token classification: share of tokens."""

    types = ("classification", "multiple_choice", "multilabel", "token_classification")

    def score(self, predictions: list[Any], references: list[Any]) -> float:
        if self.task_type == "token_classification":
            return seqeval_metrics.accuracy_score(references, predictions)
        return sklearn_metrics.accuracy_score(np.asarray(references), np.asarray(predictions))


def _f1_of_ones(predictions: Any, references: Any) -> float:
    return sklearn_metrics.f1_score(references, predictions, zero_division=0.0)


class F1(_BuiltInMetric):
    """F1 of the class with index 1, of two classes. 0 where that class is neither there nor predicted."""

    types = ("classification",)

    def score(self, predictions: list[int], references: list[int]) -> float:
        return _f1_of_ones(predictions, references)


class MacroF1(_BuiltInMetric):
    """Mean of the F1 of each class that is there or predicted (classification), or of each label (multilabel)."""

    types = ("classification", "multilabel")

    def score(self, predictions: list[Any], references: list[Any]) -> float:
        if self.task_type == "multilabel":
            columns = zip(np.transpose(predictions), np.transpose(references), strict=True)
            return float(np.mean([_f1_of_ones(*column) for column in columns]))
        return sklearn_metrics.f1_score(references, predictions, average="macro", zero_division=0.0)


class MicroF1(_BuiltInMetric):
    """F1 over all decisions counted together; of a classification task it equals the accuracy."""

    types = ("multilabel", "classification")

    def score(self, predictions: list[Any], references: list[Any]) -> float:
        if self.task_type == "multilabel":
            # Flat, because scikit-learn takes a task with one label for one with two classes.
            return _f1_of_ones(np.ravel(predictions), np.ravel(references))
        return sklearn_metrics.f1_score(references, predictions, average="micro", zero_division=0.0)


class MatthewsCorrelation(_BuiltInMetric):
    """Matthews correlation coefficient, -1 to 1. 0 where predictions or references are of one class only."""

    types = ("classification",)

    def score(self, predictions: list[int], references: list[int]) -> float:
        if len({*predictions, *references}) < 2:
            return 0.0  # scikit-learn's value, which it gives with a warning about shapes
        return sklearn_metrics.matthews_corrcoef(references, predictions)


def _correlation(coefficient: Callable[..., Any], predictions: list[float], references: list[float]) -> float:
    if len(predictions) < 2 or not np.isfinite([predictions, references]).all():
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return coefficient(predictions, references).statistic


class Pearson(_BuiltInMetric):
    """Pearson correlation coefficient, -1 to 1. NaN where predictions or references are constant or not finite."""

    types = ("regression",)

    def score(self, predictions: list[float], references: list[float]) -> float:
        return _correlation(stats.pearsonr, predictions, references)


class Spearman(_BuiltInMetric):
    """Spearman rank correlation, -1 to 1. NaN where predictions or references are constant or not finite."""

    types = ("regression",)

    def score(self, predictions: list[float], references: list[float]) -> float:
        return _correlation(stats.spearmanr, predictions, references)


class Mse(_BuiltInMetric):
    """Mean squared error, in squared units of the target. NaN where a number is not finite."""

    types = ("regression",)
    greater_is_better = False

    def score(self, predictions: list[float], references: list[float]) -> float:
        if not np.isfinite([predictions, references]).all():
            return math.nan
        return sklearn_metrics.mean_squared_error(references, predictions)


class Mae(_BuiltInMetric):
    """Mean absolute error, in units of the target. NaN where a number is not finite."""

    types = ("regression",)
    greater_is_better = False

    def score(self, predictions: list[float], references: list[float]) -> float:
        if not np.isfinite([predictions, references]).all():
            return math.nan
        return sklearn_metrics.mean_absolute_error(references, predictions)


def normalize_answer(text: str) -> str:
    """An answer as SQuAD compares it: lower case, no punctuation, no articles, single spaces.

    The order is that of the official evaluation script, version 1.1 (Rajpurkar et al., 2016, arXiv:1606.05250).

    >>> normalize_answer("The  U.S. Army, an army")
    'us army army'
    """
    text = "".join(character for character in text.lower() if character not in string.punctuation)
    return " ".join(re.sub(r"\b(a|an|the)\b", " ", text).split())


def _word_overlap_f1(prediction: str, answer: str) -> float:
    predicted, gold = normalize_answer(prediction).split(), normalize_answer(answer).split()
    shared = sum((Counter(predicted) & Counter(gold)).values())
    return 2 * shared / (len(predicted) + len(gold)) if shared else 0.0


def _mean_of_best(
    score: Callable[[str, str], float], predictions: Sequence[str], references: Sequence[Sequence[str]]
) -> float:
    for question, answers in enumerate(references):
        if not answers:
            raise ValueError(
                f"Every question needs a gold answer; question {question} of {len(references)} has none. Leave "
                "questions without an answer out of the data."
            )
    pairs = zip(predictions, references, strict=True)
    return float(np.mean([max(score(text, answer) for answer in answers) for text, answers in pairs]))


class ExactMatch(_BuiltInMetric):
    """Share of questions whose prediction equals one of the gold answers, both normalized; 0 to 1."""

    types = ("question_answering",)

    def score(self, predictions: list[str], references: list[list[str]]) -> float:
        return _mean_of_best(lambda a, b: normalize_answer(a) == normalize_answer(b), predictions, references)


class SquadF1(_BuiltInMetric):
    """Mean over questions of the word-overlap F1 with the gold answer that fits best, both normalized; 0 to 1."""

    types = ("question_answering",)

    def score(self, predictions: list[str], references: list[list[str]]) -> float:
        return _mean_of_best(_word_overlap_f1, predictions, references)


def chunk_tag(label: str) -> str:
    """The label in a scheme that seqeval knows: without a B-, I-, E- or S- it counts as inside a chunk of its type."""
    if re.match(r"[OBIES]$|[BIES]-", label):
        return label
    return "I-" + re.sub(r"^[A-Z]-", "", label)


class SeqevalF1(_BuiltInMetric):
    """Micro F1 of whole chunks, counted as `conlleval` does. 0 where no chunk is there or predicted.

    Labels are `O` and `B-<type>`, `I-<type>` (or with `E-`, `S-`). A label with another prefix (`T-<type>`) or with
    none counts as inside a chunk of its type: neighbors of one type are then one chunk.
    """

    types = ("token_classification",)

    def score(self, predictions: list[list[str]], references: list[list[str]]) -> float:
        predicted, gold = ([[chunk_tag(label) for label in row] for row in rows] for rows in (predictions, references))
        return seqeval_metrics.f1_score(gold, predicted, zero_division=0)


class SeqevalAccuracy(_BuiltInMetric):
    """Share of tokens with the right label."""

    types = ("token_classification",)

    def score(self, predictions: list[list[str]], references: list[list[str]]) -> float:
        return seqeval_metrics.accuracy_score(references, predictions)


METRICS: dict[str, type[_BuiltInMetric]] = {
    "accuracy": Accuracy,
    "f1": F1,
    "macro_f1": MacroF1,
    "micro_f1": MicroF1,
    "matthews_correlation": MatthewsCorrelation,
    "pearson": Pearson,
    "spearman": Spearman,
    "mse": Mse,
    "mae": Mae,
    "exact_match": ExactMatch,
    "squad_f1": SquadF1,
    "seqeval_f1": SeqevalF1,
    "seqeval_accuracy": SeqevalAccuracy,
}


@functools.cache
def _load(name: str) -> evaluate.EvaluationModule:
    try:
        # In memory, so that processes that score at the same time do not wait for each other's files.
        return evaluate.load(name, keep_in_memory=True)
    except (OSError, ImportError) as error:
        nearest = difflib.get_close_matches(name, METRICS, n=1)
        hint = f" Did you mean {nearest[0]!r}?" if nearest else ""
        raise ConfigurationError(
            f"A metric must be one of {', '.join(METRICS)}, or a name that `evaluate.load` can load; found {name!r}."
            f"{hint} (evaluate.load: {error})"
        ) from error


def _fitting(task_type: str) -> list[str]:
    return [name for name, metric in METRICS.items() if task_type in metric.types]


def _check_fit(name: str, task_type: str, labels: Sequence[str] | None) -> None:
    if task_type not in METRICS[name].types:
        raise ConfigurationError(
            f"The metric {name!r} needs a task of type {' or '.join(METRICS[name].types)}; found type {task_type}. "
            f"Take one of {', '.join(_fitting(task_type))}."
        )
    if name == "f1" and labels is not None and len(labels) != 2:
        raise ConfigurationError(
            "The metric 'f1' needs exactly two classes, of which the second is the positive one; found "
            f"{len(labels)}: {', '.join(labels)}. Take macro_f1."
        )


def check_metric(name: str, task: TaskConfig) -> None:
    """Refuse a metric that cannot score a task, before anything is trained.

    A metric that is not built in is loaded with `evaluate.load` and tried on a few made-up examples. That may use the
    network, and runs the code that the metric's author has written.

    Args:
        name: The metric's name, one of `task.metrics`.
        task: The task that it is to score. The number of classes is checked where `task.labels` is known.

    Raises:
        ConfigurationError: The metric does not fit the type or the number of classes, is the monitored (first) one but
            better when smaller, cannot be loaded, or does not give one number.
    """
    if name not in METRICS:
        _try_loaded(name, task)
        return
    _check_fit(name, task.type, task.label_names)
    if not METRICS[name].greater_is_better and name == task.monitored:
        better = [other for other in _fitting(task.type) if METRICS[other].greater_is_better]
        raise ConfigurationError(
            f"The first of `metrics` is the monitored one and must be better when greater; found {name!r}, which is "
            f"better when smaller. Put {' or '.join(better)} before it."
        )


def _try_loaded(name: str, task: TaskConfig) -> None:
    labels = task.label_names or ["O", "B-X"]
    classes = list(range(len(labels)))
    perfect: dict[str, list[Any]] = {
        "classification": classes,
        "multiple_choice": [0, 1],
        "multilabel": np.eye(len(classes), dtype=int).tolist(),
        "regression": [0.0, 1.0, 3.0],
        "token_classification": [labels],
        "question_answering": ["yes", "no"],
    }
    predictions = perfect[task.type]
    references = [[answer] for answer in predictions] if task.type == "question_answering" else predictions
    _load(name)  # outside of the `try`: its own message says more
    try:
        _loaded_value(name, predictions, references)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"The metric {name!r} must give one number for a task of type {task.type}; found that it does not. Take "
            f"one of {', '.join(_fitting(task.type))}, or another that `evaluate.load` knows. ({error})"
        ) from error


def compute(
    metrics: Sequence[str],
    task_type: str,
    predictions: Sequence[Any],
    references: Sequence[Any],
    labels: Sequence[str] | None = None,
) -> dict[str, float]:
    """Score one task's predictions.

    Built-in metrics leave nothing on disk, and no random state changes. Several processes may score at once.

    Args:
        metrics: Names of metrics: built-in ones, or ones for `evaluate.load`.
        task_type: The task's type; it decides the shape of the next two (see the top of this module).
        predictions: One per example.
        references: One per example.
        labels: The names of the classes, where the task has some.

    Returns:
        The value of each metric by its name, in the metric's own range. The built-in shares (accuracy, F1, exact match)
        are in 0 to 1. A value that is not defined, such as the correlation with a constant, is NaN.

    Raises:
        ConfigurationError: A metric does not fit the task or cannot be loaded.
        ValueError: Predictions and references differ in number, or there are none, or a loaded metric does not give
            one number.

    >>> compute(["accuracy", "f1"], "classification", [1, 0, 1], [1, 0, 0])
    {'accuracy': 0.6666666666666666, 'f1': 0.6666666666666666}
    """
    if len(predictions) != len(references) or len(references) == 0:
        raise ValueError(
            "There must be as many predictions as references, and at least one; found "
            f"{len(predictions)} predictions and {len(references)} references."
        )
    return {name: _value(name, task_type, predictions, references, labels) for name in metrics}


def _value(
    name: str, task_type: str, predictions: Sequence[Any], references: Sequence[Any], labels: Sequence[str] | None
) -> float:
    if name not in METRICS:
        return _loaded_value(name, predictions, references)
    _check_fit(name, task_type, labels)
    # evaluate makes a folder for every metric, even for one that keeps its inputs in memory.
    with tempfile.TemporaryDirectory() as folder:
        metric = METRICS[name](task_type, keep_in_memory=True, cache_dir=folder)
        return metric.compute(predictions=predictions, references=references)[name]


def _loaded_value(name: str, predictions: Sequence[Any], references: Sequence[Any]) -> float:
    result = _load(name).compute(predictions=predictions, references=references)
    own_name = name.rsplit("/", maxsplit=1)[-1]
    values = [result[own_name]] if own_name in result else list(result.values())
    if len(values) != 1 or np.ndim(values[0]) != 0:
        raise ValueError(
            f"A metric must give one number, by its own name or alone; found {', '.join(sorted(result))} from {name!r}."
        )
    return float(values[0])
