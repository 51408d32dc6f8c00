"""Metrics: functions of predictions and references, in one table. Other names go to ``evaluate.load``.

There is one prediction and one reference per example, in the format of `TaskType.metric_predictions` and
`TaskType.references`. A metric that `reads_probabilities` takes `TaskType.probabilities` in place of predictions.

The values of classes and numbers are scikit-learn's, computed here: the bootstrap asks for hundreds of them, and a call
of scikit-learn takes milliseconds. Other libraries are imported when a value is computed.
"""

from __future__ import annotations

import difflib
import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from .modeling.configuration_multitask import TaskConfig
from .modeling.losses import IGNORE
from .span_metrics import chunk_score, exact_match, squad_f1, token_accuracy
from .tasks.registry import TASK_TYPES
from .tasks.special_labels import OUTSIDE_TAGS, has_chunks, has_other_scheme
from .validation import ConfigurationError

Score = Callable[[Sequence[Any], Sequence[Any]], float]
_SMALLEST = float(np.finfo(np.float64).eps)
"""The smallest probability of `log_loss`, as in scikit-learn."""


def accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Return the share of correct predictions. A multilabel prediction is correct if all its labels are."""
    hits = np.asarray(predictions) == np.asarray(references)
    return float(hits.reshape(len(hits), -1).all(1).mean())


def class_counts(predictions: Any, references: Any) -> np.ndarray:
    """Return how often each class is predicted, occurs, and is predicted correctly: ``[3, C]``.

    The classes are those that occur or are predicted, in ascending order; of multilabel, all labels.
    """
    if np.ndim(references) == 2:
        predicted, true = np.asarray(predictions) == 1, np.asarray(references) == 1
        return np.stack([predicted.sum(0), true.sum(0), (predicted & true).sum(0)]).astype(float)
    classes, indices = np.unique(np.stack([predictions, references]), return_inverse=True)
    predicted, true = indices.reshape(2, -1)
    parts = (predicted, true, true[predicted == true])
    return np.stack([np.bincount(part, minlength=len(classes)) for part in parts]).astype(float)


def ratio(kind: str, counts: np.ndarray) -> np.ndarray:
    """Return ``precision``, ``recall`` or ``f1``, ``[C]``, from `class_counts`; 0 where a divisor is 0."""
    predicted, true, hits = counts
    divisor = {"precision": predicted, "recall": true, "f1": (predicted + true) / 2}[kind]
    return np.divide(hits, divisor, out=np.zeros_like(hits), where=divisor > 0)


def class_score(kind: str, average: str, predictions: Any, references: Any) -> float:
    """Return the precision, recall or F1 of classification or multilabel; ``kind`` is that of `ratio`.

    ``average``: ``binary`` (that of class 1), ``macro`` (the mean over the classes that occur or are predicted, or over
    the labels), ``weighted`` (the same, each as often as it occurs) or ``micro`` (over all decisions).
    """
    if average == "binary":
        predictions, references = (np.equal(values, 1)[:, None] for values in (predictions, references))
    counts = class_counts(predictions, references)
    if average == "micro":
        counts = counts.sum(1, keepdims=True)
    weights = counts[1] if average == "weighted" and counts[1].any() else None
    return float(np.average(ratio(kind, counts), weights=weights))


def balanced_accuracy(predictions: Any, references: Any) -> float:
    """Return the mean recall of the classes that occur."""
    counts = class_counts(predictions, references)
    return float(ratio("recall", counts)[counts[1] > 0].mean())


def matthews_correlation(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Return the Matthews correlation coefficient, -1 to 1; 0 if one class only occurs, or is predicted."""
    predicted, true, hits = class_counts(predictions, references)
    n = len(references)
    covariance, variances = n * hits.sum() - predicted @ true, (n**2 - predicted @ predicted) * (n**2 - true @ true)
    return float(covariance / math.sqrt(variances)) if variances > 0 else 0.0


def log_loss(probabilities: Any, references: Any) -> float:
    """Return the mean negative logarithm of the probabilities of what is true, in nats; of multilabel, over all labels.

    Probabilities ``[N, C]`` count as at least 2.2e-16, so that a value is at most 36. NaN if one is not finite.
    """
    given, true = np.clip(np.asarray(probabilities, np.float64), _SMALLEST, 1 - _SMALLEST), np.asarray(references)
    if true.ndim == 2:
        # Labels that training lacks have no probability.
        given = np.pad(given, ((0, 0), (0, true.shape[1] - given.shape[1])), constant_values=_SMALLEST)
        losses, known = -np.log(np.where(true == 1, given, 1 - given)), true != IGNORE
        return float((np.where(known, losses, 0).sum(1) / known.sum(1)).mean())
    of_true = np.where(true[:, None] == np.arange(given.shape[1]), given, 0).sum(1)
    return float(-np.log(np.maximum(of_true, _SMALLEST)).mean())


