"""Standard errors of a metric's change, by the bootstrap over the examples of a validation set.

Method: Efron and Tibshirani, "An Introduction to the Bootstrap" (1993), algorithm 6.1. The examples are drawn with
replacement; the spread of the metric over such resamples estimates its spread over validation sets of that size. It
says nothing of the spread over the seeds of a training.

``scipy.stats.bootstrap`` gives the same numbers from the same generator, but no error at all where one resample has no
value, and a hundred times slower for metrics whose counts add up over the examples.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import metrics
from .modeling.heads import HEADS
from .span_metrics import chunk_tag

_MEANS = frozenset({"exact_match", "squad_f1", "log_loss"})
"""Metrics that are means over the examples, each of which is scored once."""
_CHUNKS = frozenset({"seqeval_f1", "seqeval_precision", "seqeval_recall"})
"""Metrics of chunks, whose counts add up over the examples."""


def paired_standard_error(before: ArrayLike, now: ArrayLike) -> float:
    """Return the standard error of a metric's difference between two models over the same examples.

    The arguments are `bootstrap_values` of both, on the same resamples: where two models are right and wrong on the
    same examples, the difference is far more certain than either value. It is 0 where no resample tells the two apart,
    as for equal predictions. For a handful of examples it is too small, by the factor sqrt((n - 1) / n) for a mean over
    n. With 200 resamples, it has itself an error of about 5 %.

    Resamples in which a value is not defined are left out; NaN if these are more than half of them.

    >>> models = [[0, 0, 0, 0], [1, 0, 0, 0]]
    >>> values = [bootstrap_values("accuracy", "classification", model, [1, 0, 1, 0], None) for model in models]
    >>> round(paired_standard_error(*values), 2)
    0.21
    """
    differences = np.subtract(now, before)
    defined = differences[np.isfinite(differences)]
    return math.nan if 2 * len(defined) < len(differences) else float(defined.std(ddof=1))


def bootstrap_values(
    metric: str,
    task_type: str,
    predictions: Sequence[Any],
    references: Sequence[Any],
    labels: Sequence[str] | None,
    resamples: int = 200,
    seed: int = 0,
) -> list[float]:
    """Return a metric's values on resamples of the examples, NaN where it is not defined.

    Their quantiles are a confidence interval. The resamples depend on the seed and the number of examples only: the
    values of two models over the same examples are pairs. No global random state is read or changed. For metric,
    predictions, references and labels, see `metrics.compute`; for a metric that reads probabilities, ``predictions``
    are these.

    >>> bootstrap_values("accuracy", "classification", [1, 0], [1, 0], None, resamples=3, seed=0)
    [1.0, 1.0, 1.0]
    """
    metrics.compute([metric], task_type, predictions, references, labels, predictions)  # refuses what does not fit
    count = len(references)
    draws = np.random.default_rng(seed).integers(count, size=(resamples, count))
    if metric in _CHUNKS:
        return _chunk_scores(metric.removeprefix("seqeval_"), predictions, references, draws)
    predicted, true = _indexable(task_type, predictions), _indexable(task_type, references)
    if metric not in metrics.METRICS:
        return [
            metrics.compute([metric], task_type, predicted[draw].tolist(), true[draw].tolist(), labels)[metric]
            for draw in draws
        ]
    score = metrics.metric_function(metric, task_type)
    if metric in _MEANS:
        values = np.array(
            [score([prediction], [reference]) for prediction, reference in zip(predicted, true, strict=True)]
        )
        return values[draws].mean(1).tolist()
    return [float(score(predicted[draw], true[draw])) for draw in draws]


def _indexable(task_type: str, values: Sequence[Any]) -> np.ndarray:
    """Return an array whose first dimension is the examples, even if each example is a list of its own length."""
    if HEADS[task_type].unit == "example":
        return np.asarray(values)
    array = np.empty(len(values), dtype=object)
    array[:] = values
    return array


def _chunk_scores(
    kind: str, predictions: Sequence[Sequence[str]], references: Sequence[Sequence[str]], draws: np.ndarray
) -> list[float]:
    """Return `chunk_score` of each resample. No chunk crosses two examples, so their counts add up."""
    from seqeval.metrics.sequence_labeling import get_entities

    counts = []
    for rows in zip(predictions, references, strict=True):
        predicted, gold = (set(get_entities([chunk_tag(label) for label in row])) for row in rows)
        counts.append((len(predicted), len(gold), len(predicted & gold)))
    return metrics.ratio(kind, np.array(counts, dtype=float)[draws].sum(1).T).tolist()
