"""Metrics: functions of predictions and references, in one table. Other names go to ``evaluate.load``.

There is one prediction and one reference per example, in the format of `TaskType.predictions` and
`TaskType.references`.

The values of classes and numbers are scikit-learn's, computed here: the bootstrap asks for hundreds of them, and a call
of scikit-learn takes milliseconds. Other libraries are imported when a value is computed.
"""

from __future__ import annotations

import difflib
import math
import re
import string
import warnings
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache, partial
from typing import Any

import numpy as np

from .modeling.configuration_multitask import TaskConfig
from .tasks.registry import TASK_TYPES
from .validation import ConfigurationError

Score = Callable[[Sequence[Any], Sequence[Any]], float]


def accuracy(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Return the share of correct predictions. A multilabel prediction is correct if all its labels are."""
    hits = np.asarray(predictions) == np.asarray(references)
    return float(hits.reshape(len(hits), -1).all(1).mean())


def token_accuracy(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """Return the share of tokens with the correct label."""
    from seqeval.metrics import accuracy_score

    return accuracy_score(list(references), list(predictions))


def _f1_by_column(predictions: Any, references: Any) -> Any:
    """Return the F1 of value 1 over the first dimension, 0 where it neither occurs nor is predicted."""
    predicted, true = np.asarray(predictions) == 1, np.asarray(references) == 1
    return 2 * (predicted & true).sum(0) / np.maximum(predicted.sum(0) + true.sum(0), 1)


def _class_counts(predictions: Any, references: Any) -> np.ndarray:
    """Return how often each class is predicted, occurs, and is predicted correctly: ``[3, C]``."""
    classes, indices = np.unique(np.stack([predictions, references]), return_inverse=True)
    predicted, true = indices.reshape(2, -1)
    parts = (predicted, true, true[predicted == true])
    return np.stack([np.bincount(part, minlength=len(classes)) for part in parts]).astype(float)


def f1(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Return the F1 of class 1 of two classes, 0 if that class neither occurs nor is predicted."""
    return float(_f1_by_column(predictions, references))


def macro_f1(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Return the mean F1 of the classes that occur or are predicted; multilabel: of the labels."""
    if np.ndim(references) == 2:
        return float(_f1_by_column(predictions, references).mean())
    predicted, true, hits = _class_counts(predictions, references)
    return float((2 * hits / (predicted + true)).mean())


def micro_f1(predictions: Sequence[Any], references: Sequence[Any]) -> float:
    """Return the F1 over all decisions. For classification it equals the accuracy."""
    if np.ndim(references) == 2:
        return float(_f1_by_column(np.ravel(predictions), np.ravel(references)))
    return accuracy(predictions, references)


def matthews_correlation(predictions: Sequence[int], references: Sequence[int]) -> float:
    """Return the Matthews correlation coefficient, -1 to 1; 0 if one class only occurs, or is predicted."""
    predicted, true, hits = _class_counts(predictions, references)
    n = len(references)
    covariance, variances = n * hits.sum() - predicted @ true, (n**2 - predicted @ predicted) * (n**2 - true @ true)
    return float(covariance / math.sqrt(variances)) if variances > 0 else 0.0


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


def normalize_answer(text: str) -> str:
    """Normalize an answer as SQuAD does: lower case, no punctuation, no articles, single spaces.

    The order of the steps is that of the official evaluation script, version 1.1 (Rajpurkar et al., 2016,
    arXiv:1606.05250).

    Examples:
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
                f"Every question needs a gold answer; question {question} of {len(references)} has none. Remove "
                "questions without an answer from the data."
            )
    pairs = zip(predictions, references, strict=True)
    return float(np.mean([max(score(text, answer) for answer in answers) for text, answers in pairs]))


def exact_match(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the share of questions whose prediction equals a gold answer, both normalized."""
    return _mean_of_best(lambda a, b: normalize_answer(a) == normalize_answer(b), predictions, references)


def squad_f1(predictions: Sequence[str], references: Sequence[Sequence[str]]) -> float:
    """Return the mean word-overlap F1 with the best-fitting gold answer, both normalized."""
    return _mean_of_best(_word_overlap_f1, predictions, references)


def chunk_tag(label: str) -> str:
    """Return a label in a scheme that seqeval knows: any prefix but B-, I-, E-, S- becomes I-."""
    if re.match(r"[OBIES]$|[BIES]-", label):
        return label
    return "I-" + re.sub(r"^[A-Z]-", "", label)


def seqeval_f1(predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]]) -> float:
    """Return the micro F1 of complete chunks, counted as ``conlleval`` does; 0 without any chunk.

    Labels are ``O`` and ``B-<type>``, ``I-<type>`` (or with ``E-``, ``S-``). A label with another prefix
    (``T-<type>``) or with none counts as inside a chunk of its type: neighbors of one type are then one chunk.
    """
    from seqeval.metrics import f1_score

    predicted, gold = ([[chunk_tag(label) for label in row] for row in rows] for rows in (predictions, references))
    return f1_score(gold, predicted, zero_division=0)


@dataclass(frozen=True)
class Metric:
    """A built-in metric. The types of task that it fits name it, in `TaskType.metrics`.

    ``worst`` is the lowest value that it can have: it stands for a value that is not defined.
    """

    function: Score
    greater_is_better: bool = True
    worst: float = 0.0


METRICS: dict[str, Metric] = {
    "accuracy": Metric(accuracy),
    "f1": Metric(f1),
    "macro_f1": Metric(macro_f1),
    "micro_f1": Metric(micro_f1),
    "matthews_correlation": Metric(matthews_correlation, worst=-1.0),
    "pearson": Metric(partial(correlation, "pearsonr"), worst=-1.0),
    "spearman": Metric(partial(correlation, "spearmanr"), worst=-1.0),
    "mse": Metric(partial(mean_error, 2), greater_is_better=False),
    "mae": Metric(partial(mean_error, 1), greater_is_better=False),
    "exact_match": Metric(exact_match),
    "squad_f1": Metric(squad_f1),
    "seqeval_f1": Metric(seqeval_f1),
    "seqeval_accuracy": Metric(token_accuracy),
}
"""Name -> built-in metric."""


def worst_value(name: str) -> float:
    """Return the worst value of a monitored metric; 0 for a name of ``evaluate.load``, whose range is not known."""
    return METRICS[name].worst if name in METRICS else 0.0


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
    if name == "f1" and labels is not None and len(labels) != 2:
        raise ConfigurationError(
            "The metric 'f1' needs exactly two classes, of which the second is the positive one; found "
            f"{len(labels)}: {', '.join(labels)}. Use macro_f1."
        )


def check_metric(name: str, task: TaskConfig) -> None:
    """Raise for a metric that cannot score a task, before training starts.

    A metric that is not built in is loaded with ``evaluate.load`` and tried on a few made-up examples. This may use the
    network, and runs the code of the metric's author.

    Raises:
        ConfigurationError: The metric does not fit the type or the number of classes, is the monitored (first) one but
            better when smaller, cannot be loaded, or does not return one number.
    """
    if name not in METRICS:
        _try_loaded(name, task)
        return
    _check_fit(name, task.type, task.label_names)
    if not METRICS[name].greater_is_better and name == task.monitored:
        better = [other for other in TASK_TYPES[task.type].metrics if METRICS[other].greater_is_better]
        raise ConfigurationError(
            f"The first of `metrics` is the monitored one and must be better when greater; found {name!r}, which is "
            f"better when smaller. Name {' or '.join(better)} before it."
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
) -> dict[str, float]:
    """Return the values of metrics, built-in or for ``evaluate.load``, of the predictions for one task.

    Accuracy, F1 and exact match are in 0 to 1. A value that is not defined, such as the correlation with a constant,
    is NaN.

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
        if name in METRICS:
            _check_fit(name, task_type, labels)
            values[name] = float(metric_function(name, task_type)(predictions, references))
        else:
            values[name] = _loaded_value(name, predictions, references)
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