def one_vs_rest(score: Callable[[np.ndarray, np.ndarray], float], probabilities: Any, references: Any) -> float:
    """Return the mean over the classes or labels of a score of their probabilities ``[N, C]``; of two classes, class 1.

    NaN if a probability is not finite, or a score is not defined.
    """
    given, true = np.asarray(probabilities, np.float64), np.asarray(references)
    if not np.isfinite(given).all():
        return math.nan
    is_class = true == 1 if true.ndim == 2 else true[:, None] == np.arange(given.shape[1])
    known = true != IGNORE if true.ndim == 2 else np.ones_like(is_class)
    first = 1 if true.ndim == 1 and given.shape[1] == 2 else 0
    columns = [(given[:, c], is_class[:, c], known[:, c]) for c in range(first, given.shape[1])]
    return float(np.mean([score(scores[rows], positive[rows]) for scores, positive, rows in columns]))


def roc_auc(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Return the area under the ROC curve of one class, both ``[N]``; NaN if all examples are positive, or none is."""
    _, place, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[place]  # equal scores share their mean rank
    positives = int(is_positive.sum())
    pairs = positives * (len(scores) - positives)
    return float((ranks[is_positive].sum() - positives * (positives + 1) / 2) / pairs) if pairs else math.nan


def average_precision(scores: np.ndarray, is_positive: np.ndarray) -> float:
    """Return the mean over the positives of the precision at their score, both ``[N]``; 0 if there are none."""
    order = np.argsort(-scores, kind="stable")
    last = np.flatnonzero(np.diff(scores[order], append=-math.inf))  # of equal scores
    hits = np.cumsum(is_positive[order])[last]
    return float(np.sum(np.diff(hits, prepend=0) * hits / (last + 1)) / max(hits[-1], 1))


def correlation(name: str, predictions: Sequence[float], references: Sequence[float]) -> float:
    """Return a correlation of scipy's, -1 to 1; NaN if either side is constant or not finite."""
    from scipy import stats

    # In float64 also where logits are float32.
    numbers = np.asarray([predictions, references], dtype=np.float64)
    if len(predictions) < 2 or not np.isfinite(numbers).all():
        return math.nan
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", stats.ConstantInputWarning)
        warnings.simplefilter("ignore", stats.NearConstantInputWarning)
        return getattr(stats, name)(*numbers).statistic


def mean_error(power: int, predictions: Sequence[float], references: Sequence[float]) -> float:
    """Return the mean of the absolute errors, raised to a power; NaN if a number is not finite."""
    numbers = np.asarray([predictions, references], dtype=np.float64)
    return float((np.abs(numbers[0] - numbers[1]) ** power).mean()) if np.isfinite(numbers).all() else math.nan


@dataclass(frozen=True)
class Metric:
    """A built-in metric. The types of task that it fits name it, in `TaskType.metrics`.

    ``worst`` is the worst value that it can have: it stands for a value that is not defined.
    ``reads_probabilities``: it takes `TaskType.probabilities` in place of `TaskType.predictions`.
    """

    function: Score
    greater_is_better: bool = True
    worst: float = 0.0
    reads_probabilities: bool = False


_RATIOS = ("f1", "precision", "recall")
METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy),
    "balanced_accuracy": Metric(balanced_accuracy),
    **{kind: Metric(partial(class_score, kind, "binary")) for kind in _RATIOS},
    **{f"macro_{kind}": Metric(partial(class_score, kind, "macro")) for kind in _RATIOS},
    **{f"micro_{kind}": Metric(partial(class_score, kind, "micro")) for kind in _RATIOS},
    "weighted_f1": Metric(partial(class_score, "f1", "weighted")),
    "matthews_correlation": Metric(matthews_correlation, worst=-1.0),
    "roc_auc": Metric(partial(one_vs_rest, roc_auc), reads_probabilities=True),
    "average_precision": Metric(partial(one_vs_rest, average_precision), reads_probabilities=True),
    "log_loss": Metric(log_loss, greater_is_better=False, worst=-math.log(_SMALLEST), reads_probabilities=True),
    "pearson": Metric(partial(correlation, "pearsonr"), worst=-1.0),
    "spearman": Metric(partial(correlation, "spearmanr"), worst=-1.0),
    "mse": Metric(partial(mean_error, 2), greater_is_better=False, worst=math.nan),
    "mae": Metric(partial(mean_error, 1), greater_is_better=False, worst=math.nan),
    "exact_match": Metric(exact_match),
    "squad_f1": Metric(squad_f1),
    **{f"seqeval_{kind}": Metric(partial(chunk_score, kind)) for kind in _RATIOS},
    "seqeval_accuracy": Metric(token_accuracy),
}
"""Name -> built-in metric."""


def worst_value(name: str) -> float:
    """Return the worst value of a monitored metric; 0 for a name of ``evaluate.load``, whose range is not known."""
    return METRICS[name].worst if name in METRICS else 0.0


def greater_is_better(name: str) -> bool:
    """Return the direction of a metric; one that is not built in is taken to be better when greater."""
    return name not in METRICS or METRICS[name].greater_is_better


def reads_probabilities(name: str) -> bool:
    """Return whether a metric takes probabilities in place of predictions."""
    return name in METRICS and METRICS[name].reads_probabilities


def metric_function(name: str, task_type: str) -> Score:
    """Return the function of a built-in metric for a type of task that it fits."""
    return METRICS[TASK_TYPES[task_type].metric_aliases.get(name, name)].function


@cache
def _load(name: str) -> Any:
    import evaluate

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


def _check_fit(name: str, task_type: str, labels: Sequence[str] | None) -> None:
    if name not in TASK_TYPES[task_type].metrics:
        fitting = [other for other, kind in TASK_TYPES.items() if name in kind.metrics]
        raise ConfigurationError(
            f"The metric {name!r} needs a task of type {' or '.join(fitting)}; found type {task_type}. "
            f"Use one of {', '.join(TASK_TYPES[task_type].metrics)}."
        )
    if name in _RATIOS and labels is not None and len(labels) != 2:
        raise ConfigurationError(
            f"The metric {name!r} needs exactly two classes, of which one is the positive one; found "
            f"{len(labels)}: {', '.join(labels)}. Use macro_{name}."
        )


def check_metric(name: str, task: TaskConfig) -> None:
    """Raise for a metric that cannot score a task, before training starts.

    A metric that is not built in is loaded with ``evaluate.load`` and tried on a few made-up examples. This may use the
    network, and runs the code of the metric's author.

    Raises:
        ConfigurationError: The metric does not fit the type or the number of classes, cannot be loaded, or does not
            return one number.
    """
    if name not in METRICS:
        _try_loaded(name, task)
        return
    _check_fit(name, task.type, task.label_names)
    function = METRICS[name].function
    if isinstance(function, partial) and function.func is chunk_score:
        _check_chunks(name, task.label_names)


def _check_chunks(name: str, labels: Sequence[str] | None) -> None:
    if labels is not None and not has_chunks(labels):
        raise ConfigurationError(
            f"The metric {name!r} counts chunks of words, and needs a tag of the words outside of them, in any case "
            f"{', '.join(OUTSIDE_TAGS[:-1])} or {OUTSIDE_TAGS[-1]}; found the tags {', '.join(labels[:10])}"
            f"{', ...' if len(labels) > 10 else ''}. Use accuracy, or name the tags with `label_names`."
        )
    if labels is not None and has_other_scheme(labels):
        raise ConfigurationError(
            f"The metric {name!r} counts chunks of words, whose tags must begin with a letter and a hyphen, such as "
            f"B-x; found {', '.join(labels[:10])}{', ...' if len(labels) > 10 else ''}. Rename the tags, or use "
            "accuracy."
        )


def _try_loaded(name: str, task: TaskConfig) -> None:
    kind = TASK_TYPES[task.type]
    predictions, references = kind.sample_predictions(task)
    _load(name)  # outside of the `try`: its own message says more
    try:
        _loaded_value(name, predictions, references)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"The metric {name!r} must give one number for a task of type {task.type}; found that it does not. Use "
            f"one of {', '.join(kind.metrics)}, or another that `evaluate.load` knows. ({error})"
        ) from error


def compute(
    metrics: Sequence[str],
    task_type: str,
    predictions: Sequence[Any],
    references: Sequence[Any],
    labels: Sequence[str] | None = None,
    probabilities: Sequence[Any] | None = None,
) -> dict[str, float]:
    """Return the values of metrics, built-in or for ``evaluate.load``, of the predictions for one task.

    ``probabilities`` are for the metrics that read these. Accuracy, F1 and exact match are in 0 to 1. A value that is
    not defined, such as the correlation with a constant, is NaN.

    >>> compute(["accuracy", "f1"], "classification", [1, 0, 1], [1, 0, 0])
    {'accuracy': 0.6666666666666666, 'f1': 0.6666666666666666}
    """
    if len(predictions) != len(references) or len(references) == 0:
        raise ValueError(
            "There must be as many predictions as references, and at least one; found "
            f"{len(predictions)} predictions and {len(references)} references."
        )
    values = {}
    for name in metrics:
        if name not in METRICS:
            values[name] = _loaded_value(name, predictions, references)
            continue
        _check_fit(name, task_type, labels)
        given = probabilities if reads_probabilities(name) else predictions
        if given is None:
            raise ValueError(f"The metric {name!r} needs `probabilities`; found None.")
        values[name] = float(metric_function(name, task_type)(given, references))
    return values


def _loaded_value(name: str, predictions: Sequence[Any], references: Sequence[Any]) -> float:
    result = _load(name).compute(predictions=predictions, references=references)
    own_name = name.rsplit("/", maxsplit=1)[-1]
    values = [result[own_name]] if own_name in result else list(result.values())
    if len(values) != 1 or np.ndim(values[0]) != 0:
        raise ValueError(
            f"A metric must give one number, by its own name or alone; found {', '.join(sorted(result))} from {name!r}."
        )
    return float(values[0])
